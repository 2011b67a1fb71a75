"""Learning-rate schedules."""

import math


def cosine(start: float, end: float, epoch: int, epochs: int) -> float:
    """The learning rate from `start` in epoch 0 towards `end`, which it would reach in the epoch after the last."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * epoch / epochs))
