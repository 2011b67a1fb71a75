"""GOLD-NAS: gradual one-level differentiable search (Bi et al., 2020, arXiv:2007.03331).

Every cell has alphas of its own, any number of ops may stay on an edge, and op weights are sigmoids. Weights and alphas
move on one loss of all images, to which lambda * R is added, with R the sum over all living ops of
ln(1 + n * share) * (rho + mu * cost): share is an op's part of the sigmoids that enter its node, n the number of living
ops there. After each epoch ops of small share are removed for good; an epoch that removes few raises lambda. The search
ends when the network is within `cost_target` (in multiply-adds; in weights with cost=params), so that nothing is left
to derive. Networks that had been stable before they shrank are the series that the report shows.

Differences from the authors' code: all edges can be pruned and the count of multiply-adds is right (theirs divides by
sums that it has just set to 0, so that ten of a cell's fourteen edges always stay, and never ends); an op is removed
after an epoch, not within a pass; the last op of a node, and those without which no network within the budget would be
left, stay; the network of the budget trains for one more epoch, and `epochs` is the most that a search takes: in its
last quarter the weakest ops that cost something go evenly until the budget is met; identities have no batch norm and
the search network no auxiliary head, as in DARTS.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from fastdarts.bilevel.step import Level
from fastdarts.config.search_options import SearchOptions
from fastdarts.methods.budget import Budget, living, node_shares
from fastdarts.methods.masks import MASKED
from fastdarts.methods.method import Method, MethodOptions, Settings, hyper
from fastdarts.methods.running import RunningSearch
from fastdarts.methods.scored import Scored
from fastdarts.mixed.mix import Mix
from fastdarts.primitives.table import PRIMITIVES
from fastdarts.spaces.cost import Cost, CostTable
from fastdarts.spaces.group import Choice, Group
from fastdarts.spaces.registry import read_architecture
from fastdarts.spaces.space import Feature
from fastdarts.spaces.supernet import Supernet

OPS = ("skip_connect", "sep_conv_3x3")
"""The paper's candidate ops."""
_SHARE = (240 - 166.0186) / 613.4538  # of the cost of all ops; the authors' budget for CIFAR-10


@dataclass(frozen=True, kw_only=True)
class GoldNasOptions(MethodOptions):
    """Define the hyper-parameters of GOLD-NAS; defaults are the authors'."""

    step: float = hyper("lambda_0: first step of lambda, the weight of the resource term", 1e-5, above=0)
    growth: float = hyper(
        "c_0: factor of lambda's next step; divisor of lambda after an epoch that prunes", 2.0, above=1
    )
    rho: float = hyper("price of an op, whatever it costs", 1.0, at_least=0)
    mu: float = hyper("price of a unit of an op's cost", 0.0, at_least=0)
    dead: float = hyper("share of its node with which an op is removed at once", 0.01, at_least=0, below=1)
    weak: float = hyper("largest share of the further ops that an epoch removes", 0.05, at_least=0, at_most=1)
    most: int = hyper("n_0: largest number of these; fewer than so many removals raise lambda", 4, at_least=1)
    stable: int = hyper("epochs without a removal after which a network belongs to the series", 3, at_least=0)
    deadline: float = hyper(
        "share of the epochs after which ops with a cost go evenly, the weakest first, to meet the budget in time",
        0.75,
        at_least=0,
        at_most=1,
    )
    momentum: float = hyper("momentum of the alphas' SGD", 0.9, at_least=0, below=1)


