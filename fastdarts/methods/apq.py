"""APQ: search layers, widths and bits together (Wang et al., CVPR 2020, arXiv:2006.08509).

A predictor of accuracy is fitted to networks in floats, which the trained search network gives without training, then
fitted on to a few networks of few bits. Evolution breeds networks for predicted accuracy under a limit of bit
operations; the finalists are measured.

Differences from the paper and the authors' code: their search scores each candidate as if all bits were 8, ours shows
the predictor the bits. Networks of few bits are measured as they are cut out and calibrated, not fine-tuned (0.2 GPU
hours each in the paper). Depths mutate, too, and all random networks seed the population. The limit of a weight is a
share of its layer's largest one, chosen by calibration, and moves with it in fine-tuning; theirs keeps the value of the
first pass. At few bits calibration takes the range of least squared error, theirs that of least KL divergence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdarts.bilevel.statistics import kept_statistics
from fastdarts.data.images import in_order
from fastdarts.methods.bit_draws import BitDraws
from fastdarts.methods.bit_predictor import BitPredictor
from fastdarts.methods.one_shot import OneShot
from fastdarts.methods.running import RunningSearch
from fastdarts.methods.samplers import Limit, evolve
from fastdarts.methods.scored import Scored, best_within
from fastdarts.spaces.layerwise.architecture import LayerChoices
from fastdarts.spaces.layerwise.discrete import LayerwiseNetwork
from fastdarts.spaces.layerwise.encoding import Encoding
from fastdarts.spaces.layerwise.quantisers import calibrate
from fastdarts.spaces.layerwise.supernet import LayerwiseSupernet
from fastdarts.tasks.classification import count_correct


@dataclass(frozen=True)
class BitSearch:
    """Find a network of few bits in a trained search network.

    Attributes:
        method: the search's, whose options count: predictor (networks in floats), cells, population, mutation,
            finalists, batches, recalibrate.
        state: the search.
        network: its search network.
        images: of one batch by which quantisers are calibrated, normalised.
        limit: of what is found.
    """

    method: OneShot
    state: RunningSearch
    network: LayerwiseSupernet
    images: Tensor
    limit: Limit

    def found(self, measured: int) -> Scored:
        """Return the best network within the limit, or the cheapest of the finalists, with its measured accuracy.

        Args:
            measured: networks of few bits whose accuracies the predictor is shown.
        """
        options, seed = self.method.options, self.state.config.seed
        some = self.state.first_batches(options.batches)
        draws = BitDraws(self.network, torch.Generator().manual_seed(seed), self.state.config.max_skips, self.limit)
        with kept_statistics(self.network):
            predict = self.predictor(draws, some, measured).predict

            def predicted(architecture: LayerChoices) -> Scored:
                return Scored(architecture, predict(architecture), self.limit.cost(architecture))

            bred = evolve(draws, predicted, self.ordered, options.cells, options.population, options.mutation)
            best = [one.architecture for one in self.ordered(bred)[: options.finalists]]
            return best_within([self.measured(one, self.state.validation) for one in best], self.limit.most)

    def predictor(self, draws: BitDraws, data: Any, measured: int) -> BitPredictor:
        """Return a predictor that is fitted to `measured` networks of few bits, after those in floats."""
        model = BitPredictor(Encoding(self.network.choices), self.state.config.seed)
        floats = [draws.random().in_floats() for _ in range(self.method.options.predictor)]
        model.fit([self.measured(one, data) for one in floats])
        model.fit_bits([self.measured(draws.random(), data) for _ in range(measured)])
        return model

    def ordered(self, scored: Sequence[Scored]) -> list[Scored]:
        """Return networks with the best first, those above the limit last."""
        return sorted(scored, key=lambda one: ((one.cost or 0.0) > self.limit.most, -one.score))

    @torch.no_grad()
    def measured(self, architecture: LayerChoices, data: Any) -> Scored:
        """Return the accuracy of a network on images, with batch norms averaged for it and quantisers calibrated."""
        network, correct = self.cut(architecture), 0.0
        for images, targets in in_order(data, self.state.config.batch_size):
            correct += float(count_correct(network(self.state.augment.normalise(images)), targets))
        cost = self.limit.cost(architecture) if architecture.bits else None
        return Scored(architecture, correct / len(data), cost)

    def cut(self, architecture: LayerChoices) -> LayerwiseNetwork:
        """Return a network in eval mode with the search network's weights; batch norms and ranges are its own."""
        floats = architecture.in_floats()
        with kept_statistics(self.network):
            with self.network.mixing(self.method.discrete(self.network, floats)):
                self.state.recalibrate(max(1, self.method.options.recalibrate))
            network = self.network.cut(architecture).eval()
        calibrate(network, self.images)
        return network
