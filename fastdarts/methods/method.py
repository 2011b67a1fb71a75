"""Define the base class of all search methods; its defaults are those of DARTS."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from fastdarts.bilevel.flat import FlatSGD
from fastdarts.bilevel.host_values import from_host
from fastdarts.bilevel.ranks import ALONE, Ranks
from fastdarts.bilevel.step import Level, SearchStep, StepRules
from fastdarts.config.options import Config, option, read_table
from fastdarts.config.search_options import SearchOptions
from fastdarts.methods.masks import MASKED, GroupDropout, prune
from fastdarts.methods.running import RunningSearch
from fastdarts.methods.schedules import cosine
from fastdarts.methods.scored import Scored
from fastdarts.mixed.mix import Mix
from fastdarts.spaces import registry
from fastdarts.spaces.cost import Cost
from fastdarts.spaces.group import Choice
from fastdarts.spaces.space import Feature, Space, material_of
from fastdarts.spaces.supernet import Mixes, Supernet

Settings = Mapping[str, Any]
"""Values of fields of SearchOptions by their names."""


Role = Literal[
    "stop rule",
    "decisions",
    "freezing",
    "perturbation",
    "regulariser",
    "auxiliary skip",
    "channels",
    "relaxation",
]
"""The parts that methods can be of a composed one, from the outermost to the innermost."""


def hyper(text: str, default: Any, **limits: Any) -> Any:
    """Define a field of a method's Options by help text, default and limits (at_least, above, at_most, below)."""
    return option("method", text, default, **limits)


@dataclass(frozen=True, kw_only=True)
class MethodOptions(Config):
    """Hold a method's hyper-parameters, fields defined with `hyper`; each method's `Options` is a subclass."""