class GoldNas(Method):
    """Shrink a network of all ops, with alphas for each cell, to a budget."""

    Options = GoldNasOptions
    options: GoldNasOptions
    level: Level = "single"
    settings: ClassVar[Settings] = {
        "order": 1,
        "cost": "flops",
        "lr": 0.01,
        "lr_min": 0.01,
        "arch_lr": 1.0,
        "arch_weight_decay": 0.0,
        "epochs": 40,
    }
    published: ClassVar[Settings] = {
        "epochs": 400,
        "batch_size": 96,
        "init_channels": 36,
        "layers": 14,
        "cutout": 16,
        "auto_augment": "autoaugment",
    }
    needs: ClassVar[frozenset[Feature]] = frozenset({"edges", "own cells"})
    competes = False
    sparse = True
    varies = True
    compared_by = "as search networks on the training images, each before it shrank; later ones have learned longer"
    choice = Choice(ops_per_edge=len(PRIMITIVES), edges_per_node=None, threshold=0.0)

    def __init__(self, config: SearchOptions) -> None:
        super().__init__(config)
        self.weight = 0.0
        """Lambda, the weight of the resource term."""
        self.series: list[Scored] = []
        self._step = self.options.step
        self._idle = 0
        self._removed = 0
        self._nodes: Sequence[slice] = ()
        self._budget: Budget | None = None
        self._unit = ""

    @classmethod
    def check(cls, config: SearchOptions) -> None:
        super().check(config)
        if config.cost is None:
            raise ValueError(f"method {config.method!r} shrinks a network to a cost: give flops or params")
        if config.cost_form != "add" or config.cost_weight is not None:
            raise ValueError(
                f"method {config.method!r} has a resource term of its own, with --method-options mu=X for its weight: "
                "leave out cost_form and cost_weight"
            )
        if config.prune_below or config.max_skips is not None:
            raise ValueError("prune_below and max_skips cannot be used: the method removes ops by its own rule")
        if config.epochs < 2:
            raise ValueError("epochs must be at least 2: the last one trains the network that the others have found")
        if round(config.alpha_warmup * config.epochs) > config.epochs - 2:
            raise ValueError(
                f"alpha_warmup must leave two of {config.epochs} epochs: one in which alphas move, and the last, which "
                f"trains the found network; got {config.alpha_warmup}"
            )

    def network_arguments(self) -> dict[str, Any]:
        arguments = super().network_arguments()
        given = arguments["primitives"]
        ops = OPS if tuple(given) == PRIMITIVES else tuple(name for name in given if name != "none")
        return arguments | {"primitives": ops, "own_cells": True}

    def cost_arguments(self) -> dict[str, Any]:
        return self.network_arguments()

    def attach(self, network: Supernet) -> None:
        super().attach(network)
        for alpha in network.alphas.values():
            alpha.data.zero_()
        groups: Mapping[str, Group] = network.groups
        self._nodes = next(iter(groups.values())).entering()
        if self.kept is None:
            self.kept = {name: torch.ones(group.shape, dtype=torch.bool) for name, group in groups.items()}

    def takes_costs(self, network: Supernet, costs: Cost) -> bool:
        """Settle the budget and return True.

        Raises: ValueError for a budget that no network meets, or for costs that are no table.
        """
        if not isinstance(costs, CostTable):
            raise ValueError(f"method {self.config.method!r} needs a cost for each op: a table, not a regressor")
        costs.check(network.groups, "cost")
        prices = torch.stack([costs.costs(name, group) for name, group in network.groups.items()])
        target = self.config.cost_target
        limit = costs.constant + _SHARE * float(prices.sum()) if target is None else target
        budget = Budget(prices, costs.constant, limit, self._nodes)
        lowest = budget.lowest(torch.ones(prices.shape, dtype=torch.bool))
        if limit < lowest:
            raise ValueError(
                f"cost_target must be at least {lowest:.6g} {costs.unit}: {costs.constant:.6g} for all but the ops of "
                f"the cells, and the cheapest op for each node; got {limit:.6g}"
            )
        self._budget, self._unit = budget, costs.unit
        return True

    def arch_optimizer(self, network: Supernet) -> Optimizer:
        """Return SGD over the alphas."""
        config = self.config
        decay, momentum = config.arch_weight_decay, self.options.momentum
        return SGD(network.arch_parameters(), config.arch_lr, momentum, weight_decay=decay)

    def relax(self, network: Supernet, group: str, alpha: Tensor) -> Mix:
        return Mix(alpha.sigmoid())

    def strength(self, network: Supernet, group: str, alpha: Tensor) -> Tensor:
        return node_shares(alpha, alpha > MASKED, self._nodes)

    def penalty(self, network: Supernet) -> Tensor | None:
        return self.weight * self.resource(network) if self.weight else None

    def resource(self, network: Supernet) -> Tensor:
        """Return R, a scalar that is differentiable in the alphas: its least for one op in each node."""
        alpha, kept = self._stacked(network)
        shares, counts = node_shares(alpha, kept, self._nodes), living(kept, self._nodes)
        terms = (counts * shares).log1p()
        if self.options.mu == 0:
            return self.options.rho * terms.sum()
        return (terms * (self.options.rho + self.options.mu * self.budget.prices.to(terms))).sum()

    @property
    def budget(self) -> Budget:
        """Return the budget, which the run sets by `takes_costs`."""
        assert self._budget is not None
        return self._budget

    def end_epoch(self, state: RunningSearch, metrics: dict[str, Any]) -> None:
        super().end_epoch(state, metrics)
        self._removed = 0
        if not self.alphas_move():
            return
        with torch.no_grad():
            alpha, kept = (tensor.cpu() for tensor in self._stacked(state.network))
        score = metrics["train_accuracy"]
        cost = self.budget.cost(kept)
        now = Scored(self.genotype(state.network), -metrics["train_loss"] if score is None else score, cost)
        if cost <= self.budget.limit:
            self.series.append(now)
            self.stopped = f"the network costs {cost:.6g} {self._unit}; the budget is {self.budget.limit:.6g}"
            return
        options = self.options
        left = self.budget.prune(alpha.double(), kept, options.dead, options.weak, options.most)
        if (excess := self._allowed(self.budget.cost(left) - self.budget.limit)) is not None:
            left = self.budget.cut(alpha.double(), left, self.budget.limit + excess)
        self._removed = int((kept & ~left).sum())
        if self._removed and self._idle > options.stable:
            self.series.append(now)
        self._idle = 0 if self._removed else self._idle + 1
        self.adapt(self._removed)
        self.kept = dict(zip(state.network.groups, left, strict=True))

    def _allowed(self, excess: float) -> float | None:
        """Return how far above the budget the network may be after this epoch, given how far it is; None for any.

        The last epoch but one ends within the budget, whatever the deadline.
        """
        last = self.config.epochs - 1
        if excess <= 0 or self.epoch + 1 < min(round(self.options.deadline * self.config.epochs), last):
            return None
        return excess * (1 - 1 / max(last - self.epoch, 1))

    def adapt(self, removed: int) -> None:
        """Set lambda for the next epoch, given the number of ops that this one has removed."""
        if removed >= self.options.most:
            self.weight, self._step = self.weight / self.options.growth, self.options.step
        else:
            self._step *= self.options.growth
            self.weight += self._step

    def _stacked(self, network: Supernet) -> tuple[Tensor, Tensor]:
        """Return the alphas, and the candidates that are left, of all cells: [cells, edges, ops]."""
        assert self.kept is not None
        alpha = torch.stack([network.alphas[name] for name in network.groups])
        kept = torch.stack([self.kept[name] for name in network.groups])
        return alpha, kept.to(alpha.device)

    def result(self, state: RunningSearch) -> Any:
        self.compared = self.series
        return super().result(state)

    def metrics(self, network: Supernet) -> dict[str, Any]:
        return super().metrics(network) | {"removed": self._removed, "lambda": self.weight}

    def state_dict(self) -> dict[str, Any]:
        series = [(one.architecture.to_json(), one.score, one.cost) for one in self.series]
        own = {"weight": self.weight, "step": self._step, "idle": self._idle, "series": series}
        return super().state_dict() | own

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.weight, self._step, self._idle = state["weight"], state["step"], state["idle"]
        self.series = [Scored(read_architecture(text), score, cost) for text, score, cost in state["series"]]
