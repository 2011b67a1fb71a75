"""Say beside each number what it is, and what is normal."""

NOTES = {
    "validation accuracy": "of the search network, all ops at once, on the alphas' half; no measure of the found cell",
    "validation loss": "on the alphas' half",
    "test error": "share of the test images that are classified wrong, in the last epoch",
    "test accuracy": "of the last epoch; the test images decided nothing",
    "balanced accuracy": "mean of the classes' accuracies; below the test accuracy if rare classes do badly",
    "parameters": "weights without the auxiliary head; DARTS' CIFAR-10 networks have about 3.3 million",
    "multiply-adds": "of convolutions and linear layers, for one image",
    "latency, 1 image": "median forward pass on the run's machine; what a single request waits",
    "latency, 64 images": "median forward pass of a batch, likewise",
    "predicted cost": "of the table given with --cost",
    "measured cost": "of the trained network, with the batch and runtime of that table",
    "Loss": "training loss includes the noise of augmentation and drop path, so it may be above the test loss",
    "Accuracy": "",
    "Entropy of the op weights (nats)": "starts at the logarithm of the ops' number, 2.08 for 8; falls as edges choose",
    "Skip connections": "in the cells derived so far; an architecture full of them is DARTS' known collapse",
    "Learning rate": "",
    "Images per second": "the first epoch may be slower: it prepares kernels",
    "Discretisation error": (
        "accuracy lost when all ops but the chosen ones are taken out of the search network without training; most of "
        "the accuracy may go, as the weights have learned beside each other. The found cell is trained from scratch"
    ),
}
"""Notes by the names of tiles and the titles of charts; empty where the name says it all."""


def note(name: str) -> str:
    """Return the note beside a tile or a chart, or nothing."""
    return NOTES.get(name, "")
