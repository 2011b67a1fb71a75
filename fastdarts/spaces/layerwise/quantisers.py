"""Convolutions and linear layers that compute with few bits, trained through the rounding (Wang et al., CVPR 2020).

Ranges of activations are learned as in PACT (Choi et al., 2018, arXiv:1805.06085).
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

_RANGE = 6.0  # where ReLU6 ends
_CLIPPED = 5  # calibration clips activations of fewer bits than this, those with a sign at this number, too
_SHARES = torch.linspace(0.2, 1, 33).tolist()
_TINY = 1e-6  # smallest range: inputs may all be 0


def quantised_weight(weight: Tensor, limit: Tensor, bits: int) -> Tensor:
    """Round weights to 2^bits - 1 levels from -limit to limit.

    Args:
        weight: of any shape; its gradient is that of the result, clamped or not.
        limit: scalar, without gradient.
        bits: at least 2.
    """
    levels = 2 ** (bits - 1) - 1
    limit = limit.detach()
    rounded = torch.round(torch.clamp(weight.detach(), -limit, limit) * levels / limit) * limit / levels
    return rounded + (weight - weight.detach())  # adds exactly 0


def quantised_activation(x: Tensor, reach: Tensor, bits: int, signed: bool) -> Tensor:
    """Round activations to 2^bits levels from 0 to reach, or to 2^bits - 1 levels from -reach to reach.

    The gradient passes the rounding. Outside the range it goes to `reach`, with a minus below -reach.

    Args:
        x: of any shape.
        reach: scalar.
        bits: at least 2.
        signed: levels below 0, too.
    """
    levels = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    clamped = torch.clamp(x, -reach if signed else torch.zeros_like(reach), reach)
    kept, end = clamped.detach(), reach.detach()
    return torch.round(kept * levels / end) * end / levels + (clamped - kept)


class Quantiser(nn.Module):
    """Round the input and the weights of a layer: (x, weight) -> the same, rounded.

    Args:
        weight_bits: of the weights.
        activation_bits: of the input; None leaves it as it is.
        signed: the input may be below 0.
    """

    reach: Tensor
    clip: Tensor

    def __init__(self, weight_bits: int, activation_bits: int | None, signed: bool) -> None:
        super().__init__()
        self.weight_bits, self.activation_bits, self.signed = weight_bits, activation_bits, signed
        self.calibrates = False
        if activation_bits is None:
            self.register_buffer("reach", torch.tensor(_RANGE))
        else:
            self.reach = nn.Parameter(torch.tensor(_RANGE))
        self.register_buffer("clip", torch.ones(()))  # the weights' limit, as a share of the largest magnitude

    def forward(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        if self.calibrates:
            self._calibrate(x, weight)
            return x, weight
        limit = self.clip * weight.detach().abs().max().clamp_min(_TINY)
        if self.activation_bits is not None:
            x = quantised_activation(x, self.reach.to(x.dtype), self.activation_bits, self.signed)
        return x, quantised_weight(weight, limit, self.weight_bits)

    @torch.no_grad()
    def _calibrate(self, x: Tensor, weight: Tensor) -> None:
        """Choose the ranges: the largest magnitude, or at few bits the range of least squared error."""
        if self.weight_bits < _CLIPPED:
            largest = weight.abs().max().clamp_min(_TINY)
            self.clip.fill_(_best(weight, largest, partial(quantised_weight, bits=self.weight_bits)))
        if (bits := self.activation_bits) is None:
            return
        largest = x.abs().max().clamp(_TINY, _RANGE)
        few = bits < _CLIPPED + self.signed
        share = _best(x, largest, partial(quantised_activation, bits=bits, signed=self.signed)) if few else 1.0
        self.reach.copy_(share * largest)

    def extra_repr(self) -> str:
        return f"weights: {self.weight_bits} bits, input: {self.activation_bits} bits, signed={self.signed}"


class QuantisedConv(nn.Conv2d):
    """Convolve rounded inputs with rounded weights, without bias; weights are kept as floats, named as they were."""

    def __init__(self, conv: nn.Conv2d, quantiser: Quantiser) -> None:
        sizes = conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding
        super().__init__(*sizes, groups=conv.groups, bias=False)  # type: ignore[arg-type]
        self.weight = conv.weight
        self.quantiser = quantiser

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self.quantiser(x, self.weight)
        return self._conv_forward(x, weight, None)


class QuantisedLinear(nn.Linear):
    """Multiply rounded inputs by rounded weights; the bias stays as it is."""

    def __init__(self, layer: nn.Linear, quantiser: Quantiser) -> None:
        super().__init__(layer.in_features, layer.out_features)
        self.weight, self.bias = layer.weight, layer.bias
        self.quantiser = quantiser

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self.quantiser(x, self.weight)
        return linear(x, weight, self.bias)


@torch.no_grad()
def calibrate(network: nn.Module, images: Tensor) -> None:
    """Choose the ranges of a network's quantisers from one pass in floats.

    Args:
        network: in eval mode.
        images: [N, C, H, W].
    """
    quantisers = [module for module in network.modules() if isinstance(module, Quantiser)]
    for quantiser in quantisers:
        quantiser.calibrates = True
    try:
        network(images)
    finally:
        for quantiser in quantisers:
            quantiser.calibrates = False


def _best(x: Tensor, largest: Tensor, rounded: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Return the share of `largest` that loses least by rounding in that range."""
    return min(_SHARES, key=lambda share: float((rounded(x, share * largest) - x).square().sum()))
