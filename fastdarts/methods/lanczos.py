"""The largest eigenvalue of a symmetric operator, by Lanczos iterations."""

from collections.abc import Callable

import torch
from torch import Tensor


def largest_eigenvalue(product: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> float:
    """Of a symmetric linear map [n] -> [n].

    Args:
        product: the map.
        start: [n], not zero and not orthogonal to the eigenvector: a random vector.
        steps: of the iteration, each one product; n are exact.

    Every new direction is made orthogonal to all before, twice, so that rounding brings no eigenvalue in again.
    """
    basis = [start / start.norm()]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    for _ in range(min(steps, start.numel())):
        v = product(basis[-1])
        diagonal.append(v @ basis[-1])
        known = torch.stack(basis)
        for _ in range(2):
            v = v - known.T @ (known @ v)
        size = v.norm()
        if size <= 1e-6 * torch.stack(diagonal).abs().max():
            break
        beside.append(size)
        basis.append(v / size)
    off = beside[: len(diagonal) - 1]
    matrix = torch.diag(torch.stack(diagonal))
    if off:
        upper = torch.diag(torch.stack(off), 1)
        matrix = matrix + upper + upper.T
    return float(torch.linalg.eigvalsh(matrix.double().cpu())[-1])
