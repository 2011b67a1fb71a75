"""DARTS-PT: selection by perturbation (Wang et al., ICLR 2021, arXiv:2108.04392), on a search network of any method.

The value of an op is how much the search network loses without it, not its op weight. One edge after another, in random
order, keeps the op whose removal lowers the validation accuracy most; then nodes with more than two edges lose those
whose removal lowers it least. In between, weights and alphas are trained on.

The network runs with the op weights of the method that trained it; if that method draws them, with the softmax of its
alphas. A removed op has weight 0, and the others keep theirs.

Differences from the authors' code: `none` does not compete where a derived cell never contains it; projections are
spread evenly over the epochs, the first at the end of the first epoch and the last at the end of the last, so that no
training is in vain; edges are drawn by torch's generator.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fastdarts.config.search_options import SearchOptions
from fastdarts.methods import find
from fastdarts.methods.method import Method, MethodOptions, Settings, hyper
from fastdarts.methods.running import RunningSearch
from fastdarts.mixed.mix import Mix
from fastdarts.spaces.group import Group
from fastdarts.spaces.supernet import Mixes, Supernet


@dataclass(frozen=True, kw_only=True)
class SelectOptions(MethodOptions):
    """Define the options of the selection; defaults are the authors' for DARTS' space."""

    epochs: int | None = hyper(
        "epochs of training in which ops and edges are chosen (default: 161; digits: 17)", None, at_least=1
    )
    criterion: Literal["accuracy", "loss"] = hyper("what is measured on the validation images", "accuracy")
    statistics: Literal["batch", "running"] = hyper("batch norm's statistics while it is measured", "batch")
    batches: int | None = hyper("validation batches on which it is measured (default: all)", None, at_least=1)


@dataclass(frozen=True, kw_only=True)
class DartsPtOptions(SelectOptions):
    """Define the options of the selection and the search whose network it takes."""

    search: str = hyper("the config of that search, as JSON", "{}")


class DartsPt(Method):
    """Choose ops and edges by what their removal costs, in the network that `take_over` is told of."""

    Options = DartsPtOptions
    settings: ClassVar[Settings] = {"order": 1}
    sparse = True

    def __init__(self, config: SearchOptions) -> None:
        super().__init__(config)
        searched = type(config)(**json.loads(self.options.search))
        self.trained = find(searched.method)(searched)
        """The method that has trained the network, as it was at its end."""
        self.projections = 0
        self.evaluations = 0

    def take_over(self, method: Mapping[str, Any], epoch: int) -> None:
        """Go on from what a search has found.

        Args:
            method: the state of its method.
            epoch: its last epoch.
        """
        self.trained.load_state_dict(method)
        self.trained.begin_epoch(epoch)
        self.kept = None if self.trained.kept is None else {n: kept.clone() for n, kept in self.trained.kept.items()}

    def network_arguments(self) -> dict[str, Any]:
        return self.trained.network_arguments()

    def attach(self, network: Supernet) -> None:
        self.trained.ranks = self.ranks  # it may draw numbers of single samples
        self.trained.attach(network)
        super().attach(network)

    def relax(self, network: Supernet, group: str, alpha: Tensor) -> Mix:
        if self.trained.draws or self.trained.level == "weights":
            return super().relax(network, group, alpha)
        return self.trained.relax(network, group, alpha)

    def connect(self, network: Supernet, group: str, mix: Mix) -> Mix:
        return self.trained.connect(network, group, mix)

    def end_epoch(self, state: RunningSearch, metrics: dict[str, Any]) -> None:
        super().end_epoch(state, metrics)
        if self.kept is None:
            groups = state.network.groups.items()
            self.kept = {name: torch.ones(group.shape, dtype=torch.bool) for name, group in groups}
        for _ in range(self._due(state.network) - self.projections):
            self._project(state)

    def _due(self, network: Supernet) -> int:
        """Return the number of projections that have to be done by the end of this epoch."""
        ops = max(len(self.open_rows(name)) for name in network.groups)
        edges = max(len(self.open_nodes(name, group)) for name, group in network.groups.items())
        total = self.projections + ops + edges
        last = self.config.epochs - 1
        return sum(round(last * i / max(total - 1, 1)) <= self.epoch for i in range(total))

    def open_rows(self, name: str) -> list[int]:
        """Return the rows of a group that have more than one op left."""
        assert self.kept is not None
        return [row for row, kept in enumerate(self.kept[name]) if kept.sum() > 1]

    def open_nodes(self, name: str, group: Group) -> list[tuple[list[int], int]]:
        """Return, for each node with more edges than it may keep, their rows and how many it may keep."""
        assert self.kept is not None
        live = self.kept[name].any(1).tolist()
        nodes = [
            ([row for row in range(rows.start, rows.stop) if live[row]], count)
            for rows, count in group.kept_edges(self.choice.edges_per_node)
        ]
        return [(rows, count) for rows, count in nodes if len(rows) > count]

    def _project(self, state: RunningSearch) -> None:
        """Decide one row of each group that has one left; where none has, the edges of one node of each."""
        groups = state.network.groups
        undecided = any(self.open_rows(name) for name in groups)
        for name, group in groups.items():
            if undecided and (rows := self.open_rows(name)):
                self._decide(state, name, self._one_of(rows))
            elif not undecided and (nodes := self.open_nodes(name, group)):
                self._drop(state, name, *self._one_of(nodes))
        self.projections += 1

    def _decide(self, state: RunningSearch, name: str, row: int) -> None:
        """Keep the op whose removal leaves the lowest value; of equal ones the first."""
        assert self.kept is not None
        group, kept = state.network.groups[name], self.kept[name]
        columns = [c for c, op in enumerate(group.ops[row]) if kept[row, c] and (op != "none" or group.whole)]
        best = min(columns, key=lambda column: self._without_op(state, name, row, column))
        kept[row] = torch.arange(group.shape[1]) == best

    def _drop(self, state: RunningSearch, name: str, rows: list[int], count: int) -> None:
        """Remove edges whose removal leaves the highest value, of equal ones the last, until `count` are left."""
        assert self.kept is not None
        while len(rows) > count:
            least = max(reversed(rows), key=lambda row: self._without_edge(state, name, row))
            self.kept[name][least] = False
            rows = [row for row in rows if row != least]

    def _without_op(self, state: RunningSearch, name: str, row: int, column: int) -> float:
        mixes = self._undisturbed(state.network)
        weights = mixes[name].weights.clone()
        weights[row, column] = 0
        return self._value(state, mixes | {name: mixes[name]._replace(weights=weights)})

    def _without_edge(self, state: RunningSearch, name: str, row: int) -> float:
        assert self.kept is not None
        before = self.kept[name][row].clone()
        self.kept[name][row] = False
        mixes = self._undisturbed(state.network)
        self.kept[name][row] = before
        return self._value(state, mixes)

    @torch.no_grad()
    def _undisturbed(self, network: Supernet) -> Mixes:
        """Return the mixes without what a method does in training only."""
        network.eval()
        return self.mixes(network)

    def _value(self, state: RunningSearch, mixes: Mixes) -> float:
        """Return the validation accuracy with these mixes; minus the loss if that is asked for or all there is."""
        options = self.options
        data = state.validation if options.batches is None else state.first_batches(options.batches)
        measure = state.measure if options.statistics == "running" else state.measure_by_batch
        with state.network.mixing(mixes):
            loss, accuracy = measure(data, lambda: None)
        self.evaluations += 1
        return -loss if options.criterion == "loss" or math.isnan(accuracy) else accuracy

    def _one_of(self, things: Sequence[Any]) -> Any:
        return things[int(torch.randint(len(things), (), generator=self.generator))]

    def discrete(self, network: Supernet, architecture: Any) -> Mixes:
        return self.trained.discrete(network, architecture)

    def metrics(self, network: Supernet) -> dict[str, Any]:
        own = {"projections": self.projections, "evaluations": self.evaluations}
        return super().metrics(network) | own

    def state_dict(self) -> dict[str, Any]:
        own = {"projections": self.projections, "evaluations": self.evaluations}
        return super().state_dict() | own | {"trained": self.trained.state_dict(), "trained_epoch": self.trained.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.projections, self.evaluations = state["projections"], state["evaluations"]
        self.trained.load_state_dict(state["trained"])
        self.trained.begin_epoch(state["trained_epoch"])
