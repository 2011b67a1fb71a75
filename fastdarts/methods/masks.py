"""Mask candidate ops: permanently by pruning, or for one forward pass by grouped dropout."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fastdarts.spaces.group import Group
from fastdarts.spaces.supernet import Supernet

MASKED = -1e4
"""Alpha of a masked op: its softmax and sigmoid are exactly 0, while -inf would produce NaN gradients."""


def prune(
    kept: Mapping[str, Tensor] | None, scores: Mapping[str, Tensor], groups: Mapping[str, Group], limit: float
) -> dict[str, Tensor]:
    """Return the candidates that stay when those that score below `limit` are removed.

    A row always keeps its best op other than `none`.

    Args:
        kept: candidates that earlier epochs have kept, booleans [rows, ops] of each group; None means all.
        scores: [rows, ops] of each group.
        groups: the groups, which hold the names of the ops.
        limit: smallest score of a candidate that stays.
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


class GroupDropout:
    """Drop random ops of each edge, with the ops with weights and those without as separate groups (DropNAS).

    Every op is dropped with probability rate^(1 / size of its group); sampling repeats until each group has a survivor.
    An alpha step does not change the alphas of dropped ops. If ops compete, it also shifts the survivors' alphas
    together so that their total share of the full softmax is unchanged: the dropped ops neither gain nor lose.

    Args:
        rate: probability that one sample drops all ops of a group.
        generator: generator of the samples.
        competes: True if op weights are a softmax of alphas.
    """

    def __init__(self, rate: float, generator: torch.Generator, competes: bool) -> None:
        self.rate = rate
        self.generator = generator
        self.competes = competes
        self._survivors: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}

    def survivors(self, group_name: str, rows: Group, kept: Tensor | None) -> Tensor:
        """Sample the ops that run in one pass among those that are `kept`; return booleans [rows, ops]."""
        left = torch.ones(rows.shape, dtype=torch.bool) if kept is None else kept.clone()
        for edge, row in enumerate(rows.ops):
            with_weights = torch.tensor([rows.learns(name) for name in row])
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
        """Save the alphas before the step."""
        self._before = {group: alpha.clone() for group, alpha in network.alphas.items()}

    @torch.no_grad()
    def after_alpha_step(self, network: Supernet) -> None:
        """Restore the alphas of ops dropped in the step's last pass; keep the survivors' total share if ops compete."""
        for group, alpha in network.alphas.items():
            before, stays = self._before[group], self._survivors[group].to(alpha.device)
            if self.competes:
                then, now = (a.masked_fill(~stays, -math.inf).logsumexp(1, keepdim=True) for a in (before, alpha))
                alpha += torch.where(stays.all(1, keepdim=True), 0.0, then - now)  # no shift if no op was dropped
            alpha.copy_(torch.where(stays, alpha, before))
