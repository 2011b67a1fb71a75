"""SGAS: sequential greedy architecture search (Li et al., CVPR 2020, arXiv:1912.00195).

Now and then the edge with the best score is decided: from then on it runs its strongest op alone. A node with two
decided edges loses its other edges. So the network turns into the found one during the search. The score is the
product of the importance of an edge (its weight on ops other than `none`), the certainty of these op weights (1 minus
their entropy) and, for criterion 2, their stability over the last epochs.

Differences from the authors' code: the size of a batch stays the same (theirs grows by 8 with every decision); a factor
that is the same for all edges, such as the importance in a space without `none`, does not count (theirs becomes 0).
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fastdarts.bilevel.step import SearchStep
from fastdarts.config.search_options import SearchOptions
from fastdarts.methods.method import Method, MethodOptions, Settings, hyper, search_network
from fastdarts.methods.running import RunningSearch
from fastdarts.spaces.group import Group
from fastdarts.spaces.supernet import Supernet

_REMEMBERED = 4  # epochs over which op weights are compared


@dataclass(frozen=True, kw_only=True)
class SgasOptions(MethodOptions):
    """Define the hyper-parameters of SGAS; defaults are the authors'."""

    criterion: Literal[1, 2] = hyper("score of an edge: 1 importance times certainty; 2 times stability, too", 2)
    first: float = hyper("share of the epochs after which the first edge is decided", 0.2, at_least=0, at_most=1)
    last: float = hyper("share of the epochs after which the last edge is decided", 0.9, at_least=0, at_most=1)


class Sgas(Method):
    """Decide one edge of each type of cell after another; what is not decided any more does not run."""

    Options = SgasOptions
    role = "decisions"
    settings: ClassVar[Settings] = {"order": 1}
    sparse = True

    def __init__(self, config: SearchOptions) -> None:
        super().__init__(config)
        self.decided: defaultdict[str, dict[int, int]] = defaultdict(dict)
        """The column of each decided row of each group."""
        self._past: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._before: dict[str, Tensor] = {}

    @classmethod
    def check(cls, config: SearchOptions) -> None:
        super().check(config)
        if config.method_options["first"] > config.method_options["last"]:
            raise ValueError(
                f"first must be at most last = {config.method_options['last']}; got {config.method_options['first']}"
            )
        if config.prune_below:
            raise ValueError("prune_below cannot be used: the decisions already remove ops")

    def end_epoch(self, state: RunningSearch, metrics: dict[str, Any]) -> None:
        super().end_epoch(state, metrics)
        groups = state.network.groups
        if self.kept is None:
            self.kept = {name: torch.ones(group.shape, dtype=torch.bool) for name, group in groups.items()}
        for name, group in groups.items():
            importance, known = shares(state.network.alphas[name].detach().cpu(), group)
            score = self.score(name, group, importance, known)
            for _ in range(self._due(group) - len(self.decided[name])):
                self._decide(name, group, score, known)
            self._past[name] = [*self._past[name], known][-_REMEMBERED:]

    def _due(self, group: Group) -> int:
        """Return the number of edges to be decided by the end of this epoch."""
        total = sum(count for _, count in _nodes(group, self.choice.edges_per_node))
        first, last = self.options.first, self.options.last
        shares = [first + (last - first) * i / max(total - 1, 1) for i in range(total)]
        return sum(round(share * self.config.epochs) <= self.epoch + 1 for share in shares)

    def score(self, name: str, group: Group, importance: Tensor, known: Tensor) -> Tensor:
        """Return the score [rows] of the edges of a group, decided ones included.

        Args:
            name: the group's name.
            group: the group.
            importance, known: see `shares`.
        """
        factors = [importance, -entropy(known, group)]
        if self.options.criterion == 2 and self._past[name]:
            factors.append(torch.stack([torch.minimum(before, known).sum(1) for before in self._past[name]]).mean(0))
        return torch.stack([spread(factor) for factor in factors]).prod(0)

    def _decide(self, name: str, group: Group, score: Tensor, known: Tensor) -> None:
        """Decide the edge of the best score; remove the other edges of a node that is complete."""
        assert self.kept is not None
        kept, decided = self.kept[name], self.decided[name]
        undecided = [row for row in range(len(score)) if row not in decided and kept[row].any()]
        row = max(undecided, key=score.tolist().__getitem__)
        decided[row] = int(known[row].argmax())
        kept[row] = torch.arange(group.shape[1]) == decided[row]
        for rows, count in _nodes(group, self.choice.edges_per_node):
            others = [row for row in range(rows.start, rows.stop) if row not in decided]
            if rows.stop - rows.start - len(others) == count:
                kept[others] = False

    def before_alpha_step(self, step: SearchStep) -> None:
        super().before_alpha_step(step)
        self._before = {name: alpha.detach().clone() for name, alpha in search_network(step).alphas.items()}

    def after_alpha_step(self, step: SearchStep) -> None:
        """Put the alphas of decided edges back: weight decay and momentum would move them."""
        super().after_alpha_step(step)
        with torch.no_grad():
            for name, alpha in search_network(step).alphas.items():
                rows = list(self.decided[name])
                alpha[rows] = self._before[name][rows]

    def metrics(self, network: Supernet) -> dict[str, Any]:
        return super().metrics(network) | {f"decided_{name}": len(self.decided[name]) for name in network.groups}

    def state_dict(self) -> dict[str, Any]:
        decided = {name: list(rows.items()) for name, rows in self.decided.items()}
        return super().state_dict() | {"decided": decided, "past": dict(self._past)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.decided = defaultdict(dict, {name: dict(rows) for name, rows in state["decided"].items()})
        self._past = defaultdict(list, {name: list(past) for name, past in state["past"].items()})


def shares(alpha: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """Return how much of the softmax of alpha [rows, ops] is not that of `none`, and how the other ops share it.

    Returns: importance [rows]; shares [rows, ops] that sum to 1, with 0 for `none`. Both are float64.
    """
    none = torch.tensor([[op == "none" for op in row] for row in group.ops])
    known = alpha.double().softmax(1).masked_fill(none, 0)
    importance = known.sum(1)
    return importance, known / importance[:, None]


def entropy(known: Tensor, group: Group) -> Tensor:
    """Return the entropy [rows] of the shares of known ops [rows, ops], as a part of the largest that is possible."""
    counts = torch.tensor([sum(op != "none" for op in row) for row in group.ops], dtype=torch.float64)
    return -torch.xlogy(known, known).sum(1) / counts.clamp_min(2).log()


def spread(values: Tensor) -> Tensor:
    """Return the values [rows] moved and scaled to 0..1; ones where all are the same."""
    low, high = values.min(), values.max()
    return torch.ones_like(values) if high - low < 1e-6 else (values - low) / (high - low)


def _nodes(group: Group, per_node: int | None) -> list[tuple[slice, int]]:
    """Return the rows of each node and the number of them to decide; rows that are no edges are nodes of their own."""
    return group.kept_edges(per_node) if group.ends else [(slice(row, row + 1), 1) for row in range(len(group.ops))]