class Method(StepRules):
    """Implement DARTS, with methods that its successors override. All that changes during a run is in `state_dict`.

    `relax` returns the op weights of a forward pass, `begin_epoch` and `end_epoch` are called around each epoch, and
    `genotype` derives the architecture. Random numbers come from `generator`, on the CPU, before the cells run. It is
    equal on all ranks: draw numbers of ops and edges from it as they are, those of single samples by `ranks.rows`.
    """

    Options: ClassVar[type[MethodOptions]] = MethodOptions
    role: ClassVar[Role | None] = None
    """The part that this method can be of a composed one (see `composition`); None if it only runs alone."""
    runs_one_op: ClassVar[bool] = False
    """True if a weight step runs one drawn op of each edge."""
    level: Level = "bilevel"
    settings: ClassVar[Settings] = {}
    """Defaults of the fields of SearchOptions that differ from those of DARTS, for every data set."""
    published: ClassVar[Settings] = {}
    """Further such defaults, for the paper's images but not for `digits`."""
    draws: ClassVar[bool] = False
    """True if the passes of one step use different op weights, sampled at random."""
    varies: ClassVar[bool] = False
    """True if relaxation or penalty depend on the epoch."""
    train_weight: float = 0.0
    """Weight of the training loss beside the validation loss in the alphas' gradient; order 1 only."""
    keeps_weights: ClassVar[bool] = False
    """True if a network that is built anew between epochs begins with the weights of the one before, widened."""
    keep_weight_gradients: ClassVar[bool] = False
    """True if the architect keeps the weights' gradients of the validation loss for the method; order 1 only."""
    competes: ClassVar[bool] = True
    """True if an edge's op weights are a softmax of its alphas."""
    alpha_grad_clip: ClassVar[float | None] = None
    """Largest global norm of the alphas' gradient; None for no clipping."""
    needs: ClassVar[frozenset[Feature]] = frozenset()
    """Features that a search space must have for this method."""
    measures_images: ClassVar[bool] = False
    """True if the method computes with the images of a batch itself, so that it has no meaning for texts."""
    compared_by: ClassVar[str] = (
        "with the shared weights on the alphas' half; such accuracies are below those after a training from scratch"
    )
    """Tells the report how the architectures in `compared` were measured."""
    choice: Choice = Choice()
    """Rules by which an architecture is derived from the scores."""

    def __init__(self, config: SearchOptions) -> None:
        self.config = config
        self.options: Any = self.read_options(config.method_options)
        self.space = self.space_of(config)
        self.ranks: Ranks = ALONE
        """The processes that run this search together; the run sets it."""
        self.epoch = 0
        self.stopped: str | None = None
        """Reason for ending the search before its last epoch; None to go on."""
        self.rewarded: Callable[[float, Mixes], float] | None = None
        """Adds the cost of op weights to a reward; the run sets it where the config asks for a cost."""
        self.compared: Sequence[Scored] = ()
        """The architectures among which `result` chose, for the report; empty if it compared none."""
        self.generator = torch.Generator().manual_seed(config.seed + 7_919)  # another seed than the weights'
        self.kept: dict[str, Tensor] | None = None
        """Booleans [rows, ops] of each group, True for candidates that pruning has left; None means all."""
        self.dropout = GroupDropout(config.op_dropout, self.generator, self.competes) if config.op_dropout else None
        self.sparse = type(self).sparse or self.dropout is not None
        # Masks are computed on the host.
        self.capturable = type(self).capturable and not self.sparse and not config.prune_below

    @classmethod
    def read_options(cls, values: Mapping[str, Any]) -> MethodOptions:
        """Return the method's Options with `values`; raise a ValueError or TypeError that names a wrong one."""
        return read_table(cls.Options, values, "method_options")

    @classmethod
    def check(cls, config: SearchOptions) -> None:
        """Raise a ValueError that gives the reason if `config` does not make sense for this method."""
        refuse, space = f"method {config.method!r}", cls.space_of(config)
        for feature in sorted(cls.needs - space.features):
            raise ValueError(f"{refuse} needs {feature}, which space {config.space!r} does not have")
        if config.sync_batch_norm and "elastic layers" in space.features:
            raise ValueError(
                f"sync_batch_norm does not reach norms of some of the channels, as space {config.space!r} has"
            )
        if cls.measures_images and material_of(space) != "images":
            raise ValueError(f"{refuse} measures images; space {config.space!r} reads text")
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
        """Return the search space that `config` names, with the config's primitives."""
        return registry.find(config.space, config.primitives, config.space_options)

    # Network and optimizers.

    def network_arguments(self) -> dict[str, Any]:
        """Return arguments of `Space.supernet` in addition to those from the config.

        If they have changed when an epoch begins, network and optimizers are built anew.
        """
        return {"layers": self.config.layers, **self.space.arguments()}

    def cost_arguments(self) -> dict[str, Any]:
        """Return arguments of `Space.supernet` for the network whose ops are counted for `cost`."""
        return {"layers": self.config.layers, **self.space.arguments()}

    def takes_costs(self, network: Supernet, costs: Cost) -> bool:
        """Return True if the method makes its own use of the costs of choices, so that they do not enter the loss.

        Called for each new network, after `attach`, where the config asks for a cost.
        """
        return False

    def attach(self, network: Supernet) -> None:
        """Prepare a new network: set its relaxation, add architecture parameters, change initial alphas."""
        network.relaxation = self.mixes

    def arch_optimizer(self, network: Supernet) -> Optimizer:
        """Return the optimizer of the architecture parameters."""
        return self.adam(network.arch_parameters())

    def adam(self, *groups: Sequence[Tensor], betas: tuple[float, float] | None = None) -> Adam:
        """Return Adam over parameter `groups` with the config's learning rate, betas (unless given) and weight decay.

        On a GPU it is `capturable`, which keeps its step counts on the device.
        """
        config, capturable = self.config, groups[0][0].is_cuda
        betas = (config.arch_beta1, 0.999) if betas is None else betas
        parts = [{"params": list(group)} for group in groups]
        return Adam(parts, config.arch_lr, betas, weight_decay=config.arch_weight_decay, capturable=capturable)

    def weight_optimizer(self, network: Supernet) -> Optimizer:
        """Return the optimizer of the weights, with one parameter group."""
        config = self.config
        if self.sparse:  # SGD skips weights without a gradient; FlatSGD would decay them
            return SGD(network.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay)
        return FlatSGD(network.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)

    def nesterov(self, network: Supernet) -> Optimizer:
        """Return SGD with Nesterov momentum over the weights, which skips those without a gradient."""
        config = self.config
        return SGD(
            network.parameters(),
            config.lr,
            config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.momentum > 0,
        )

    # Schedules.

    def begin_epoch(self, epoch: int) -> None:
        """Set all values that depend on `epoch`, counted from 0; also called after a checkpoint has been loaded."""
        self.epoch = epoch

    def alphas_move(self) -> bool:
        """Return True if the steps of this epoch update the alphas."""
        return self.epoch >= round(self.config.alpha_warmup * self.config.epochs)

    def alphas_move_each_step(self) -> bool:
        """Return True if every step of this epoch updates the alphas, so that each must measure an alpha step."""
        return self.level_now() != "weights"

    def level_now(self) -> Level:
        return self.level if self.alphas_move() else "weights"

    def graph_key(self) -> Hashable:
        return self.epoch if self.varies else None

    def learning_rate(self) -> float:
        """Return the learning rate of the weights in this epoch."""
        return cosine(self.config.lr, self.config.lr_min, self.epoch, self.config.epochs)

    def weight_decay(self) -> float:
        """Return the weight decay of the weights in this epoch."""
        return self.config.weight_decay

    def cutout_share(self) -> float:
        """Return the share of the training images to which cutout is applied in this epoch."""
        return 1.0

    def arch_learning_rates(self) -> Sequence[float]:
        """Return the learning rate of each parameter group of the architecture optimizer."""
        return [self.config.arch_lr]

    # Chance.

    def survivors(self, like: Tensor, shape: Sequence[int], rate: Callable[[], float]) -> Tensor:
        """Draw factors of dropout [*shape]: 0 with probability rate(), else 1 / (1 - rate()).

        Args:
            like: what is multiplied by them; they get its dtype and device.
            shape: its first dimensions; the first is that of the samples.
            rate: returns the rate of the present step.
        """

        def draw(rows: int) -> Tensor:
            return torch.rand((rows, *rest), generator=self.generator)

        def factors() -> Tensor:
            now = rate()
            return (drawn() >= now).double() / (1 - now)

        samples, *rest = shape
        drawn = self.ranks.later_rows(draw, samples)
        return from_host(factors, like)

    # Relaxation.

    def mixes(self, network: Supernet) -> Mixes:
        """Return the mix of each group; called once for each forward pass."""
        return {group: self.connected(network, group, self.drawn(network, group)) for group in network.groups}

    def connected(self, network: Supernet, group: str, mix: Mix) -> Mix:
        """Return what `connect` does; edges without ops pass nothing on either (partial channels)."""
        mix = self.connect(network, group, mix)
        if self.kept is None or mix.passing is None:
            return mix
        return mix._replace(passing=mix.passing * self.kept[group].any(1).to(mix.passing))

    def drawn(self, network: Supernet, group: str) -> Mix:
        """Return the relaxation of a group, with only the ops running that pruning and dropout have left."""
        alpha, active = network.alphas[group], None
        kept = self.kept[group] if self.kept else None
        if self.dropout is not None and network.training:
            kept = self.dropout.survivors(group, network.groups[group], kept)
        if kept is not None:
            left = kept | ~kept.any(1, keepdim=True)  # a row without ops does not run, and none of them is masked
            alpha = alpha.masked_fill(~left.to(alpha.device), MASKED)
            active = [[c for c, keep in enumerate(row) if keep] for row in kept.tolist()]
        mix = self.relax(network, group, alpha)
        if mix.active is not None and active is not None:  # a row without ops keeps none
            return mix._replace(active=[own if left else [] for own, left in zip(mix.active, active, strict=True)])
        return mix if mix.active is not None else mix._replace(active=active)

    def relax(self, network: Supernet, group: str, alpha: Tensor) -> Mix:
        """Return the op weights of a group for a forward pass.

        Args:
            network: holds further parameters; methods sample at random in its train mode, but not in eval mode.
            group: the name of the group of rows.
            alpha: [rows, ops], with MASKED for pruned and dropped ops.
        """
        return Mix(alpha.softmax(dim=-1))

    def connect(self, network: Supernet, group: str, mix: Mix) -> Mix:
        """Return a mix with all that edges do besides weighting ops: edge weights, channels that bypass ops, and more.

        Args:
            network: holds further parameters.
            group: the name of the group of rows.
            mix: the op weights, as `relax` made them or as a perturbation left them.
        """
        return mix

    def penalty(self, network: Supernet) -> Tensor | None:
        """Return a scalar that the alpha step adds to the loss, or None.

        It must depend on the architecture parameters only. Add it to that of `super()` by `plus`.
        """
        return None

    # Derivation of the architecture.

    @torch.no_grad()
    def scores(self, network: Supernet) -> dict[str, Tensor]:
        """Return the strength of each candidate [rows, ops] in each group; 0 for pruned ones."""
        found = {}
        for group, alpha in network.alphas.items():
            alpha = alpha.cpu()
            score = self.strength(network, group, self.masked(group, alpha))
            found[group] = score if self.kept is None else score.masked_fill(~self.kept[group], 0)
        return found

    def masked(self, group: str, alpha: Tensor) -> Tensor:
        """Return the alphas of a group with MASKED for pruned ops."""
        return alpha if self.kept is None else alpha.masked_fill(~self.kept[group].to(alpha.device), MASKED)

    def strength(self, network: Supernet, group: str, alpha: Tensor) -> Tensor:
        """Return the `scores` of one group, from its alphas on the CPU."""
        return alpha.softmax(dim=-1)

    def ranking(self, network: Supernet, group: str, score: Tensor) -> Tensor:
        """Return the values [rows, ops] by which ops and edges of a group are ranked, given its scores `score`."""
        return score

    @torch.no_grad()
    def genotype(self, network: Supernet) -> Any:
        """Return the discrete architecture of the current alphas."""
        scores = self.scores(network)
        if self.kept is not None:  # rank pruned ops below skips that max_skips removes
            scores = {group: score.masked_fill(~self.kept[group], -math.inf) for group, score in scores.items()}
        ranking = partial(self.ranking, network)
        return network.derive(scores, replace(self.choice, max_skips=self.config.max_skips, ranking=ranking))

    def edge_weights(self, network: Supernet) -> dict[str, Tensor]:
        """Return the weight of each edge [edges] in each group; empty if the method has no edge weights."""
        return {}

    def discrete(self, network: Supernet, architecture: Any) -> Mixes:
        """Return the op weights with which the search network computes an architecture."""
        return network.mixes_of(architecture)

    # End of an epoch.

    def end_epoch(self, state: RunningSearch, metrics: dict[str, Any]) -> None:
        """Update the method after an epoch has been measured; set `stopped` to end the search."""
        limit = self.config.prune_below * (self.epoch + 1) / self.config.epochs
        if limit and self.alphas_move():
            self.kept = prune(self.kept, self.scores(state.network), state.network.groups, limit)

    def between_epochs(self, state: RunningSearch) -> None:
        """Inspect the search before the next epoch begins; a method may load an earlier state into it."""

    def metrics(self, network: Supernet) -> dict[str, Any]:
        """Return numbers, or lists with a number per edge, for metrics.jsonl and the report."""
        return {"ops_left": sum(int(kept.sum()) for kept in self.kept.values())} if self.kept else {}

    def result(self, state: RunningSearch) -> Any:
        """Return the architecture that the search found, after it has ended."""
        return self.genotype(state.network)

    def state_dict(self) -> dict[str, Any]:
        """Return what changes during a run, as tensors and plain values."""
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
    """Raise a ValueError if `config.alpha_warmup` leaves none of `epochs` epochs in which alphas are trained.

    `what` names the epochs in the message.
    """
    if config.alpha_warmup and round(config.alpha_warmup * epochs) >= epochs:
        raise ValueError(
            f"alpha_warmup must be below {1 - 0.5 / epochs:.4g} to leave one of {epochs} {what} in which alphas move; "
            f"got {config.alpha_warmup}"
        )


def plus(one: Tensor | None, other: Tensor) -> Tensor:
    """Return the sum of two penalties, of which the first may be missing."""
    return other if one is None else one + other


def search_network(step: SearchStep) -> Supernet:
    """Return the network of `step`, which is a Supernet when a search method runs."""
    assert isinstance(step.network, Supernet)
    return step.network
