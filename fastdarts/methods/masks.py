"""Which candidates take part: pruning for good, and dropout by groups for one pass."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fastdarts.primitives.table import EdgeOps, candidate
from fastdarts.spaces.group import Group
from fastdarts.spaces.supernet import Supernet

MASKED = -1e4
"""The alpha of an op that is left out: softmax and sigmoid make exactly 0 of it; -inf would make NaN in gradients."""


def prune(
    kept: Mapping[str, Tensor] | None, scores: Mapping[str, Tensor], groups: Mapping[str, Group], limit: float
) -> dict[str, Tensor]:
    """Return the candidates that stay when those that score less than `limit` go; a row keeps its best but `none`.

    Args:
        kept: of the epochs before, booleans [rows, ops] of each group; None: all.
        scores: [rows, ops] of each group.
        groups: the names of the ops.
        limit: smallest score that stays.
    """
    left = {}
    for name, score in scores.items():
        stays = score >= limit
        for edge, row in enumerate(groups[name].ops):
            known = [c for c, op in enumerate(row) if op != "none"]
            if known:
                stays[edge, max(known, key=score[edge].tolist().__getitem__)] = True
        left[name] = stays if kept is None else stays & kept[name]
    return left


def has_weights(name: str) -> bool:
    """Return True if a primitive learns: convolutions and a user's own ops, but no skip connection of stride 2."""
    return candidate(name).learns


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
        self._survivors: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}

    def survivors(self, group_name: str, names: EdgeOps, kept: Tensor | None) -> Tensor:
        """Booleans [edges, ops] for one pass, out of those that are `kept`."""
        left = torch.ones(len(names), len(names[0]), dtype=torch.bool) if kept is None else kept.clone()
        for edge, row in enumerate(names):
            with_weights = torch.tensor([has_weights(name) for name in row])
            for group in (left[edge] & with_weights, left[edge] & ~with_weights):
                members = group.nonzero().flatten()
                if len(members):
                    left[edge, members] = self._draw(len(members))
        self._survivors[group_name] = left
        return left

    def _draw(self, size: int) -> Tensor:
        while True:
            stays = torch.rand(size, generator=self.generator) >= self.rate ** (1 / size)
            if stays.any():
                return stays

    @torch.no_grad()
    def before_alpha_step(self, network: Supernet) -> None:
        """Remember the alphas."""
        self._before = {group: alpha.clone() for group, alpha in network.alphas.items()}

    @torch.no_grad()
    def after_alpha_step(self, network: Supernet) -> None:
        """Put back the alphas of those that the step's last pass went without; the others keep their share together."""
        for group, alpha in network.alphas.items():
            before, stays = self._before[group], self._survivors[group].to(alpha.device)
            if self.competes:
                then, now = (a.masked_fill(~stays, -math.inf).logsumexp(1, keepdim=True) for a in (before, alpha))
                alpha += torch.where(stays.all(1, keepdim=True), 0.0, then - now)  # none was dropped
            alpha.copy_(torch.where(stays, alpha, before))
