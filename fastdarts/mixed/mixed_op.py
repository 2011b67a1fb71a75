"""Define one edge of a cell: the weighted sum of all candidate operations."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from fastdarts.mixed import fused
from fastdarts.mixed.mix import Active
from fastdarts.primitives.modules import build_for_search
from fastdarts.primitives.table import PRIMITIVES, check_primitives

Backend = Literal["auto", "reference", "fused"]
BACKENDS: tuple[Backend, ...] = ("auto", "reference", "fused")


def check_backend(backend: str) -> None:
    """Raise a ValueError if `backend` is not one of BACKENDS."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}")


def read_fused(edges: Sequence["MixedOp"], x: Tensor, active: Active | None) -> list[fused.ReadEdge] | None:
    """Return the fused descriptions of `edges` with their active ops, or None to run the modules for x.

    Raises:
        RuntimeError: backend "fused" was requested, but the kernels cannot compute these edges.
    """
    if edges[0].backend == "reference":
        return None
    columns = [None] * len(edges) if active is None else active
    return usable([fused.read(edge, own) for edge, own in zip(edges, columns, strict=True)], x, edges[0].backend)


def usable(read: list[fused.ReadEdge], x: Tensor, backend: Backend) -> list[fused.ReadEdge] | None:
    """Return edges that have been read, or None if `backend` or the kernels want their modules to run for x.

    Raises:
        RuntimeError: backend "fused" was requested, but the kernels cannot compute these edges.
    """
    if backend == "reference":
        return None
    reason = fused.refusal(read, x)
    if reason and backend == "fused":
        raise RuntimeError(f"backend 'fused' cannot serve here: {reason}; use 'auto' or 'reference'")
    return None if reason else read


