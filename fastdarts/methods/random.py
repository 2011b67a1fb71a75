"""Random search with weight sharing (Li and Talwalkar, UAI 2019, arXiv:1902.07638).

Every batch trains a pair of random cells inside the search network; no alphas move. At the end random cells are
ranked by their accuracy with the shared weights. With `--epochs 1 --method-options cells=1` the result is a plain
random cell.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastdarts.bilevel.step import Level
from fastdarts.config.search_options import SearchOptions
from fastdarts.data import ImageData
from fastdarts.methods.method import Method, MethodOptions, Settings, hyper
from fastdarts.methods.running import RunningSearch
from fastdarts.spaces.darts import derivation
from fastdarts.spaces.darts.genotype import Genotype, Pairs, edges_of
from fastdarts.spaces.darts.supernet import Mix, SearchNetwork


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

    def relax(self, network: SearchNetwork, cell: int, alpha: Tensor) -> Mix:
        """A random cell; when the network is measured, cells of the epoch's own, another for each batch."""
        drawn = draw(network, self.generator if network.training else self._measured)
        return self.discrete(network, drawn)[cell]

    def genotype(self, network: SearchNetwork) -> Genotype:
        """A random cell, as good as any before the search has ended."""
        return draw(network, torch.Generator().manual_seed(self.epoch), self.config.max_skips)

    def result(self, state: RunningSearch) -> Genotype:
        """The best of the random cells. Changes nothing: asked again, it gives the same."""
        options, images = self.options, state.validation
        assert images is not None  # two halves: the alphas', which no alpha uses, rank the cells
        generator = torch.Generator()
        generator.set_state(self.generator.get_state())
        some = images.subset(torch.arange(min(options.batches * state.config.batch_size, len(images))))

        def score(genotype: Genotype, data: ImageData) -> float:
            with state.network.mixing(self.discrete(state.network, genotype)):
                loss, accuracy = state.measure(data, lambda: None)
            return -loss if math.isnan(accuracy) else accuracy  # targets that are no classes

        cells = [draw(state.network, generator, state.config.max_skips) for _ in range(options.cells)]
        ranked = sorted(cells, key=lambda genotype: -score(genotype, some))
        return max(ranked[: options.finalists], key=lambda genotype: score(genotype, images))


def draw(network: SearchNetwork, generator: torch.Generator, max_skips: int | None = None) -> Genotype:
    """A uniformly random genotype of the network's candidates, normal and reduction cell apart; of those whose normal
    cell has at most `max_skips` skip connections."""
    while True:
        cells = []
        for names in network.candidates:
            pairs: Pairs = []
            edges = edges_of(network.steps)
            for state in range(2, 2 + network.steps):
                for source in torch.randperm(state, generator=generator)[:2].sort().values.tolist():
                    row = names[edges.index((source, state))]
                    pairs.append((row[int(torch.randint(len(row), (), generator=generator))], source))
            cells.append(pairs)
        genotype = Genotype(cells[0], network.concat(), cells[1], network.concat())
        if max_skips is None or derivation.skips(genotype.nodes("normal")) <= max_skips:
            return genotype
