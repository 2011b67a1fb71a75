"""Describe how the edges of a cell mix their ops in a forward pass."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

Active = Sequence[Sequence[int]]
"""For each edge, the columns of the ops that run; ops that are left out cost nothing and get no gradient."""

DropPath = Callable[[Tensor], Tensor]
"""Returns factors [N] for the samples of an edge's output [N, C, H, W]: 0 for those that the edge drops, else
1 / (1 - p) with p the probability of dropping one (RobustDARTS, Zela et al., ICLR 2020)."""


class Mix(NamedTuple):
    """Hold the op weights of a group of edges, and what else an edge does."""

    weights: Tensor
    """[edges, ops]: the op weights, whatever relaxation made them."""
    active: Active | None = None
    """The ops that run on each edge; None runs all."""
    passing: Tensor | None = None
    """[edges]: with partial channels, the weight of the channels that bypass the ops (PC-DARTS)."""
    added: Tensor | None = None
    """[edges]: a number that an edge adds to all values of its target; it only carries a gradient (GDAS)."""
    drop_path: DropPath | None = None
    probed: Active | None = None
    """Ops of weight 0 whose weights get a gradient all the same: they run without a graph, in the backward pass
    (ProxylessNAS); only in spaces with the feature "probed ops"."""
    by_cell: Sequence[Tensor] | None = None
    """[edges, ops] of each cell of the group, in place of `weights`; only in spaces with the feature "weights by
    cell"."""

    def of_cell(self, index: int) -> "Mix":
        """Return the mix of a cell, given its place among the cells of the group."""
        return self if self.by_cell is None else self._replace(weights=self.by_cell[index], by_cell=None)
