"""Sample op weights by Gumbel-softmax (Jang et al., ICLR 2017), for GDAS, SNAS, FBNet and ReinMax."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastdarts.bilevel.host_values import from_host


def sample(alpha: Tensor, tau: Callable[[], float], generator: torch.Generator) -> Tensor:
    """Return z = softmax((log_softmax(alpha) + g) / tau) for each row of alpha [edges, ops], with g standard Gumbel.

    The position of a row's largest entry is distributed as softmax(alpha) for any tau.

    Args:
        alpha: [edges, ops].
        tau: returns the temperature of the present step.
        generator: generator on the CPU.
    """

    def draw() -> Tensor:
        waiting = torch.empty(shape, dtype=torch.float64).exponential_(generator=generator)
        return -waiting.clamp(1e-30, 1e30).log()  # g = -log(E), E ~ Exp(1); E = 0 has probability 2^-53

    shape = alpha.shape
    temperature = from_host(lambda: torch.tensor(tau(), dtype=torch.float64), alpha)
    return ((alpha.log_softmax(dim=-1) + from_host(draw, alpha)) / temperature).softmax(dim=-1)


def one_hot(z: Tensor) -> Tensor:
    """Return 1 for each row's largest entry of z and 0 for the others, with the gradient of z (straight-through)."""
    return straight_through(z.argmax(1), z)


def straight_through(chosen: Tensor, z: Tensor) -> Tensor:
    """Return 1 for the column `chosen` [rows] of each row of z [rows, ops] and 0 elsewhere, with the gradient of z."""
    hard = torch.zeros_like(z).scatter(1, chosen[:, None], 1.0)
    return hard + (z - z.detach())


def temperature(start: float, end: float, epoch: int, epochs: int) -> float:
    """Return the temperature of `epoch`: linear from `start` in the first epoch to `end` in the last and after it."""
    return start - (start - end) * min(epoch / max(epochs - 1, 1), 1.0)
