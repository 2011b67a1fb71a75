"""Which candidates take part: pruning for good, and dropout by groups for one pass."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastdarts.primitives.table import EdgeOps, candidate
from fastdarts.spaces.darts.supernet import SearchNetwork

MASKED = -1e4
"""The alpha of an op that is left out: softmax and sigmoid make exactly 0 of it; -inf would make NaN in gradients."""

_WITH_WEIGHTS = ("sep_conv", "dil_conv", "factored_conv")


def prune(
    kept: list[Tensor] | None, scores: Sequence[Tensor], candidates: Sequence[EdgeOps], limit: float
) -> list[Tensor]:
    """Candidates that stay when those that score less than `limit` go; each edge keeps its best one but `none`.

    Args:
        kept: of the epochs before, booleans [edges, ops] of both cell types; None: all.
        scores: [edges, ops] of both cell types.
    """
    left = []
    for cell, (score, names) in enumerate(zip(scores, candidates, strict=True)):
        stays = score >= limit
        for edge, row in enumerate(names):
            known = [c for c, name in enumerate(row) if name != "none"]
            if known:
                stays[edge, max(known, key=score[edge].tolist().__getitem__)] = True
        left.append(stays if kept is None else stays & kept[cell])
    return left


def has_weights(name: str) -> bool:
    """Whether a primitive belongs to those that learn: the convolutions (a skip connection of stride 2 does not)."""
    return candidate(name).kind in _WITH_WEIGHTS


class GroupDropout:
    """Drops ops of each edge at random, those with weights and those without as groups of their own (DropNAS).

    Every op is dropped with probability rate^(1 / size of its group), drawn anew until each group has a survivor. An
    alpha step leaves the dropped ops' alphas as they were, and where ops compete, moves those of the survivors together
    so that their share of the full softmax is what it was: the dropped ops neither gain nor lose.

    Args:
        rate: probability that all of a group would be dropped.
        generator: of the draws.
        competes: op weights are a softmax of alphas.
    """

    def __init__(self, rate: float, generator: torch.Generator, competes: bool) -> None:
        self.rate = rate
        self.generator = generator
        self.competes = competes
        self._survivors: dict[int, Tensor] = {}
        self._before: list[Tensor] = []

    def survivors(self, cell: int, names: EdgeOps, kept: Tensor | None) -> Tensor:
        """Booleans [edges, ops] for one pass, out of those that are `kept`."""
        left = torch.ones(len(names), len(names[0]), dtype=torch.bool) if kept is None else kept.clone()
        for edge, row in enumerate(names):
            with_weights = torch.tensor([has_weights(name) for name in row])
            for group in (left[edge] & with_weights, left[edge] & ~with_weights):
                members = group.nonzero().flatten()
                if len(members):
                    left[edge, members] = self._draw(len(members))
        self._survivors[cell] = left
        return left

    def _draw(self, size: int) -> Tensor:
        while True:
            stays = torch.rand(size, generator=self.generator) >= self.rate ** (1 / size)
            if stays.any():
                return stays

    @torch.no_grad()
    def before_alpha_step(self, network: SearchNetwork) -> None:
        """Remember the alphas."""
        self._before = [alpha.clone() for alpha in network.alphas]

    @torch.no_grad()
    def after_alpha_step(self, network: SearchNetwork) -> None:
        """Put back the alphas of those that the step's last pass went without; the others keep their share together."""
        for cell, (alpha, before) in enumerate(zip(network.alphas, self._before, strict=True)):
            stays = self._survivors[cell].to(alpha.device)
            if self.competes:
                then, now = (a.masked_fill(~stays, -math.inf).logsumexp(1, keepdim=True) for a in (before, alpha))
                alpha += torch.where(stays.all(1, keepdim=True), 0.0, then - now)  # none was dropped
            alpha.copy_(torch.where(stays, alpha, before))
