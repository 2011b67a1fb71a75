"""What a search method is: the base class of all, whose defaults are DARTS'."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from fastdarts.bilevel.flat import FlatSGD
from fastdarts.bilevel.step import Level, SearchStep, StepRules
from fastdarts.config.options import Config, option, read_table
from fastdarts.config.search_options import SearchOptions
from fastdarts.methods.masks import MASKED, GroupDropout, prune
from fastdarts.methods.running import RunningSearch
from fastdarts.methods.schedules import cosine
from fastdarts.mixed.mix import Mix
from fastdarts.spaces import registry
from fastdarts.spaces.group import Choice
from fastdarts.spaces.space import Feature, Space
from fastdarts.spaces.supernet import Mixes, Supernet

Settings = Mapping[str, Any]
"""Values of fields of SearchOptions by their names."""


def hyper(text: str, default: Any, **limits: Any) -> Any:
    """A field of a method's Options: help text, default, limits (at_least, above, at_most, below)."""
    return option("method", text, default, **limits)


@dataclass(frozen=True, kw_only=True)
class MethodOptions(Config):
    """A method's hyper-parameters, made with `hyper`; a subclass is the method's `Options`."""


class Method(StepRules):
    """DARTS, and the seams at which its successors differ from it. All that a run changes is in `state_dict`.

    A pass asks `relax` for op weights, an epoch begins with `begin_epoch` and ends with `end_epoch`, and `genotype`
    reads the cells off. Random numbers come from `generator`, on the CPU, before the cells run.
    """

    Options: ClassVar[type[MethodOptions]] = MethodOptions
    level: Level = "bilevel"
    settings: ClassVar[Settings] = {}
    """Defaults of SearchOptions's fields that differ from DARTS' for every data set."""
    published: ClassVar[Settings] = {}
    """Those that hold for the paper's images but not for `digits`."""
    draws: ClassVar[bool] = False
    """The passes of one step use different op weights, drawn at random."""
    varies: ClassVar[bool] = False
    """Relaxation or penalty have numbers that change with the epoch."""
    competes: ClassVar[bool] = True
    """An edge's op weights are a softmax of its alphas."""
    alpha_grad_clip: ClassVar[float | None] = None
    """Largest global norm of the alphas' gradient."""
    needs: ClassVar[frozenset[Feature]] = frozenset()
    """What the method needs of a search space."""
    choice: Choice = Choice()
    """How an architecture is cut out of the scores."""

    def __init__(self, config: SearchOptions) -> None:
        self.config = config
        self.options: Any = self.read_options(config.method_options)
        self.space = self.space_of(config)
        self.epoch = 0
        self.stopped: str | None = None
        """Why the search ends before its last epoch."""
        self.generator = torch.Generator().manual_seed(config.seed + 7_919)  # apart from that of the weights
        self.kept: dict[str, Tensor] | None = None
        """The candidates [rows, ops] of each group that pruning has left, as booleans; None: all."""
        self.dropout = GroupDropout(config.op_dropout, self.generator, self.competes) if config.op_dropout else None
        self.sparse = type(self).sparse or self.dropout is not None
        # Masks come from the host.
        self.capturable = type(self).capturable and not self.sparse and not config.prune_below

    @classmethod
    def read_options(cls, values: Mapping[str, Any]) -> MethodOptions:
        """The method's Options with these values; ValueError or TypeError that names the one at fault."""
        return read_table(cls.Options, values, "method_options")

    @classmethod
    def check(cls, config: SearchOptions) -> None:
        """ValueError, in a sentence that says why, for a config that has no meaning for this method."""
        refuse = f"method {config.method!r}"
        for feature in sorted(cls.needs - cls.space_of(config).features):
            raise ValueError(f"{refuse} needs {feature}, which space {config.space!r} has not")
        if config.order == 2 and cls.level != "bilevel":
            raise ValueError(f"{refuse} has no second order: its alphas do not look through a step of the weights")
        if config.order == 2 and (cls.draws or config.op_dropout):
            what = refuse if cls.draws else "op_dropout"
            raise ValueError(f"{what} has no second order: its difference needs passes that use the same ops")
        if cls.level == "weights" and (config.alpha_warmup or config.op_dropout or config.prune_below):
            raise ValueError(f"{refuse} moves no alphas: alpha_warmup, op_dropout and prune_below would change nothing")
        check_warmup(config, config.epochs, "epochs")

    @staticmethod
    def space_of(config: SearchOptions) -> Space:
        """Return the search space that a config names, with the config's primitives."""
        return registry.find(config.space, config.primitives)

    # The network and what moves it.

    def network_arguments(self) -> dict[str, Any]:
        """Return arguments of `Space.supernet` beyond those of the config.

        When an epoch begins with others than the one before ended with, network and optimizers are made anew.
        """
        return {"layers": self.config.layers, **self.space.arguments()}

    def attach(self, network: Supernet) -> None:
        """Prepare a new network: its relaxation, further architecture parameters, other initial alphas."""
        network.relaxation = self.mixes

    def arch_optimizer(self, network: Supernet) -> Optimizer:
        """Of the architecture parameters."""
        return self.adam(network.arch_parameters())

    def adam(self, *groups: Sequence[Tensor], betas: tuple[float, float] = (0.5, 0.999)) -> Adam:
        """Adam with the config's weight decay; `capturable`, so that its step counts stay on the GPU."""
        config, capturable = self.config, groups[0][0].is_cuda
        parts = [{"params": list(group)} for group in groups]
        return Adam(parts, config.arch_lr, betas, weight_decay=config.arch_weight_decay, capturable=capturable)

    def weight_optimizer(self, network: Supernet) -> Optimizer:
        """Of the weights, one parameter group."""
        config = self.config
        if self.sparse:  # leaves alone what got no gradient
            return SGD(network.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay)
        return FlatSGD(network.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)

    # Schedules.

    def begin_epoch(self, epoch: int) -> None:
        """Set what depends on the epoch, from 0; also called when a checkpoint has been loaded."""
        self.epoch = epoch

    def alphas_move(self) -> bool:
        """Whether this epoch's steps move the alphas."""
        return self.epoch >= round(self.config.alpha_warmup * self.config.epochs)

    def level_now(self) -> Level:
        return self.level if self.alphas_move() else "weights"

    def graph_key(self) -> Hashable:
        return self.epoch if self.varies else None

    def learning_rate(self) -> float:
        """Of the weights."""
        return cosine(self.config.lr, self.config.lr_min, self.epoch, self.config.epochs)

    def weight_decay(self) -> float:
        """Of the weights, in this epoch."""
        return self.config.weight_decay

    def cutout_share(self) -> float:
        """Of the training images, that cutout takes in this epoch."""
        return 1.0

    def arch_learning_rates(self) -> Sequence[float]:
        """Of the architecture parameters, for each group of their optimizer."""
        return [self.config.arch_lr]

    # Relaxation.

    def mixes(self, network: Supernet) -> Mixes:
        """Return the relaxation of each group, called once for each forward pass."""
        return {group: self._mix(network, group) for group in network.groups}

    def _mix(self, network: Supernet, group: str) -> Mix:
        alpha, active = network.alphas[group], None
        kept = self.kept[group] if self.kept else None
        if self.dropout is not None and network.training:
            kept = self.dropout.survivors(group, network.groups[group].ops, kept)
        if kept is not None:
            alpha = alpha.masked_fill(~kept.to(alpha.device), MASKED)
            extra = range(kept.shape[1], kept.shape[1] + len(network.auxiliary))
            active = [[c for c, keep in enumerate(row) if keep] + list(extra) for row in kept.tolist()]
        mix = self.relax(network, group, alpha)
        return mix if mix.active is not None else mix._replace(active=active)

    def relax(self, network: Supernet, group: str, alpha: Tensor) -> Mix:
        """Return the op weights of a group for a forward pass.

        Args:
            network: gives further parameters and, by its mode, says whether to draw at random (train) or not (eval).
            group: the name of the group of rows.
            alpha: [rows, ops], those of pruned ops at MASKED.
        """
        return Mix(alpha.softmax(dim=-1))

    def penalty(self, network: Supernet) -> Tensor | None:
        """What the alpha step adds to the loss; a function of the architecture parameters alone."""
        return None

    # Reading the cells off.

    @torch.no_grad()
    def scores(self, network: Supernet) -> dict[str, Tensor]:
        """Return the strength of each candidate [rows, ops] in each group; pruned ones have 0."""
        found = {}
        for group, alpha in network.alphas.items():
            alpha = alpha.cpu()
            masked = alpha if self.kept is None else alpha.masked_fill(~self.kept[group], MASKED)
            found[group] = self.strength(network, group, masked)
        return found

    def strength(self, network: Supernet, group: str, alpha: Tensor) -> Tensor:
        """Return the `scores` of one group, from its alphas on the CPU."""
        return alpha.softmax(dim=-1)

    def ranking(self, network: Supernet, group: str, score: Tensor) -> Tensor:
        """Return the numbers [rows, ops] by which ops and edges of a group are chosen, from its scores."""
        return score

    @torch.no_grad()
    def genotype(self, network: Supernet) -> Any:
        """Return the discrete architecture of the present alphas."""
        scores = self.scores(network)
        if self.kept is not None:  # below a skip connection that has been removed
            scores = {group: score.masked_fill(~self.kept[group], -math.inf) for group, score in scores.items()}
        ranking = partial(self.ranking, network)
        return network.derive(scores, replace(self.choice, max_skips=self.config.max_skips, ranking=ranking))

    def edge_weights(self, network: Supernet) -> dict[str, Tensor]:
        """Return the weight of each edge [edges] in each group; empty if the method has no edge weights."""
        return {}

    def discrete(self, network: Supernet, architecture: Any) -> Mixes:
        """Return the op weights with which the search network computes an architecture."""
        return network.mixes_of(architecture)

    # An epoch's end.

    def end_epoch(self, state: RunningSearch, metrics: dict[str, Any]) -> None:
        """Look at the search when an epoch has been measured; set `stopped` to end it."""
        limit = self.config.prune_below * (self.epoch + 1) / self.config.epochs
        if limit and self.alphas_move():
            self.kept = prune(self.kept, self.scores(state.network), state.network.groups, limit)

    def between_epochs(self, state: RunningSearch) -> None:
        """Look at the search where the next epoch is about to begin; may load a state of before."""

    def metrics(self, network: Supernet) -> dict[str, Any]:
        """Numbers (or lists of them, one an edge) for metrics.jsonl and the report."""
        return {"ops_left": sum(int(kept.sum()) for kept in self.kept.values())} if self.kept else {}

    def result(self, state: RunningSearch) -> Any:
        """What the search found, when it has ended."""
        return self.genotype(state.network)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {"generator": self.generator.get_state(), "stopped": self.stopped, "kept": self.kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.stopped, self.kept = state["stopped"], state["kept"]

    def before_alpha_step(self, step: SearchStep) -> None:
        if self.dropout is not None:
            self.dropout.before_alpha_step(search_network(step))

    def after_alpha_step(self, step: SearchStep) -> None:
        if self.dropout is not None:
            self.dropout.after_alpha_step(search_network(step))


def check_warmup(config: SearchOptions, epochs: int, what: str) -> None:
    """ValueError where alphas wait for all of these epochs."""
    if config.alpha_warmup and round(config.alpha_warmup * epochs) >= epochs:
        raise ValueError(
            f"alpha_warmup must be below {1 - 0.5 / epochs:.4g} to leave one of {epochs} {what} in which alphas move; "
            f"got {config.alpha_warmup}"
        )


def search_network(step: SearchStep) -> Supernet:
    """Return the network of a step that a method takes part in."""
    assert isinstance(step.network, Supernet)
    return step.network
