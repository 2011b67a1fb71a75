"""Tasks: the loss of a batch, its measurements, and what the next batch of a stream needs."""
