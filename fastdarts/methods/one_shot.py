"""Bases of the methods that train architectures inside the search network and rank others with its weights."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fastdarts.bilevel.statistics import kept_statistics
from fastdarts.bilevel.step import Level, TrainPass
from fastdarts.config.search_options import SearchOptions
from fastdarts.methods import nsga2, predictor
from fastdarts.methods.method import Method, MethodOptions, Settings, hyper
from fastdarts.methods.running import RunningSearch
from fastdarts.methods.samplers import Draws, Limit, Score, check_enumerable, everything, evolve
from fastdarts.methods.scored import Scored, best_within, pareto_front
from fastdarts.mixed.mix import Mix
from fastdarts.spaces.supernet import Supernet

Sampler = Literal["auto", "random", "enumeration", "evolution", "nsga2"]


@dataclass(frozen=True, kw_only=True)
class OneShotOptions(MethodOptions):
    """Define how architectures are ranked at the end."""

    sampler: Sampler = hyper(
        "architectures that are scored: random ones, all, those that evolution breeds for accuracy, or by NSGA-II for "
        "accuracy and cost; auto: nsga2, or evolution where there is no cost or no package pymoo",
        "random",
    )
    cells: int = hyper("number of architectures scored at the end (enumeration: all)", 100, at_least=1)
    batches: int = hyper("validation batches on which each of them is scored", 10, at_least=1)
    finalists: int = hyper("number of the best that are scored again, on all validation images", 10, at_least=1)
    recalibrate: int = hyper(
        "training batches over which the batch norms of each are averaged before it is scored (0: leave them)",
        0,
        at_least=0,
    )
    population: int = hyper("size of a generation of evolution and nsga2", 20, at_least=2)
    predictor: int = hyper(
        "random architectures to whose scores a predictor is fitted, which then scores in their place in evolution and "
        "nsga2; the finalists are scored (0: no predictor)",
        0,
        at_least=0,
    )
    mutation: float = hyper("share of the rows that a mutation draws anew", 0.1, above=0, at_most=1)


class SinglePath(Method):
    """Train the weights of sampled architectures, with no alphas. A subclass says in `result` which one is the best."""

    settings: ClassVar[Settings] = {"order": 1}
    level: Level = "weights"
    sparse = True
    capturable = False  # the host samples which ops run

    def __init__(self, config: SearchOptions) -> None:
        super().__init__(config)
        self._measured = torch.Generator()

    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        self._measured.manual_seed(epoch)

    def relax(self, network: Supernet, group: str, alpha: Tensor) -> Mix:
        """Sample an architecture and return its op weights.

        In eval mode the samples, one for each batch, come from a separate generator that is seeded by the epoch.
        """
        drawn = network.random(self.generator if network.training else self._measured)
        return self.discrete(network, drawn)[group]

    def genotype(self, network: Supernet) -> Any:
        """Return a random architecture, seeded by the epoch: before the search ends no architecture is preferred."""
        return network.random(torch.Generator().manual_seed(self.epoch), self.config.max_skips)


class OneShot(SinglePath):
    """Derive by scoring sampled architectures with the weights. A subclass samples in `relax`."""

    Options = OneShotOptions

    def __init__(self, config: SearchOptions) -> None:
        super().__init__(config)
        self.sampler = self.sampler_of(config)

    @classmethod
    def check(cls, config: SearchOptions) -> None:
        super().check(config)
        if config.method_options["predictor"] and cls.sampler_of(config) in ("random", "enumeration"):
            raise ValueError("predictor is for sampler=evolution and nsga2, which choose what is scored next")
        if cls.sampler_of(config) == "nsga2":
            if config.cost is None:
                raise ValueError(
                    "sampler 'nsga2' weighs accuracy against cost, which is not given: add cost=flops (params, a "
                    "table), or take sampler=evolution"
                )
            nsga2.check_installed()

    @classmethod
    def sampler_of(cls, config: SearchOptions) -> str:
        """Return the name of the sampler that ranks at the end."""
        given = str(config.method_options["sampler"])
        if given != "auto":
            return given
        return "nsga2" if config.cost is not None and nsga2.installed() else "evolution"

    def attach(self, network: Supernet) -> None:
        super().attach(network)
        if self.sampler == "enumeration":
            check_enumerable(network)

    def result(self, state: RunningSearch) -> Any:
        """Return the best architecture; change nothing of the search, so that a second call returns the same.

        The finalists are the best of those sampled, or those that no other beats in both accuracy and cost. Compared
        are all that were measured, not those that a predictor scored.
        """
        options, limit = self.options, self.config.cost_target
        some = state.first_batches(options.batches)
        scored: list[Scored] = []

        def score(architecture: Any) -> Scored:
            scored.append(self._score(state, architecture, some))
            return scored[-1]

        with kept_statistics(state.network):
            found = self._sampled(state, score)
            if self.sampler == "nsga2":
                finalists = pareto_front(found)
            else:
                finalists = _best_first(found, limit)[: options.finalists]
            final = [self._score(state, one.architecture, state.validation) for one in finalists]
        latest = {one.architecture.to_json(): one for one in (*scored, *final)}
        self.compared = list(latest.values())
        return best_within(final, limit).architecture

    def _sampled(self, state: RunningSearch, score: Callable[[Any], Scored]) -> list[Scored]:
        options, network = self.options, state.network
        generator = torch.Generator()
        generator.set_state(self.generator.get_state())
        draws = Draws(network, generator, self.config.max_skips, self._limit(state))
        if self.sampler == "random":
            return [score(draws.random()) for _ in range(options.cells)]
        if self.sampler == "enumeration":
            return [score(architecture) for architecture in everything(network)]
        if options.predictor:
            score = self._predicted(state, draws, score)
        order = nsga2.by_front if self.sampler == "nsga2" else self._by_accuracy
        return evolve(draws, score, order, options.cells, options.population, options.mutation)

    def _predicted(self, state: RunningSearch, draws: Draws, score: Score) -> Score:
        """Return a score by a predictor, which is fitted to the scores of random architectures."""
        known = [score(draws.random()) for _ in range(self.options.predictor)]
        predicted = predictor.fit(state.network, known, self.config.seed)
        return lambda architecture: Scored(architecture, predicted(architecture), _cost(state, architecture))

    def _limit(self, state: RunningSearch) -> Limit | None:
        """Return the limit of what is sampled: the wanted cost, except where a whole front is wanted."""
        most = self.config.cost_target
        if most is None or state.costs is None or self.sampler == "nsga2":
            return None
        return Limit(partial(state.costs.of, state.network), most)

    def _by_accuracy(self, scored: Sequence[Scored]) -> list[Scored]:
        return _best_first(scored, self.config.cost_target)

    def _score(self, state: RunningSearch, architecture: Any, data: Any) -> Scored:
        with state.network.mixing(self.discrete(state.network, architecture)):
            if self.options.recalibrate:
                state.recalibrate(self.options.recalibrate)
            loss, accuracy = state.measure(data, lambda: None)
        return Scored(architecture, -loss if math.isnan(accuracy) else accuracy, _cost(state, architecture))


def _cost(state: RunningSearch, architecture: Any) -> float | None:
    """Return the cost of an architecture; None where the search has no costs."""
    return None if state.costs is None else state.costs.of(state.network, architecture)


def summed(passes: Sequence[TrainPass]) -> TrainPass:
    """Return passes of several architectures on one batch as one: the mean of losses, the sums of gradients."""
    loss = torch.stack([one.loss.detach() for one in passes]).mean()
    gradients = [_sum(terms) for terms in zip(*(one.gradients for one in passes), strict=True)]
    return TrainPass(loss, passes[-1].outputs, gradients)


def _sum(terms: Sequence[Tensor | None]) -> Tensor | None:
    """Return the sum of a weight's gradients; None if no pass used it."""
    known = [term for term in terms if term is not None]
    return torch.stack(known).sum(0) if known else None


def _best_first(scored: Sequence[Scored], limit: float | None) -> list[Scored]:
    """Return architectures by score; those above the limit of cost come last."""
    return sorted(scored, key=lambda one: (limit is not None and (one.cost or 0.0) > limit, -one.score))
