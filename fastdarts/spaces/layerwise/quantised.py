"""Networks of a chain that compute with few bits."""

from collections.abc import Iterable

from torch import nn

from fastdarts.spaces.layerwise.blocks import ConvNorm, DepthwiseSeparable, InvertedResidual
from fastdarts.spaces.layerwise.quantisers import QuantisedConv, QuantisedLinear, Quantiser

FIXED_BITS = 8
"""Bits of the parts without a choice: stem, fixed block, head and classifier."""


def quantise_block(block: nn.Module, bits: str) -> None:
    """Make the convolutions of a block compute with few bits.

    Args:
        block: a layer of a `LayerwiseNetwork`. Convolutions of squeeze and excitation stay in floats.
        bits: see `fastdarts.spaces.layerwise.bits`; empty for blocks without a choice.
    """
    pointwise = depthwise = (FIXED_BITS, FIXED_BITS)
    if bits:
        first, second, third, fourth = (int(digit) for digit in bits)
        pointwise, depthwise = (first, second), (third, fourth)
    if isinstance(block, InvertedResidual):
        quantise(block, "conv_pw", *pointwise, signed=True)
        quantise(block, "conv_dw", *depthwise, signed=_signed(block.act1))
        quantise(block, "conv_pwl", *pointwise, signed=_signed(block.act2))
    elif isinstance(block, DepthwiseSeparable):
        quantise(block, "conv_dw", *depthwise, signed=_signed(block.act1))
        quantise(block, "conv_pw", *pointwise, signed=_signed(block.act1))
    elif isinstance(block, ConvNorm):
        quantise(block, "conv", *pointwise, signed=True)


def quantise(parent: nn.Module, name: str, weight_bits: int, activation_bits: int | None, signed: bool) -> None:
    """Put a quantised layer, with the same weights, in the place of the convolution or linear layer `name`."""
    layer, quantiser = getattr(parent, name), Quantiser(weight_bits, activation_bits, signed)
    kind = QuantisedLinear if isinstance(layer, nn.Linear) else QuantisedConv
    setattr(parent, name, kind(layer, quantiser))


def quantise_network(network: nn.Module, blocks: Iterable[nn.Module], bits: Iterable[str]) -> None:
    """Make a chain's network compute with few bits.

    Args:
        network: a `LayerwiseNetwork`.
        blocks: its blocks that have bits.
        bits: those of each.
    """
    quantise(network, "conv_stem", FIXED_BITS, None, signed=True)
    for block, four in zip(blocks, bits, strict=True):
        quantise_block(block, four)
    quantise(network, "conv_head", FIXED_BITS, FIXED_BITS, signed=True)
    if isinstance(network.feature, nn.Sequential):
        quantise(network.feature, "0", FIXED_BITS, FIXED_BITS, signed=True)
    quantise(network, "classifier", FIXED_BITS, FIXED_BITS, signed=True)


def _signed(activation: nn.Module) -> bool:
    """Return True if outputs of the activation may be below 0."""
    return isinstance(activation, nn.Hardswish)
