"""P-DARTS: progressive DARTS (Chen et al., ICCV 2019, arXiv:1904.12760).

The search has three stages. Each builds a new, deeper network and has fewer candidates on each edge, because the
weakest are removed at the end of a stage. Dropout on skip connections, at a rate that falls during a stage, keeps
them from winning early.

Differences from the authors' code: the depth of a stage is a multiple of `--layers` (5, 11 and 17 cells for their 5);
the number of skip connections is one setting, `--max-skips`, 2 by default (theirs prints the cells for every number).
"""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from fastdarts.config.search_options import SearchOptions
from fastdarts.methods.method import Method, MethodOptions, Settings, check_warmup, hyper
from fastdarts.methods.running import RunningSearch
from fastdarts.methods.schedules import cosine
from fastdarts.primitives.table import EdgeOps
from fastdarts.spaces.group import Choice, Group
from fastdarts.spaces.space import Feature
from fastdarts.spaces.supernet import Supernet

STAGES = 3


@dataclass(frozen=True, kw_only=True)
class PDartsOptions(MethodOptions):
    """Define the hyper-parameters of P-DARTS, with a value for each stage; defaults are the authors'."""

    depth: tuple[float, float, float] = hyper("cells in each stage, as multiples of --layers", (1.0, 2.2, 3.4), above=0)
    dropped: tuple[int, int] | None = hyper(
        "ops removed from each edge after stages 1 and 2 (default: 3 and 2 of eight ops, in proportion of others)",
        None,
        at_least=0,
    )
    skip_dropout: tuple[float, float, float] = hyper(
        "dropout rate on skip connections in each stage", (0.1, 0.4, 0.7), at_least=0, below=1
    )


class PDarts(Method):
    """Search in stages of growing depth with fewer ops; --epochs is the total of all stages."""

    Options = PDartsOptions
    settings: ClassVar[Settings] = {"order": 1, "alpha_warmup": 0.4, "max_skips": 2}
    published: ClassVar[Settings] = {"epochs": 75, "batch_size": 96, "layers": 5, "lr_min": 0.0, "arch_lr": 6e-4}
    alpha_grad_clip = 5.0
    needs: ClassVar[frozenset[Feature]] = frozenset({"depth", "skip connections"})
    choice = Choice(last_wins=True)

    def __init__(self, config: SearchOptions) -> None:
        super().__init__(config)
        self.candidates: dict[str, EdgeOps] = {name: group.ops for name, group in self.space.groups.items()}

    @classmethod
    def check(cls, config: SearchOptions) -> None:
        super().check(config)
        if config.order == 2 and any(config.method_options["skip_dropout"]):
            raise ValueError(
                "skip_dropout has no second order: its difference needs passes that drop the same elements"
            )
        if config.epochs % STAGES:
            raise ValueError(f"epochs must be a multiple of the method's {STAGES} stages; got {config.epochs}")
        check_warmup(config, config.epochs // STAGES, "epochs of a stage")
        ops, dropped = _fewest_ops(cls.space_of(config).groups), config.method_options["dropped"]
        if dropped is not None and sum(dropped) > ops - 2:
            raise ValueError(
                f"dropped must leave two of the {ops} ops on an edge of space {config.space!r}; got {dropped}"
            )
        if config.prune_below:
            raise ValueError(
                "prune_below cannot be used: the stages already remove weak ops, equally many on each edge"
            )

    def stage(self) -> int:
        return min(self.epoch // self._length(), STAGES - 1)

    def _length(self) -> int:
        return self.config.epochs // STAGES

    def _dropped(self) -> tuple[int, int]:
        """Return how many ops an edge loses after stages 1 and 2."""
        given: tuple[int, int] | None = self.options.dropped
        if given is not None:
            return given
        ops = _fewest_ops(self.space.groups)
        second, third = (max(round(ops * kept / 8), min(ops, 2)) for kept in (5, 3))
        return ops - second, second - third

    def _epoch_of_stage(self) -> int:
        return self.epoch - self.stage() * self._length()

    def alphas_move(self) -> bool:
        return self._epoch_of_stage() >= self._first_of_alphas()

    def _first_of_alphas(self) -> int:
        return round(self.config.alpha_warmup * self._length())

    def learning_rate(self) -> float:
        return cosine(self.config.lr, self.config.lr_min, self._epoch_of_stage(), self._length())

    def network_arguments(self) -> dict[str, Any]:
        layers = max(round(self.options.depth[self.stage()] * self.config.layers), 1)
        return {**super().network_arguments(), "layers": layers, "candidates": self.candidates}

    def attach(self, network: Supernet) -> None:
        super().attach(network)
        if not self.options.skip_dropout[self.stage()]:
            return
        for name, group in network.groups.items():
            for edge in (edge for edges in network.mixed_ops(name) for edge in edges):
                candidates = edge.primitives[: group.shape[1]]
                if edge.stride == 1 and "skip_connect" in candidates:
                    edge._ops[candidates.index("skip_connect")] = DroppedSkip(self)

    def skip_dropout(self) -> float:
        """Return the dropout rate on skip connections in this epoch.

        Within a stage it falls linearly during the alphas' warmup, then starts again and falls exponentially. The
        authors' stages have 25 epochs, 10 of them warmup; the schedule is stretched to other lengths.
        """
        rate, length, epoch = self.options.skip_dropout[self.stage()], self._length(), self._epoch_of_stage()
        if not self.alphas_move():
            return float(rate * (length - epoch - 1) / length)
        return float(rate * math.exp(-5 * (epoch - self._first_of_alphas()) / length))

    def graph_key(self) -> Hashable:
        return super().graph_key(), self.skip_dropout() > 0

    def end_epoch(self, state: RunningSearch, metrics: dict[str, Any]) -> None:
        super().end_epoch(state, metrics)
        if self._epoch_of_stage() == self._length() - 1 and self.stage() < STAGES - 1:
            count = self._dropped()[self.stage()]
            scores = self.scores(state.network)
            self.candidates = {name: without_weakest(scores[name], ops, count) for name, ops in self.candidates.items()}

    def metrics(self, network: Supernet) -> dict[str, Any]:
        ops = _fewest_ops(network.groups)
        cells = sum(len(network.mixed_ops(group)) for group in network.groups)
        own = {"stage": self.stage() + 1, "cells": cells, "ops_an_edge": ops}
        return super().metrics(network) | own | {"skip_dropout": self.skip_dropout()}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"candidates": self.candidates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.candidates = state["candidates"]


class DroppedSkip(nn.Module):
    """Apply dropout of single elements in train mode, at the method's current rate; return the input in eval mode."""

    def __init__(self, method: PDarts) -> None:
        super().__init__()
        self.method = method

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.method.skip_dropout() == 0:
            return x
        return x * self.method.survivors(x, x.shape, self.method.skip_dropout)


def _fewest_ops(groups: Mapping[str, Group]) -> int:
    """Return the smallest number of candidates that an edge of any group has."""
    return min(group.shape[1] for group in groups.values())


def without_weakest(scores: Tensor, names: EdgeOps, count: int) -> EdgeOps:
    """Return each edge's candidates without the `count` with the lowest scores.

    Args:
        scores: [edges, ops]; of equal scores the first column is removed first.
        names: names of the candidates, `none` included, which may be removed like any other.
        count: number of candidates to remove from each edge.
    """
    left = []
    for row, ops in zip(scores.tolist(), names, strict=True):
        weakest = sorted(range(len(ops)), key=row.__getitem__)[:count]
        left.append(tuple(name for column, name in enumerate(ops) if column not in weakest))
    return tuple(left)
