"""Compute the largest eigenvalue of a symmetric operator by Lanczos iterations."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def largest_eigenvalue(
    product: Callable[[Tensor], Tensor], start: Tensor, steps: int, tolerance: float = 1e-5
) -> float:
    """Return the largest eigenvalue of a symmetric linear map [n] -> [n].

    Args:
        product: the map.
        start: [n], not zero and not orthogonal to the eigenvector; use a random vector.
        steps: largest number of iterations, each with one product; n iterations are exact.
        tolerance: stop when a step changes the eigenvalue by less than this, relative to the largest magnitude.

    Every new direction is made orthogonal to all earlier ones, twice, because rounding errors would otherwise bring
    back eigenvalues that were already found.
    """
    basis = [start / start.norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    value = math.nan
    for _ in range(min(steps, start.numel())):
        v = product(basis[-1])
        diagonal.append(float(v @ basis[-1]))
        values = torch.linalg.eigvalsh(tridiagonal(diagonal, beside))
        before, value = value, float(values[-1])
        scale = float(values.abs().max())
        known = torch.stack(basis)
        for _ in range(2):
            v = v - known.T @ (known @ v)
        size = float(v.norm())
        if size <= 1e-6 * scale or abs(value - before) <= tolerance * scale:
            break
        beside.append(size)
        basis.append(v / size)
    return value


def tridiagonal(diagonal: list[float], beside: list[float]) -> Tensor:
    """Return the symmetric tridiagonal matrix with this diagonal and `beside` above and below it."""
    upper = torch.tensor([*beside, 0.0], dtype=torch.float64).diag(1)[:-1, :-1]
    return torch.tensor(diagonal, dtype=torch.float64).diag() + upper + upper.T
