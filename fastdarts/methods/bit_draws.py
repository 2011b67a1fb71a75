"""Draw, cross and mutate networks of few bits."""

from dataclasses import dataclass
from typing import cast

import torch

from fastdarts.methods.samplers import Draws
from fastdarts.spaces.layerwise.architecture import LayerChoices
from fastdarts.spaces.layerwise.bits import BITS, ROLES, allowed
from fastdarts.spaces.layerwise.chain import SKIP
from fastdarts.spaces.layerwise.supernet import LayerwiseSupernet


@dataclass(frozen=True)
class BitDraws(Draws):
    """Draw architectures with bits of a search network of layers; see `Draws`."""

    def random(self) -> LayerChoices:
        found: LayerChoices = self._within(self._random())
        return found

    def crossed(self, first: LayerChoices, second: LayerChoices) -> LayerChoices:
        found: LayerChoices = self._within(self._crossed(first, second, 0.5))
        return found

    def _mutation(self, architecture: LayerChoices, share: float) -> LayerChoices:
        return self._crossed(architecture, self._random(), share)

    def _random(self) -> LayerChoices:
        network = self._network
        layers = network.random(self.generator, self.max_skips).layers
        return network.architecture(layers, [self._bits(name) for name in layers])

    def _crossed(self, first: LayerChoices, second: LayerChoices, share: float) -> LayerChoices:
        """Return `first` with about a `share` of its layers, bits included, from `second`."""
        taken = (torch.rand(len(first.layers), generator=self.generator) < share).tolist()
        pairs = [
            (second if theirs else first).layers[at : at + 1] + (second if theirs else first).bits[at : at + 1]
            for at, theirs in enumerate(taken)
        ]
        names, bits = zip(*pairs, strict=True)
        found = self._network.architecture(names, bits)
        return found if self.max_skips is None or found.skips() <= self.max_skips else first

    def _bits(self, name: str) -> str:
        """Draw the bits of a layer uniformly among those that its block allows."""
        if name == SKIP:
            return ""
        while True:
            drawn = torch.randint(len(BITS), (ROLES,), generator=self.generator).tolist()
            bits = "".join(BITS[index] for index in drawn)
            if allowed(name, bits):
                return bits

    @property
    def _network(self) -> LayerwiseSupernet:
        return cast(LayerwiseSupernet, self.network)
