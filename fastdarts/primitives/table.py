"""List the candidate operations of a cell in one table, which the plain modules and the fused kernels both read."""

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
"""make(C, stride, affine) -> the module of a user-defined op."""


@dataclass(frozen=True)
class Candidate:
    """Describe one primitive, which maps C channels to C channels at stride 1 or 2.

    Attributes:
        name: its name in genotypes.
        kind: its family, which determines its module and its kernel.
        stages: its computation inside a mixed edge; empty for a user-defined op. In a discrete network pools have no
            batch norm, and the other ops' batch norms have scales and shifts.
        at_stride_2: its stages at stride 2 if they differ.
        make: builds the module of a user-defined op.
        learns: True if it has weights at stride 1.
    """

    name: str
    kind: Kind
    stages: tuple[Stage, ...] = ()
    at_stride_2: tuple[Stage, ...] | None = None
    make: Make | None = None

    def stages_at(self, stride: int) -> tuple[Stage, ...]:
        """Return the stages at `stride`."""
        return self.at_stride_2 if stride == 2 and self.at_stride_2 is not None else self.stages

    @property
    def window(self) -> Stage:
        """Return the first stage that reads a window; for ops without one, a stage that reads one pixel."""
        return next((stage for stage in self.stages if stage.kind not in ("relu", "norm")), RELU)

    @property
    def kernel(self) -> int:
        """Return the longer side of the window."""
        return max(self.window.kernel)

    @property
    def dilation(self) -> int:
        """Return the dilation of the window."""
        return self.window.dilation

    @property
    def norm(self) -> bool:
        """Return False for a pool without batch norm, else True."""
        return not self.is_pool or self.stages[-1].kind == "norm"

    @property
    def learns(self) -> bool:
        """Return True if the op has weights at stride 1, as pools and skip connections do not."""
        return self.kind == "own" or any(stage.weights for stage in self.stages)

    @property
    def is_pool(self) -> bool:
        """Return True for max and average pooling."""
        return self.kind in ("max_pool", "avg_pool")

    @property
    def padding(self) -> int:
        """Return the zero padding that keeps the image size at stride 1."""
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
"""The paper's eight primitives, in the order of the columns of alpha (Liu et al., ICLR 2019, section 3.1)."""


EdgeOps = tuple[tuple[str, ...], ...]
"""The names of each edge's candidate ops."""


def candidate(name: str) -> Candidate:
    """Return the table's row for `name`; raise a ValueError that lists the known names if it is unknown."""
    if name not in CANDIDATES:
        raise ValueError(
            f"unknown primitive {name!r}; allowed are {', '.join(CANDIDATES)}. An op of your own must be registered "
            "first (fastdarts.register_primitive; on the command line --plugin MODULE)"
        )
    return CANDIDATES[name]


def check_primitives(primitives: Sequence[str], repeats: bool = False) -> tuple[str, ...]:
    """Return `primitives` as a tuple; raise a ValueError if it is empty, has unknown names, or repeats one without
    `repeats`."""
    names = tuple(primitives)
    if isinstance(primitives, str) or not names:
        raise ValueError(f"primitives must be a non-empty sequence of names; got {primitives!r}")
    for name in names:
        candidate(name)
    if len(set(names)) != len(names) and not repeats:
        raise ValueError(f"primitives must not repeat a name; got {list(names)}")
    return names


def per_edge(primitives: Sequence[str] | Sequence[Sequence[str]], edges: int) -> EdgeOps:
    """Return the op names of each of `edges` edges, given one list for all edges or a list per edge.

    Raises:
        ValueError: unknown names, a wrong number of lists, or lists of different lengths.
    """
    if isinstance(primitives, str) or not primitives or isinstance(primitives[0], str):
        return (check_primitives(primitives, repeats=True),) * edges  # type: ignore[arg-type]
    if len(primitives) != edges:
        raise ValueError(f"primitives must hold the names of each of the {edges} edges; got {len(primitives)} lists")
    lists = tuple(check_primitives(names, repeats=True) for names in primitives)
    counts = {len(names) for names in lists}
    if len(counts) > 1:
        raise ValueError(f"primitives must hold equally many names for each edge; got {sorted(counts)}")
    return lists