class MixedOp(nn.Module):
    """Compute y = sum_o weights[o] * op_o(x) (Liu et al., ICLR 2019, equation 2).

    Args:
        C: channels of input and output; even if a stride-2 `skip_connect` is among the primitives.
        stride: 1, or 2 for an edge from a reduction cell's input: [N, C, H, W] -> [N, C, ceil(H/2), ceil(W/2)].
        primitives: candidate ops by their names in `fastdarts.primitives.table.CANDIDATES`, one per op weight.
        backend: "reference" (plain modules), "fused" (kernels), or "auto" (kernels if possible, else modules).
        skip_zeros: if kernels run, do not compute an op whose weight is a constant 0 (no gradient, on a CPU). This
            changes results: the op's batch norms do not see the batch, and its parameters get no gradients instead of
            zeros, so that optimizers do not decay them.

    Raises:
        ValueError: unknown backend or primitive, C below 1 or odd where it must be even.
    """

    skip_zeros = False

    def __init__(
        self,
        C: int,
        stride: int,
        primitives: Sequence[str] = PRIMITIVES,
        backend: Backend = "auto",
        skip_zeros: bool = False,
    ) -> None:
        super().__init__()
        check_backend(backend)
        if C < 1:
            raise ValueError(f"C must be at least 1; got {C}")
        self.C = C
        self.stride = stride
        self.primitives = check_primitives(primitives, repeats=True)
        self.backend = backend
        if skip_zeros:
            self.skip_zeros = True
        self._ops = nn.ModuleList(build_for_search(name, C, stride) for name in self.primitives)
        self._built = tuple(map(fused.signature, self._ops))

    def extra_repr(self) -> str:
        return f"C={self.C}, stride={self.stride}, backend={self.backend!r}"

    def forward(
        self, x: Tensor, weights: Tensor | Sequence[float | Tensor], active: Sequence[int] | None = None
    ) -> Tensor:
        """Return the weighted sum of the ops, [N, C, ceil(H/stride), ceil(W/stride)].

        Args:
            x: [N, C, H, W], floating-point.
            weights: op weights [ops], as a tensor or as a list of numbers and scalar tensors.
            active: the columns of the ops to compute; None computes all.

        Raises:
            ValueError, TypeError: x, weights or active do not fit.
            RuntimeError: backend "fused" cannot compute this edge.
        """
        check_input(x, self.C)
        self._check_weights(weights, x.device)
        columns = None if active is None else [active]
        if columns is not None:
            check_active(columns, [len(self._ops)])
        edges = read_fused([self], x, columns)
        if edges is not None:
            row = op_weights_row(weights, x)
            return fused.mixed_nodes(edges, [(0, 1)], [x], row, columns, skip_zeros=self.skip_zeros)
        return self.reference_forward(x, weights, active)

    def _check_weights(self, weights: Tensor | Sequence[float | Tensor], device: torch.device) -> None:
        wanted = f"weights must hold one number for each of the {len(self._ops)} ops"
        if not isinstance(weights, Tensor):
            if len(weights) != len(self._ops):
                raise ValueError(f"{wanted}; got {len(weights)}")
            for column, weight in enumerate(weights):
                if isinstance(weight, Tensor) and (weight.numel() != 1 or weight.is_complex()):
                    raise ValueError(f"{wanted}; got {weight.dtype} {tuple(weight.shape)} for op {column}")
        elif weights.shape != (len(self._ops),):
            raise ValueError(f"{wanted}; got shape {tuple(weights.shape)}")
        else:
            check_weights_kind(weights, device)

    def reference_forward(
        self, x: Tensor, weights: Tensor | Sequence[float | Tensor], active: Sequence[int] | None = None
    ) -> Tensor:
        """Compute the same with the plain modules, as the original code does; arguments are not checked."""
        columns = range(len(self._ops)) if active is None else active
        scalars = list(weights)  # unbinds a tensor in one operation instead of one for each column
        terms = [scalars[column] * self._ops[column](x) for column in columns]
        if not terms:
            return x.new_zeros(x.shape[:2] + tuple(-(-size // self.stride) for size in x.shape[2:]))
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total


def op_weights_row(weights: Tensor | Sequence[float | Tensor], x: Tensor) -> Tensor:
    """Return op weights, given as a tensor or as a list of scalars, as a floating-point matrix [1, ops]."""
    if not isinstance(weights, Tensor):
        dtype = torch.promote_types(x.dtype, torch.float32)  # for weights that are Python numbers
        weights = torch.stack(
            [w if isinstance(w, Tensor) else torch.tensor(w, dtype=dtype, device=x.device) for w in weights]
        )
    return (weights if weights.is_floating_point() else weights.to(x.dtype)).reshape(1, -1)


def check_active(active: Active, ops: Sequence[int]) -> None:
    """Raise a ValueError unless `active` holds, for each edge e, distinct columns below ops[e]."""
    if len(active) != len(ops):
        raise ValueError(f"active must hold the columns of each of the {len(ops)} edges; got {len(active)} lists")
    for edge, (columns, count) in enumerate(zip(active, ops, strict=True)):
        if len(set(columns)) != len(columns) or any(not 0 <= column < count for column in columns):
            raise ValueError(f"active[{edge}] must be distinct columns below {count}; got {list(columns)}")


def check_input(x: Tensor, C: int, name: str = "x") -> None:
    """Raise a TypeError or ValueError unless x, called `name`, is a non-empty floating-point tensor [N, C, H, W]."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} must be a floating-point tensor; got {kind}")
    if x.dim() != 4 or x.shape[1] != C or 0 in x.shape:
        raise ValueError(f"{name} must be a non-empty [N, {C}, H, W]; got {tuple(x.shape)}")


def check_weights_kind(weights: Tensor, device: torch.device) -> None:
    """Raise a TypeError unless the op weights are real numbers on `device`, that of x."""
    if weights.device != device:
        raise TypeError(f"weights must be on x's device, {device}; got {weights.device}")
    if weights.is_complex():
        raise TypeError(f"weights must be real numbers; got {weights.dtype}")
