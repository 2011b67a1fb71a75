"""Random search with weight sharing (Li and Talwalkar, UAI 2019, arXiv:1902.07638).

Every batch trains a pair of random cells inside the search network; no alphas move. At the end random cells are
ranked by their accuracy with the shared weights. With `--epochs 1 --method-options cells=1` the result is a plain
random cell.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastdarts.bilevel.step import Level
from fastdarts.config.search_options import SearchOptions
from fastdarts.data import ImageData
from fastdarts.methods.method import Method, MethodOptions, Settings, hyper
from fastdarts.methods.running import RunningSearch
from fastdarts.mixed.mix import Mix
from fastdarts.spaces.supernet import Supernet


@dataclass(frozen=True, kw_only=True)
class RandomOptions(MethodOptions):
    """The paper scores 1000 cells and more."""

    cells: int = hyper("random cells that are scored at the end", 100, at_least=1)
    batches: int = hyper("validation batches that each is scored on", 10, at_least=1)
    finalists: int = hyper("of them are scored again, on all validation images", 10, at_least=1)


class Random(Method):
    """Uniform cells: two predecessors of each node, any op (`none`, too) on both edges."""

    Options = RandomOptions
    settings: ClassVar[Settings] = {"order": 1}
    level: Level = "weights"
    sparse = True
    capturable = False  # which ops run is drawn on the host

    def __init__(self, config: SearchOptions) -> None:
        super().__init__(config)
        self._measured = torch.Generator()

    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        self._measured.manual_seed(epoch)

    def relax(self, network: Supernet, group: str, alpha: Tensor) -> Mix:
        """Draw an architecture; when the network is measured, from the epoch's own generator, one for each batch."""
        drawn = network.random(self.generator if network.training else self._measured)
        return self.discrete(network, drawn)[group]

    def genotype(self, network: Supernet) -> Any:
        """Return a random architecture, as good as any before the search has ended."""
        return network.random(torch.Generator().manual_seed(self.epoch), self.config.max_skips)

    def result(self, state: RunningSearch) -> Any:
        """The best of the random cells. Changes nothing: asked again, it gives the same."""
        options, images = self.options, state.validation
        assert images is not None  # two halves: the alphas', which no alpha uses, rank the cells
        generator = torch.Generator()
        generator.set_state(self.generator.get_state())
        some = images.subset(torch.arange(min(options.batches * state.config.batch_size, len(images))))

        def score(architecture: Any, data: ImageData) -> float:
            with state.network.mixing(self.discrete(state.network, architecture)):
                loss, accuracy = state.measure(data, lambda: None)
            return -loss if math.isnan(accuracy) else accuracy  # targets that are no classes

        cells = [state.network.random(generator, state.config.max_skips) for _ in range(options.cells)]
        ranked = sorted(cells, key=lambda genotype: -score(genotype, some))
        return max(ranked[: options.finalists], key=lambda genotype: score(genotype, images))
