"""Tasks: how outputs are measured against targets."""
