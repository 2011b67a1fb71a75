"""One edge of a cell: the weighted sum of all candidate operations."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from fastdarts import fused
from fastdarts.reference import build_for_search
from fastdarts.space import PRIMITIVES, check_primitives

Backend = Literal["auto", "reference", "fused"]
BACKENDS: tuple[Backend, ...] = ("auto", "reference", "fused")


def check_backend(backend: str) -> None:
    """ValueError unless `backend` is one of BACKENDS."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}")


def runs_fused(edges: Sequence["MixedOp"], x: Tensor) -> bool:
    """Whether kernels compute these edges for x; RuntimeError where they were asked for and cannot."""
    backend = edges[0].backend
    if backend == "reference":
        return False
    reason = fused.refusal(edges, x)
    if reason and backend == "fused":
        raise RuntimeError(f"backend 'fused' cannot serve here: {reason}; use 'auto' or 'reference'")
    return reason is None


class MixedOp(nn.Module):
    """y = sum_o weights[o] * op_o(x) (Liu et al., ICLR 2019, equation 2).

    Args:
        C: channels of input and output; even where a stride-2 `skip_connect` is among the primitives.
        stride: 1, or 2 for an edge from a reduction cell's input: [N, C, H, W] -> [N, C, ceil(H/2), ceil(W/2)].
        primitives: candidate ops, an ordered subset of `fastdarts.space.CANDIDATES`.
        backend: "reference" (plain modules), "fused" (kernels), or "auto" (fused where it can).
    """

    def __init__(
        self, C: int, stride: int, primitives: Sequence[str] = PRIMITIVES, backend: Backend = "auto"
    ) -> None:
        super().__init__()
        check_backend(backend)
        self.C = C
        self.stride = stride
        self.primitives = check_primitives(primitives)
        self.backend = backend
        self._ops = nn.ModuleList(build_for_search(name, C, stride) for name in self.primitives)

    def extra_repr(self) -> str:
        return f"C={self.C}, stride={self.stride}, backend={self.backend!r}"

    def forward(self, x: Tensor, weights: Tensor | Sequence[float | Tensor]) -> Tensor:
        """x [N, C, H, W] and weights [ops] -> [N, C, ceil(H/stride), ceil(W/stride)]."""
        check_input(x, self.C)
        if len(weights) != len(self._ops):
            raise ValueError(f"weights must hold one number for each of the {len(self._ops)} ops; got {len(weights)}")
        if runs_fused([self], x):
            return fused.mixed_nodes([self], [(0, 1)], [x], _row(weights, x))
        return self.reference_forward(x, weights)

    def reference_forward(self, x: Tensor, weights: Tensor | Sequence[float | Tensor]) -> Tensor:
        """The same by the plain modules, as the original computes it."""
        terms = [weight * op(x) for weight, op in zip(weights, self._ops, strict=True)]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total


def _row(weights: Tensor | Sequence[float | Tensor], x: Tensor) -> Tensor:
    """Op weights, given as a tensor or as a list of scalars, as a matrix of one row."""
    if isinstance(weights, Tensor):
        return weights.reshape(1, -1)
    return torch.stack([torch.as_tensor(weight, device=x.device) for weight in weights]).reshape(1, -1)


def check_input(x: Tensor, C: int) -> None:
    """TypeError or ValueError unless x is a non-empty floating-point [N, C, H, W]."""
    if not torch.is_floating_point(x):
        raise TypeError(f"x must be a floating-point tensor; got {x.dtype}")
    if x.dim() != 4 or x.shape[1] != C or 0 in x.shape:
        raise ValueError(f"x must be a non-empty [N, {C}, H, W]; got {tuple(x.shape)}")
