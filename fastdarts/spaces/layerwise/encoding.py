"""Write networks of a chain as ones among zeros, for predictors of accuracy (Wang et al., CVPR 2020)."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from fastdarts.spaces.layerwise.architecture import LayerChoices
from fastdarts.spaces.layerwise.bits import BITS, ROLES
from fastdarts.spaces.layerwise.chain import SKIP, parse_block


class Encoding:
    """Encode the kernel and the width of each layer, and its bits.

    Layers that are left out are all zeros.

    Args:
        choices: the names of the choices of each layer.
    """

    def __init__(self, choices: Sequence[Sequence[str]]) -> None:
        shapes = [[parse_block(name) for name in names if name != SKIP] for names in choices]
        self._kernels = [sorted({kernel for kernel, _, _ in layer}) for layer in shapes]
        self._widths = [sorted({one[1:] for one in layer}) for layer in shapes]
        self.size = sum(map(len, self._kernels)) + sum(map(len, self._widths))
        """Numbers of an architecture without its bits."""
        self.bits = len(choices) * ROLES * len(BITS)
        """Numbers of the bits."""

    def layers(self, architecture: LayerChoices) -> Tensor:
        """Return kernels and widths: [size], float32."""
        ones: list[bool] = []
        for name, kernels, widths in zip(architecture.layers, self._kernels, self._widths, strict=True):
            kernel, *width = (0, 0, 0) if name == SKIP else parse_block(name)
            ones += _hot(kernel, kernels) + _hot(tuple(width), widths)
        return torch.tensor(ones, dtype=torch.float32)

    def bits_of(self, architecture: LayerChoices) -> Tensor:
        """Return the bits of all layers: [bits], float32."""
        ones = [digit == one for four in architecture.bits for digit in four or ROLES * " " for one in BITS]
        return torch.tensor(ones, dtype=torch.float32)


def _hot(value: Hashable, values: Sequence[Hashable]) -> list[bool]:
    return [value == one for one in values]
