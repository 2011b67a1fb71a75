"""FairNAS: every op of every row trains equally often (Chu et al., ICCV 2021, arXiv:1907.01845).

Strict fairness: for each row a step draws a permutation of its m ops; model t of m takes the t-th entry of each. All m
models compute a gradient on the same batch, one step applies their sum. At the end architectures are ranked by the
accuracy of the shared weights, with batch norms recomputed for each, and by cost: NSGA-II, or one of the samplers of
random search.

Differences from the paper: no code of its search is public. Where rows have different numbers of ops, m is the largest,
and the shorter rows go on through permutations from step to step, so that counts of a row's ops differ by one at most.
In cells all edges run, each with one op, and derived cells keep two edges a node.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastdarts.bilevel.step import SearchStep, TrainPass
from fastdarts.config.search_options import SearchOptions
from fastdarts.methods.method import Settings, hyper
from fastdarts.methods.one_shot import OneShot, OneShotOptions, Sampler, summed
from fastdarts.mixed.mix import Mix
from fastdarts.spaces.supernet import Supernet
from fastdarts.tasks.task import Batch


@dataclass(frozen=True, kw_only=True)
class FairNASOptions(OneShotOptions):
    """Define the hyper-parameters of FairNAS."""

    sampler: Sampler = hyper("as of random search", "auto")
    recalibrate: int = hyper(
        "training batches over which the batch norms of each architecture are averaged (0: leave them)", 4, at_least=0
    )


class FairNAS(OneShot):
    """Sum the gradients of m models that together use each op once."""

    Options = FairNASOptions
    settings: ClassVar[Settings] = {"order": 1, "cost": "flops"}
    published: ClassVar[Settings] = {"epochs": 150, "lr": 0.045, "lr_min": 0.0, "weight_decay": 4e-5}

    def __init__(self, config: SearchOptions) -> None:
        super().__init__(config)
        self.passes = 1
        """Number of models of a step: the ops of the longest row."""
        self._ahead: dict[str, list[list[int]]] = {}

    def attach(self, network: Supernet) -> None:
        super().attach(network)
        self.passes = max(group.shape[1] for group in network.groups.values())

    def weight_gradients(self, step: SearchStep, train: Batch) -> TrainPass:
        return summed([step.train_pass(train) for _ in range(self.passes)])

    def relax(self, network: Supernet, group: str, alpha: Tensor) -> Mix:
        if not network.training:
            return super().relax(network, group, alpha)
        rows, ops = alpha.shape
        ahead = self._ahead.setdefault(group, [[] for _ in range(rows)])
        for row in ahead:
            if not row:
                row += torch.randperm(ops, generator=self.generator).tolist()
        columns = [row.pop() for row in ahead]
        weights = nn.functional.one_hot(torch.tensor(columns), ops).to(alpha)
        return Mix(weights, [[column] for column in columns])

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "ahead": {name: [list(row) for row in rows] for name, rows in self._ahead.items()}
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._ahead = {name: [list(row) for row in rows] for name, rows in state["ahead"].items()}
