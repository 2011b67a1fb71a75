"""The search network of a chain whose choices share weights, and samples of its parts."""

from collections.abc import Iterable, Sequence

import torch

from fastdarts.spaces.elastic import Sides
from fastdarts.spaces.layerwise.architecture import LayerChoices
from fastdarts.spaces.layerwise.chain import SKIP, Chain, sides_of
from fastdarts.spaces.layerwise.elastic import ElasticLayer
from fastdarts.spaces.layerwise.supernet import LayerwiseSupernet


class ElasticSupernet(LayerwiseSupernet):
    """Hold a network of which each architecture is a part (Cai et al., ICLR 2020).

    A part has the first layers of each stage, the first channels inside each block and the centre of its kernel. See
    `LayerwiseSupernet` for the arguments.
    """

    sides: Sides
    deepest: int

    def _make_layers(self, chain: Chain) -> Iterable[ElasticLayer]:
        self.deepest = max(stage.layers for stage in chain.stages)
        self.sides = Sides(*sides_of(chain.blocks), min(chain.least, self.deepest))
        return [ElasticLayer(layer, chain, fused=False) for layer in chain.layers()]

    def draw(self, sides: Sides, generator: torch.Generator) -> LayerChoices:
        """Draw a part: the depth of each stage, the kernel and expansion of each layer, all uniformly."""

        def pick(values: Sequence[int]) -> int:
            return values[int(torch.randint(len(values), (), generator=generator))]

        names = []
        for stage in range(self._stages[-1] + 1):
            layers = self._stages.count(stage)
            depth = pick(range(min(sides.least, layers), layers + 1))
            names += [f"k{pick(sides.kernels)} e{pick(sides.expansions)}" for _ in range(depth)]
            names += [SKIP] * (layers - depth)
        return self._architecture(names)

    def random(self, generator: torch.Generator, max_skips: int | None = None) -> LayerChoices:
        while True:
            drawn = self.draw(self.sides, generator)
            if max_skips is None or drawn.skips() <= max_skips:
                return drawn

    def largest(self) -> LayerChoices:
        """Return the part that is the whole network."""
        return self._architecture([f"k{self.sides.kernels[-1]} e{self.sides.expansions[-1]}"] * len(self._stages))

    def smallest(self, sides: Sides) -> LayerChoices:
        """Return the smallest of the parts that `draw` draws."""
        name = f"k{sides.kernels[0]} e{sides.expansions[0]}"
        places = [self._stages[:at].count(stage) for at, stage in enumerate(self._stages)]
        return self._architecture([name if place < sides.least else SKIP for place in places])

    def sort_channels(self, shared: Sequence[int]) -> None:
        """Sort the channels inside all blocks by importance, see `ElasticResidual.sort_channels`."""
        for layer in self._layers():
            assert isinstance(layer, ElasticLayer)
            layer.shared.sort_channels(shared)
