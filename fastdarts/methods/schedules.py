"""Compute learning-rate schedules."""

import math


def cosine(start: float, end: float, epoch: int, epochs: int) -> float:
    """Return the learning rate of `epoch`: `start` in epoch 0; it would reach `end` in the epoch after the last."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * epoch / epochs))
