"""Random search with weight sharing (Li and Talwalkar, UAI 2019, arXiv:1902.07638).

Every batch trains a random architecture inside the search network; alphas are not trained. At the end random
architectures are ranked by their accuracy with the shared weights. With `--epochs 1 --method-options cells=1` the
result is a purely random architecture.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastdarts.bilevel.step import Level
from fastdarts.config.search_options import SearchOptions
from fastdarts.methods.method import Method, MethodOptions, Settings, hyper
from fastdarts.methods.running import RunningSearch
from fastdarts.mixed.mix import Mix
from fastdarts.spaces.supernet import Supernet


@dataclass(frozen=True, kw_only=True)
class RandomOptions(MethodOptions):
    """Define the hyper-parameters of random search; the paper scores 1000 cells and more."""

    cells: int = hyper("number of random cells scored at the end", 100, at_least=1)
    batches: int = hyper("validation batches on which each of them is scored", 10, at_least=1)
    finalists: int = hyper("number of the best that are scored again, on all validation images", 10, at_least=1)


class Random(Method):
    """Sample architectures uniformly: two predecessors of each node, any op (also `none`) on both edges."""

    Options = RandomOptions
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

    def result(self, state: RunningSearch) -> Any:
        """Return the best of the random architectures; change nothing, so that a second call returns the same."""
        options, everything = self.options, state.validation
        assert everything is not None  # what is meant for alphas ranks the architectures
        generator = torch.Generator()
        generator.set_state(self.generator.get_state())
        some = state.first_batches(options.batches)

        def score(architecture: Any, data: Any) -> float:
            with state.network.mixing(self.discrete(state.network, architecture)):
                loss, accuracy = state.measure(data, lambda: None)
            return -loss if math.isnan(accuracy) else accuracy  # NaN if the targets are not classes

        cells = [state.network.random(generator, state.config.max_skips) for _ in range(options.cells)]
        ranked = sorted(cells, key=lambda genotype: -score(genotype, some))
        return max(ranked[: options.finalists], key=lambda genotype: score(genotype, everything))
