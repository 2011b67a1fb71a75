"""Count bit operations of networks of few bits: multiply-adds times the bits of the weights and of the inputs."""

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastdarts.spaces.cost import Shape, places
from fastdarts.spaces.layerwise.architecture import LayerChoices
from fastdarts.spaces.layerwise.bits import allowed
from fastdarts.spaces.layerwise.blocks import ConvNorm, InvertedResidual
from fastdarts.spaces.layerwise.chain import SKIP
from fastdarts.spaces.layerwise.quantised import FIXED_BITS
from fastdarts.spaces.layerwise.supernet import LayerwiseSupernet

UNIT = "million bit operations"


class _Counts(NamedTuple):
    """Hold the multiply-adds of a block."""

    pointwise: int
    depthwise: int


_NOTHING = _Counts(0, 0)


class BitOps:
    """Count the bit operations of the networks of a space.

    Squeeze and excitation, which stays in floats, is not counted.

    Args:
        network: a search network with weights for each choice, on the meta device.
        image_shape: of its images, [1, C, H, W].
    """

    unit = UNIT

    def __init__(self, network: LayerwiseSupernet, image_shape: Shape) -> None:
        self._choices = network.choices
        self._layers: list[dict[str, _Counts]] = [{} for _ in self._choices]
        at = {place: index for index, place in enumerate(network.rows())}
        rest = 0

        def note(module: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
            nonlocal rest
            rest += _count(module, out.shape)

        outside = [part for name, part in network.named_modules() if not name.startswith("layers.")]
        handles = [m.register_forward_hook(note) for m in outside if isinstance(m, nn.Conv2d | nn.Linear)]
        for (group, row, _), place in places(network, image_shape):
            self._layers[at[group, row]][place.name] = _counts(place.op, place.shape, place.out)
        for handle in handles:
            handle.remove()
        self._rest = rest * FIXED_BITS**2

    def of(self, architecture: LayerChoices) -> float:
        """Return the bit operations of an architecture with bits, for one image, in millions."""
        total = self._rest
        for counts, name, bits in zip(self._layers, architecture.layers, architecture.bits, strict=True):
            first, second, third, fourth = (int(digit) for digit in bits or 4 * str(FIXED_BITS))
            pointwise, depthwise = counts.get(name, _NOTHING)
            total += pointwise * first * second + depthwise * third * fourth
        return total / 1e6

    def lowest(self) -> float:
        """Return the bit operations of the cheapest architecture, in millions."""
        total = self._rest
        for counts, names in zip(self._layers, self._choices, strict=True):
            costs = []
            for name in names:
                pointwise, depthwise = counts.get(name, _NOTHING)
                inputs = 4 if name == SKIP or allowed(name, "4444") else 6
                costs.append(pointwise * 4 * 4 + depthwise * 4 * inputs)
            total += min(costs)
        return total / 1e6


def _counts(op: nn.Module, shape: Shape, out: Shape) -> _Counts:
    if isinstance(op, InvertedResidual):
        pointwise = _count(op.conv_pw, shape) + _count(op.conv_pwl, out)
        return _Counts(pointwise, _count(op.conv_dw, out))
    return _Counts(_count(op.conv, out) if isinstance(op, ConvNorm) else 0, 0)


def _count(module: nn.Module, out: torch.Size | Shape) -> int:
    """Return the multiply-adds of a convolution or linear layer with output [1, C, ...]."""
    assert isinstance(module.weight, Tensor)
    return module.weight.numel() * prod(out[2:])
