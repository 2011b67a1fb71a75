"""Shares of ops in the nodes that they enter, and the removal of the weakest until a network is within its budget."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Place = tuple[int, int, int]
"""Cell, edge and op."""


def node_shares(alpha: Tensor, kept: Tensor, nodes: Sequence[slice]) -> Tensor:
    """Return each op's share of the sum of sigmoids of all kept ops that enter its node, in the shape of alpha.

    Args:
        alpha: [..., edges, ops].
        kept: booleans of the same shape; the others have share 0. Every node has one at least.
        nodes: the edges that enter each node.
    """
    strengths = logsigmoid(alpha).masked_fill(~kept, -torch.inf)  # logarithms: sigmoids of weak ops underflow together
    parts = [strengths[..., rows, :] for rows in nodes]
    return torch.cat([part.flatten(-2).softmax(-1).view(part.shape) for part in parts], dim=-2)


def living(kept: Tensor, nodes: Sequence[slice]) -> Tensor:
    """Return, for each op, the number of kept ops that enter its node, in the shape of `kept` [..., edges, ops]."""
    parts = [kept[..., rows, :] for rows in nodes]
    return torch.cat([part.sum((-2, -1), keepdim=True).expand(part.shape) for part in parts], dim=-2)


@dataclass(frozen=True)
class Budget:
    """Remove weak ops from a network of cells.

    Attributes:
        prices: [cells, edges, ops], the cost of each op; float64 on the CPU.
        fixed: cost of everything else.
        limit: largest cost that is wanted.
        nodes: the edges that enter each node of a cell.
    """

    prices: Tensor
    fixed: float
    limit: float
    nodes: Sequence[slice]

    def cost(self, kept: Tensor) -> float:
        """Return the cost of the network with the `kept` ops [cells, edges, ops]."""
        return self.fixed + float(self.prices[kept].sum())

    def lowest(self, kept: Tensor) -> float:
        """Return the cost of the network in which each node has the cheapest of its `kept` ops alone."""
        known = self.prices.masked_fill(~kept, torch.inf)
        return self.fixed + sum(float(known[:, rows].flatten(1).min(1).values.sum()) for rows in self.nodes)

    def prune(self, alpha: Tensor, kept: Tensor, dead: float, weak: float, most: int) -> Tensor:
        """Return what is left of `kept` [cells, edges, ops] after an epoch.

        All ops whose share of their node is at most `dead` go. Then the weakest of the network goes, up to `most`
        times, if its share is at most `weak` and the network is above the budget. An op stays if it is the last of its
        node, or if the others of its node are so expensive that no network within the budget would be left.
        """
        share = node_shares(alpha, kept, self.nodes)
        left = kept.clone()
        for place in _sorted(share, left & (share <= dead)):
            self._remove(left, place)
        for _ in range(most):
            if self.cost(left) <= self.limit:
                break
            share = node_shares(alpha, left, self.nodes)
            if not self._remove_weakest(left, share, left & (share <= weak)):
                break
        return left

    def cut(self, alpha: Tensor, kept: Tensor, cost: float) -> Tensor:
        """Return `kept` without the weakest of the ops that have a cost, so that the network costs `cost` at most.

        `cost` is the budget or more.
        """
        left = kept.clone()
        while self.cost(left) > cost:
            share = node_shares(alpha, left, self.nodes)
            if not self._remove_weakest(left, share, left & (self.prices > 0)):
                raise RuntimeError(f"no op can be removed from a network above {cost:.6g}")
        return left

    def _remove_weakest(self, left: Tensor, share: Tensor, among: Tensor) -> bool:
        return any(self._remove(left, place) for place in _sorted(share, among))

    def _remove(self, left: Tensor, place: Place) -> bool:
        """Remove an op if it may go; return True if it went."""
        cell, edge, _ = place
        rows = next(rows for rows in self.nodes if rows.start <= edge < rows.stop)
        if left[cell, rows].sum() == 1:
            return False
        left[place] = False
        if self.lowest(left) <= self.limit:
            return True
        left[place] = True
        return False


def _sorted(share: Tensor, among: Tensor) -> list[Place]:
    """Return the places that are True in `among`, those of the smallest share first."""
    places: list[Place] = [(cell, edge, op) for cell, edge, op in among.nonzero().tolist()]
    return sorted(places, key=lambda place: float(share[place]))
