"""The search network of a chain whose choices share weights, and samples of its parts."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import TypeVar

import torch

from fastdarts.spaces.elastic import Sides
from fastdarts.spaces.layerwise.architecture import LayerChoices
from fastdarts.spaces.layerwise.chain import SKIP, Chain, parse_block, sides_of
from fastdarts.spaces.layerwise.elastic import ElasticLayer
from fastdarts.spaces.layerwise.supernet import LayerwiseSupernet

_T = TypeVar("_T")


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

        def pick(values: Sequence[_T]) -> _T:
            return values[int(torch.randint(len(values), (), generator=generator))]

        names: list[str] = []
        for stage in range(self._stages[-1] + 1):
            layers = self._stages.count(stage)
            depth = pick(range(min(sides.least, layers), layers + 1))
            kept = range(len(names), len(names) + depth)
            names += [f"k{pick(sides.kernels)} e{pick(self._expansions(at, sides))}" for at in kept]
            names += [SKIP] * (layers - depth)
        return self.architecture(names)

    def _expansions(self, layer: int, sides: Sides) -> list[int | Fraction]:
        """Return the expansions of a layer from the smallest to the largest of `sides`."""
        own = {parse_block(name)[1] for name in self.choices[layer] if name != SKIP}
        return sorted(ratio for ratio in own if sides.expansions[0] <= ratio <= sides.expansions[-1])

    def random(self, generator: torch.Generator, max_skips: int | None = None) -> LayerChoices:
        while True:
            drawn = self.draw(self.sides, generator)
            if max_skips is None or drawn.skips() <= max_skips:
                return drawn

    def largest(self) -> LayerChoices:
        """Return the part that is the whole network."""
        return self.architecture([f"k{self.sides.kernels[-1]} e{self.sides.expansions[-1]}"] * len(self._stages))

    def smallest(self, sides: Sides) -> LayerChoices:
        """Return the smallest of the parts that `draw` draws."""
        name = f"k{sides.kernels[0]} e{sides.expansions[0]}"
        places = [self._stages[:at].count(stage) for at, stage in enumerate(self._stages)]
        return self.architecture([name if place < sides.least else SKIP for place in places])

    def sort_channels(self, shared: Sequence[int]) -> None:
        """Sort the channels inside all blocks by importance, see `ElasticResidual.sort_channels`."""
        for layer in self._layers():
            assert isinstance(layer, ElasticLayer)
            layer.shared.sort_channels(shared)
