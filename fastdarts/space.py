"""The candidate operations of a cell, as one table that the plain modules and the fused kernels both read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "none", "max_pool", "avg_pool", "skip", "sep_conv", "dil_conv", "pointwise", "dense_conv", "factored_conv", "noise"
]


@dataclass(frozen=True)
class Candidate:
    """One primitive: what it is and its geometry. Every primitive maps C channels to C channels."""

    name: str
    kind: Kind
    kernel: int = 1
    dilation: int = 1
    norm: bool = True
    """The op ends in a batch norm (of pools: in a search network only)."""

    @property
    def is_pool(self) -> bool:
        return self.kind in ("max_pool", "avg_pool")

    @property
    def padding(self) -> int:
        """Zero padding that keeps the size at stride 1."""
        return self.dilation * (self.kernel - 1) // 2


CANDIDATES: dict[str, Candidate] = {
    candidate.name: candidate
    for candidate in (
        Candidate("none", "none"),
        Candidate("max_pool_3x3", "max_pool", 3),
        Candidate("avg_pool_3x3", "avg_pool", 3),
        Candidate("skip_connect", "skip"),
        Candidate("sep_conv_3x3", "sep_conv", 3),
        Candidate("sep_conv_5x5", "sep_conv", 5),
        Candidate("sep_conv_7x7", "sep_conv", 7),
        Candidate("dil_conv_3x3", "dil_conv", 3, 2),
        Candidate("dil_conv_5x5", "dil_conv", 5, 2),
        Candidate("nor_conv_1x1", "pointwise", 1),
        Candidate("nor_conv_3x3", "dense_conv", 3),
        Candidate("bare_max_pool_3x3", "max_pool", 3, norm=False),
        Candidate("bare_avg_pool_3x3", "avg_pool", 3, norm=False),
        Candidate("conv_7x1_1x7", "factored_conv", 7),
        Candidate("noise", "noise"),
    )
}

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
    """The table's row for `name`; ValueError names what is allowed."""
    if name not in CANDIDATES:
        raise ValueError(f"unknown primitive {name!r}; allowed are {', '.join(CANDIDATES)}")
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
