"""Groups of rows of named choices: the part of a search space that a search method sees."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fastdarts.primitives.table import EdgeOps, candidate


@dataclass(frozen=True)
class Group:
    """Rows of choices that share one matrix of alphas: the edges of a type of cell, or the layers of a network.

    Attributes:
        title: the group's name in reports and messages, e.g. "normal cell".
        ops: the names of each row's candidate ops, equally many a row: the columns of alpha.
        ends: for rows that are edges of a cell, the (source state, target state) of each; empty otherwise.
        learning: names of the ops that compete as those with weights do in a cell of convolutions; None asks the table
            of primitives.
        whole: True if an architecture has an op on every edge, however many edges a node may keep elsewhere.
    """

    title: str
    ops: EdgeOps
    ends: tuple[tuple[int, int], ...] = ()
    learning: frozenset[str] | None = None
    whole: bool = False

    def learns(self, name: str) -> bool:
        """Return True if the op has weights to learn, or counts as one that has."""
        return candidate(name).learns if self.learning is None else name in self.learning

    @property
    def shape(self) -> tuple[int, int]:
        """Return the shape [rows, ops] of the group's alphas."""
        return len(self.ops), len(self.ops[0])

    def entering(self) -> list[slice]:
        """Return the rows of the edges that enter each node."""
        slices = []
        for target in dict.fromkeys(target for _, target in self.ends):
            rows = [row for row, (_, to) in enumerate(self.ends) if to == target]
            slices.append(slice(rows[0], rows[-1] + 1))
        return slices

    def kept_edges(self, per_node: int | None) -> list[tuple[slice, int]]:
        """Return the rows of the edges that enter each node, and how many of these an architecture keeps.

        Args:
            per_node: largest number of edges that a node keeps, where the space lets it drop some; None for no limit.
        """
        limit = len(self.ops) if per_node is None or self.whole else per_node
        return [(rows, min(limit, rows.stop - rows.start)) for rows in self.entering()]


@dataclass(frozen=True)
class Choice:
    """Rules by which a method derives an architecture from scores of ops; a space applies what has a meaning in it.

    Attributes:
        ops_per_edge: an edge keeps at most so many of its strongest ops.
        edges_per_node: a node keeps so many of its strongest edges; None keeps all.
        threshold: ops with a lower score are dropped.
        none_wins: an edge whose strongest op is `none` is dropped; otherwise `none` does not compete.
        last_wins: of edges with equal scores the last one is kept, and kept edges stay in the order of their sources.
        max_skips: largest number of skip connections (in DARTS' space, of the normal cell); those of the lowest scores
            go first. None allows any.
        ranking: ranking(group, scores [rows, ops]) -> the numbers by which ops and edges of that group are compared;
            None compares scores. A space asks `ranked`.
    """

    ops_per_edge: int = 1
    edges_per_node: int | None = 2
    threshold: float | None = None
    none_wins: bool = False
    last_wins: bool = False
    max_skips: int | None = None
    ranking: Callable[[str, Tensor], Tensor] | None = None

    def ranked(self, group: str, scores: Tensor) -> Tensor:
        """Return the numbers by which ops and edges of a group are compared, from its scores."""
        return scores if self.ranking is None else self.ranking(group, scores)
