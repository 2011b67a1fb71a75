"""Faults of the hardware that computes a network (Ning et al., FTT-NAS, ACM TODAES 2021, arXiv:2003.10375).

In feature maps: bit flips (mibb), Gaussian noise (gaussian), or values that are lost (saltpepper). In weights: cells of
a memory that are stuck (adsaf). They are drawn anew in every pass from torch's global generators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastdarts.mixed.fused import reading_anew
from fastdarts.mixed.statistics import frozen_statistics

Kind = Literal["mibb", "adsaf", "gaussian", "saltpepper"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_BITS = 8
_STUCK_ON = 0.163  # share of stuck cells that always conduct; the others never do


@dataclass(frozen=True)
class Faults:
    """Make faults of a kind at a rate.

    Attributes:
        kind: "mibb": after each convolution, a value is hit with probability 1 - (1 - rate)^n, n being the products
            that it sums, and one of its 8 bits flips. "adsaf": each of the two cells that hold a weight is stuck with
            probability `rate`. "gaussian": noise with a standard deviation of `rate` times the largest value of the
            map. "saltpepper": a value of a map becomes 0 or the largest one with probability `rate`.
        rate: from 0 to 1.
    """

    kind: Kind
    rate: float

    @classmethod
    def read(cls, text: str) -> Faults:
        """Read "KIND:RATE", such as "mibb:1e-4". Raises: ValueError that says what is allowed."""
        kind, _, rate = text.partition(":")
        try:
            value = float(rate)
        except ValueError:
            value = math.nan
        if kind not in KINDS or not 0 <= value <= 1:
            raise ValueError(f"faults must be KIND:RATE, {', '.join(KINDS)} and a number from 0 to 1; got {text!r}")
        return cls(kind, value)

    @property
    def of_weights(self) -> bool:
        """Return True for faults of weights, False for those of feature maps."""
        return self.kind == "adsaf"

    def at(self, rate: float) -> Faults:
        """Return the same kind at another rate."""
        return replace(self, rate=rate)

    def run(self, network: nn.Module, inputs: Tensor) -> Any:
        """Return the network's outputs under faults in all of its convolutions; with rate 0, those without faults.

        Faults of weights leave the kernels in use; those of maps run the convolutions' modules.
        """
        if self.rate == 0:
            return network(inputs)
        with reading_anew():
            if self.of_weights:
                names = (f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.Conv2d))
                weights = {name: stuck(network.get_parameter(name), self.rate) for name in names}
                return functional_call(network, weights, (inputs,))
            with self._hooked(network):
                return network(inputs)

    def run_beside(self, network: nn.Module, inputs: Tensor) -> Any:
        """Return the outputs of `run` in train mode, without an effect on running statistics.

        They are those of a pass without faults beside it, whose backward needs them as they are.
        """
        with frozen_statistics(network):
            return self.run(network, inputs)

    @contextmanager
    def _hooked(self, network: nn.Module) -> Iterator[None]:
        change = {"mibb": self._flip, "gaussian": self._noise, "saltpepper": self._lose}[self.kind]
        hooks = [m.register_forward_hook(_changing(change)) for m in network.modules() if isinstance(m, nn.Conv2d)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _flip(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        return flip_bits(x, hit_probability(self.rate, math.prod(conv.weight.shape[1:])))

    def _noise(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        return x + self.rate * _largest(x) * torch.randn_like(x)

    def _lose(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        drawn = torch.rand_like(x, dtype=torch.float32)
        return torch.where(drawn < self.rate, torch.where(drawn < self.rate / 2, 0, _largest(x)), x)


def hit_probability(rate: float, products: int) -> float:
    """Return the probability that a sum of so many products is hit, if each is with probability `rate`."""
    return 1.0 if rate == 1 else -math.expm1(products * math.log1p(-rate))


def flip_bits(x: Tensor, probability: float) -> Tensor:
    """Return x with a bit of some values flipped: +-2^b steps are added, b uniform in 0..7, within the range of x.

    A step is 2^-7 of the smallest power of two that is not below the largest magnitude in x. A value that is hit has
    the gradient of an unchanged one, unless it leaves the range.

    Args:
        x: the map.
        probability: that a value is hit.
    """
    largest = _largest(x)
    step = largest.log2().ceil().exp2() * 2.0 ** (1 - _BITS)
    bits = torch.randint(_BITS, x.shape, device=x.device)
    signs = torch.randint(2, x.shape, device=x.device) * 2 - 1
    changed = (x + signs * bits.to(x.dtype).exp2() * step).clamp(-largest, largest)
    return torch.where(torch.rand(x.shape, device=x.device) < probability, changed, x)


def stuck(weight: Tensor, rate: float) -> Tensor:
    """Return a weight whose cells are stuck at random; what has changed gets no gradient.

    A weight is the difference of two cells, a positive and a negative one, of which one is 0. A cell that is stuck on
    holds the largest magnitude in `weight`, one that is stuck off holds 0.

    Args:
        weight: any shape.
        rate: probability that a cell is stuck.
    """
    plain = weight.detach()
    largest = _largest(plain)
    cells = torch.stack([plain.clamp_min(0), (-plain).clamp_min(0)])
    drawn = torch.rand(cells.shape, device=cells.device)
    cells = torch.where(drawn < rate, 0, cells)
    cells = torch.where(drawn < rate * _STUCK_ON, largest, cells)
    changed = cells[0] - cells[1]
    return torch.where(changed == plain, weight, changed)


def _largest(x: Tensor) -> Tensor:
    return x.detach().abs().amax()


def _changing(change: Callable[[nn.Conv2d, Tensor], Tensor]) -> Callable[[Any, Any, Tensor], Tensor]:
    def hook(conv: nn.Conv2d, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return change(conv, out)

    return hook
