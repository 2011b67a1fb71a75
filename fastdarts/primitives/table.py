"""The candidate operations of a cell, as one table that the plain modules and the fused kernels both read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from fastdarts.primitives.stages import NORM, RELU, Stage, separable, square

Kind = Literal[
    "none",
    "max_pool",
    "avg_pool",
    "skip",
    "sep_conv",
    "dil_conv",
    "pointwise",
    "dense_conv",
    "factored_conv",
    "noise",
    "own",
]

Make = Callable[[int, int, bool], nn.Module]
"""make(C, stride, affine) -> a user's own op."""


@dataclass(frozen=True)
class Candidate:
    """One primitive. It maps C channels to C channels, at stride 1 or 2.

    Attributes:
        name: as in genotypes.
        kind: its family, which decides its module and its kernel.
        stages: what it computes inside a mixed edge; empty for a user's own op. In a discrete network pools have no
            batch norm, and the others' have scale and shift.
        at_stride_2: its stages at stride 2 where these differ.
        make: makes a user's own op.
        learns: it has weights at stride 1.
    """

    name: str
    kind: Kind
    stages: tuple[Stage, ...] = ()
    at_stride_2: tuple[Stage, ...] | None = None
    make: Make | None = None

    def stages_at(self, stride: int) -> tuple[Stage, ...]:
        """Return the stages at a stride."""
        return self.at_stride_2 if stride == 2 and self.at_stride_2 is not None else self.stages

    @property
    def window(self) -> Stage:
        """Return the stage with the first window; of ops without one a stage of one pixel."""
        return next((stage for stage in self.stages if stage.kind not in ("relu", "norm")), RELU)

    @property
    def kernel(self) -> int:
        """Return the side of the window."""
        return max(self.window.kernel)

    @property
    def dilation(self) -> int:
        """Return the distance of the window's taps."""
        return self.window.dilation

    @property
    def norm(self) -> bool:
        """Return False for a pool without batch norm."""
        return not self.is_pool or self.stages[-1].kind == "norm"

    @property
    def learns(self) -> bool:
        """Return True if the op has weights at stride 1: unlike a pool, or a skip connection."""
        return self.kind == "own" or any(stage.weights for stage in self.stages)

    @property
    def is_pool(self) -> bool:
        """Return True for max and average pooling."""
        return self.kind in ("max_pool", "avg_pool")

    @property
    def padding(self) -> int:
        """Return the zero padding that keeps the size at stride 1."""
        return self.dilation * (self.kernel - 1) // 2


def _table(*rows: Candidate) -> dict[str, Candidate]:
    return {row.name: row for row in rows}


CANDIDATES: dict[str, Candidate] = _table(
    Candidate("none", "none", (Stage("zero", strided=True),)),
    Candidate("max_pool_3x3", "max_pool", (square("max_pool", 3, strided=True), NORM)),
    Candidate("avg_pool_3x3", "avg_pool", (square("avg_pool", 3, strided=True), NORM)),
    Candidate("skip_connect", "skip", (), (RELU, Stage("factorized_reduction", strided=True), NORM)),
    Candidate("sep_conv_3x3", "sep_conv", separable(3, strided=True) + separable(3)),
    Candidate("sep_conv_5x5", "sep_conv", separable(5, strided=True) + separable(5)),
    Candidate("sep_conv_7x7", "sep_conv", separable(7, strided=True) + separable(7)),
    Candidate("dil_conv_3x3", "dil_conv", separable(3, 2, strided=True)),
    Candidate("dil_conv_5x5", "dil_conv", separable(5, 2, strided=True)),
    Candidate("nor_conv_1x1", "pointwise", (RELU, Stage("pointwise", strided=True), NORM)),
    Candidate("nor_conv_3x3", "dense_conv", (RELU, square("convolution", 3, strided=True), NORM)),
    Candidate("bare_max_pool_3x3", "max_pool", (square("max_pool", 3, strided=True),)),
    Candidate("bare_avg_pool_3x3", "avg_pool", (square("avg_pool", 3, strided=True),)),
    Candidate(
        "conv_7x1_1x7",
        "factored_conv",
        (RELU, Stage("convolution", (1, 7), strided=True), Stage("convolution", (7, 1), strided=True), NORM),
    ),
    Candidate("noise", "noise", (Stage("noise", strided=True),)),
)
"""All primitives by name; `register_primitive` adds to it."""

PRIMITIVES: tuple[str, ...] = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
"""The paper's eight, in the order of the columns of alpha (Liu et al., ICLR 2019, section 3.1)."""


EdgeOps = tuple[tuple[str, ...], ...]
"""The names of each edge's candidate ops."""


def candidate(name: str) -> Candidate:
    """Return the table's row for `name`; ValueError names what is allowed."""
    if name not in CANDIDATES:
        raise ValueError(
            f"unknown primitive {name!r}; allowed are {', '.join(CANDIDATES)}. An op of your own must be registered "
            "first (fastdarts.register_primitive; on the command line --plugin MODULE)"
        )
    return CANDIDATES[name]


def check_primitives(primitives: Sequence[str], repeats: bool = False) -> tuple[str, ...]:
    """`primitives` as a tuple: known names, at least one, none twice unless `repeats`; ValueError otherwise."""
    names = tuple(primitives)
    if isinstance(primitives, str) or not names:
        raise ValueError(f"primitives must be a non-empty sequence of names; got {primitives!r}")
    for name in names:
        candidate(name)
    if len(set(names)) != len(names) and not repeats:
        raise ValueError(f"primitives must not repeat a name; got {list(names)}")
    return names


def per_edge(primitives: Sequence[str] | Sequence[Sequence[str]], edges: int) -> EdgeOps:
    """The names of each edge's ops, checked: known, one list an edge, all of one length; ValueError otherwise."""
    if isinstance(primitives, str) or not primitives or isinstance(primitives[0], str):
        return (check_primitives(primitives, repeats=True),) * edges  # type: ignore[arg-type]
    if len(primitives) != edges:
        raise ValueError(f"primitives must hold the names of each of the {edges} edges; got {len(primitives)} lists")
    lists = tuple(check_primitives(names, repeats=True) for names in primitives)
    counts = {len(names) for names in lists}
    if len(counts) > 1:
        raise ValueError(f"primitives must hold equally many names for each edge; got {sorted(counts)}")
    return lists
