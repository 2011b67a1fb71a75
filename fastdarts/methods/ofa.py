"""Once-for-all: one network of which all others are parts (Cai et al., ICLR 2020, arXiv:1908.09791).

Progressive shrinking trains the whole network first, then also smaller kernels, then
shallower stages, then fewer channels inside the blocks, one more choice a phase. The whole network of the first phase,
frozen, teaches in all later ones: the loss of a part is that of the labels plus the cross entropy to the teacher's
probabilities. A step sums the gradients of one part (kernels), two (depth) or four (width) on one batch. Before a phase
of width the channels are sorted by importance, so that the first ones matter most; channels that a smaller width has
been trained with stay the first. With `sizes` each step resizes its batch to one of several sides. At the end parts
are scored, with batch norms averaged anew for each, and bred for accuracy and cost; a predictor of accuracy may stand
in for most scores. `fastdarts specialise` finds parts under other costs, without training.

Differences from the paper and the authors' code: phases are shares of `epochs` (the paper's 180, 125, 25 + 125 and
25 + 125); their rates are shares of `lr` (1, 0.4, 1/30, 1/10; the last three are the authors' in proportion, the first
is ours: their code does not train the whole network). Labels are not smoothed, there is no dropout, and weight decay
includes biases and batch norms. The channels inside squeeze and excitation keep their sets as those of the block do
(theirs are sorted freely, which changes the smaller widths). The predictor reads the choices of each layer, not the
image size. The teacher's running statistics stay as they are; it normalises by the batch, as theirs.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate
from torch.optim import Optimizer

from fastdarts.bilevel.statistics import kept_statistics
from fastdarts.bilevel.step import SearchStep, TrainPass
from fastdarts.config.search_options import SearchOptions
from fastdarts.data.share import like, weight_of
from fastdarts.methods.method import Settings, hyper, search_network
from fastdarts.methods.one_shot import OneShot, OneShotOptions, Sampler, summed
from fastdarts.methods.running import RunningSearch
from fastdarts.methods.schedules import cosine
from fastdarts.methods.shrinking import Phase, lengths, phases_of
from fastdarts.spaces.elastic import Elastic
from fastdarts.spaces.space import Feature
from fastdarts.spaces.supernet import Mixes, Supernet
from fastdarts.tasks.task import Batch, autocast

_WARM = 25  # a long phase of 125 epochs begins with 5 of rising rate


@dataclass(frozen=True, kw_only=True)
class OfaOptions(OneShotOptions):
    """Define the hyper-parameters of Once-for-all."""

    distillation: float = hyper("weight of the teacher's loss beside that of the labels", 1.0, at_least=0)
    sizes: tuple[int, ...] | None = hyper("sides of the training images, of which each step takes one", None)
    sampler: Sampler = hyper("as of random search", "auto")
    recalibrate: int = hyper(
        "training batches over which the batch norms of each architecture are averaged (0: leave them)", 4, at_least=0
    )


class Ofa(OneShot):
    """Shrink one network progressively; score its parts."""

    Options = OfaOptions
    settings: ClassVar[Settings] = {"order": 1, "cost": "flops", "epochs": 16}
    published: ClassVar[Settings] = {"epochs": 605, "lr": 0.075, "lr_min": 0.0, "weight_decay": 3e-5}
    needs: ClassVar[frozenset[Feature]] = frozenset({"elastic layers"})

    def __init__(self, config: SearchOptions) -> None:
        super().__init__(config)
        self.phases: list[Phase] = []
        self._ends: list[int] = []
        self._entered = 0
        self._teacher: Supernet | None = None
        self._saved: Mapping[str, Tensor] | None = None
        self._soft: Tensor | None = None
        self._share = 1.0
        self._accuracies: dict[str, float] = {}

    @classmethod
    def check(cls, config: SearchOptions) -> None:
        super().check(config)
        sizes = config.method_options["sizes"]
        if sizes is not None and min(sizes) < 1:
            raise ValueError(f"method_options: sizes must be at least 1; got {list(sizes)}")

    def attach(self, network: Supernet) -> None:
        super().attach(network)
        elastic = _elastic(network)
        self.phases = phases_of(elastic.sides, elastic.deepest)
        self._ends = lengths(self.phases, self.config.epochs)

    def weight_optimizer(self, network: Supernet) -> Optimizer:
        return self.nesterov(network)

    @property
    def _at(self) -> int:
        """Return the number of the phase that this epoch is in."""
        return next((at for at, end in enumerate(self._ends) if self.epoch < end), len(self._ends) - 1)

    @property
    def phase(self) -> Phase:
        """Return the phase that this epoch is in."""
        return self.phases[self._at]

    def learning_rate(self) -> float:
        at = self._at
        start = self._ends[at - 1] if at else 0
        epochs, epoch = self._ends[at] - start, self.epoch - start
        warm = epochs // _WARM if at and self.phase.long else 0
        rate = self.phase.rate * self.config.lr
        if epoch < warm:
            return rate * (epoch + 1) / (warm + 1)
        return cosine(rate, self.phase.rate * self.config.lr_min, epoch - warm, epochs - warm)

    def mixes(self, network: Supernet) -> Mixes:
        """Draw a part of the phase; in eval mode from a generator of its own that is seeded by the epoch."""
        generator = self.generator if network.training else self._measured
        return self.discrete(network, _elastic(network).draw(self.phase.sides, generator))

    def weight_gradients(self, step: SearchStep, train: Batch) -> TrainPass:
        if self._entered != self._at:
            self._enter(step)
        train = self._resized(train)
        self._share = weight_of(train)
        self._soft = self._taught(step, train[0])
        try:
            return summed([step.train_pass(train) for _ in range(self.phase.parts)])
        finally:
            self._soft = None

    def weight_penalty(self, outputs: Tensor) -> Tensor | None:
        if self._soft is None:
            return None
        return self.options.distillation * self._share * cross_entropy(outputs, self._soft)

    def _enter(self, step: SearchStep) -> None:
        """Begin a phase: the first one after the whole network's takes that as the teacher, those of width sort."""
        network = search_network(step)
        if self._entered == 0:
            self._saved = {name: weight.detach().clone() for name, weight in network.named_parameters()}
            self._teacher = None
        if self.phase.shared is not None:
            _elastic(network).sort_channels(self.phase.shared)
        step.w_optimizer.state.clear()  # momentum of before, whose channels had another order
        self._entered = self._at

    @torch.no_grad()
    def _taught(self, step: SearchStep, images: Tensor) -> Tensor | None:
        """Return the teacher's probabilities [N, classes]; None while there is none."""
        if self._saved is None:
            return None
        if self._teacher is None:
            self._teacher = self._built(search_network(step), self._saved)
        with self._teacher.frozen_statistics(), autocast(images, step.architect.amp_dtype):
            probabilities: Tensor = self._teacher(images).softmax(1)
        return probabilities

    def _built(self, network: Supernet, weights: Mapping[str, Tensor]) -> Supernet:
        """Return a copy of the whole network, in train mode, with these weights."""
        with network.mixing(self.discrete(network, _elastic(network).largest())):
            teacher = copy.deepcopy(network)
        for name, weight in teacher.named_parameters():
            weight.data.copy_(weights[name])
        return teacher.requires_grad_(False).train()

    def _resized(self, train: Batch) -> Batch:
        if self.options.sizes is None:
            return train
        side = self.options.sizes[int(torch.randint(len(self.options.sizes), (), generator=self.generator))]
        images = interpolate(train[0], (side, side), mode="bilinear", antialias=True)
        return like(train, (images, *train[1:]))

    def genotype(self, network: Supernet) -> Any:
        """Return the whole network, which every phase keeps; parts are compared at the end."""
        return _elastic(network).largest()

    def end_epoch(self, state: RunningSearch, metrics: dict[str, Any]) -> None:
        """Measure the largest and the smallest part of the phase, with batch norms averaged for each."""
        super().end_epoch(state, metrics)
        network = _elastic(state.network)
        some = state.first_batches(self.options.batches)
        parts = {"largest": network.largest(), "smallest": network.smallest(self.phase.sides)}
        with kept_statistics(state.network):
            self._accuracies = {name: self._score(state, part, some).score for name, part in parts.items()}

    def metrics(self, network: Supernet) -> dict[str, Any]:
        return super().metrics(network) | {"phase": self._at, **self._accuracies}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"entered": self._entered, "teacher": self._saved}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._entered, self._saved, self._teacher = state["entered"], state["teacher"], None


def _elastic(network: Supernet) -> Elastic:
    return cast(Elastic, network)
