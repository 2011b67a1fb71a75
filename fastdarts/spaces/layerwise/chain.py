"""Describe a chain of layers: widths, depths and strides, and the blocks among which each layer chooses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import Literal, NamedTuple

Activation = Literal["relu", "relu6", "hardswish", "silu"]
Excite = Literal["mobile", "efficient"]
"""Squeeze and excitation as in MobileNetV3 (a quarter of the channels inside the block; ReLU, hard sigmoid) or as in
EfficientNet (a quarter of the block's input channels; SiLU, sigmoid)."""

SKIP = "skip"
"""The choice that leaves a layer out: an identity, or a 1x1 convolution where the layer changes the shape."""
_NAME = re.compile(r"k(\d+) e(\d+(?:/[1-9]\d*)?)(?: g(\d+))?")


@dataclass(frozen=True)
class Stage:
    """Layers of one width; the first has the stage's stride.

    Attributes:
        activation: of its blocks; None takes the chain's.
        excites: how blocks weigh their channels by squeeze and excitation; None for not at all.
        end: channels that the last layer puts out in place of `width`; the next stage reads them.
    """

    width: int
    layers: int
    stride: int
    activation: Activation | None = None
    excites: Excite | None = None
    end: int | None = None

    def width_of(self, place: int) -> int:
        """Return the channels that the layer at a place of the stage puts out."""
        return self.end if self.end and place == self.layers - 1 else self.width


class Layer(NamedTuple):
    """The shape of one layer and its choices."""

    stage: int
    in_channels: int
    width: int
    stride: int
    choices: tuple[str, ...]
    activation: Activation | None = None
    excites: Excite | None = None

    @property
    def keeps_shape(self) -> bool:
        """Return True if an identity can take the layer's place."""
        return self.stride == 1 and self.in_channels == self.width


@dataclass(frozen=True)
class Chain:
    """A stem, an optional fixed block, stages of layers that choose their block, a head and a linear classifier.

    Attributes:
        stem: channels of the 3x3 convolution at the start.
        stem_stride: its stride.
        fixed: width of a block without expansion after the stem; None where the first stage follows at once.
        stages: the layers with choices.
        head: channels of the 1x1 convolution before global pooling.
        activation: activation after each convolution but a block's last.
        blocks: names of the candidate blocks, "k5 e6": kernel 5, six times the layer's input channels inside;
            "g2" after them: 1x1 convolutions in two groups.
        skips: the layers that may be left out: "none", those that "repeat" their stage's shape, "all", or the "last"
            ones of each stage.
        eps: eps of the batch norms.
        dropout: probability with which the classifier's input is dropped in training.
        least: with skips "last", the layers that each stage keeps.
        fixed_activation: activation of the fixed block; None takes the chain's.
        fixed_shortcut: the fixed block adds its input to its output.
        fixed_excites: squeeze and excitation of the fixed block.
        feature: channels of a 1x1 convolution between pooling and classifier; None for none.
        step: channels between two widths of a block, from its smallest to its largest expansion; None for expansions of
            `blocks` alone.
        named: the chain before `scaled`, from whose widths choices have their names.
    """

    stem: int
    stem_stride: int
    fixed: int | None
    stages: tuple[Stage, ...]
    head: int
    activation: Activation
    blocks: tuple[str, ...]
    skips: Literal["none", "repeat", "all", "last"]
    eps: float = 1e-5
    dropout: float = 0.0
    least: int = 1
    fixed_activation: Activation | None = None
    fixed_shortcut: bool = False
    fixed_excites: Excite | None = None
    feature: int | None = None
    step: int | None = None
    named: Chain | None = None

    def layers(self) -> list[Layer]:
        """Return the layers with choices, in the order of the chain."""
        made: list[Layer] = []
        channels, names = self._inputs(), (self.named or self)._inputs()
        for index, stage in enumerate(self.stages):
            for place in range(stage.layers):
                stride = stage.stride if place == 0 else 1
                kept = {"none": place + 1, "repeat": 1, "all": 0, "last": self.least}[self.skips]
                blocks = self._blocks_for(names[len(made)])
                choices = (*blocks, SKIP) if place >= kept else blocks
                shape = channels[len(made)], stage.width_of(place), stride
                made.append(Layer(index, *shape, choices, stage.activation, stage.excites))
        return made

    def _inputs(self) -> list[int]:
        """Return the input channels of each layer."""
        widths = [stage.width_of(place) for stage in self.stages for place in range(stage.layers)]
        return [self.fixed or self.stem, *widths[:-1]]

    def _blocks_for(self, channels: int) -> tuple[str, ...]:
        """Return the blocks of a layer with so many input channels."""
        if self.step is None:
            return self.blocks
        return _stepped(self.blocks, self.step, channels)

    @property
    def strides(self) -> tuple[int, ...]:
        """Return the strides of the stem and of each stage."""
        return self.stem_stride, *(stage.stride for stage in self.stages)

    def changed(
        self,
        strides: Sequence[int] | None = None,
        widths: Sequence[int] | None = None,
        depths: Sequence[int] | None = None,
        head: int | None = None,
    ) -> Chain:
        """Return this chain with other numbers.

        Args:
            strides: of the stem and of each stage, 1 or 2.
            widths: of each stage.
            depths: layers of each stage.
            head: channels of the last 1x1 convolution.

        Raises: ValueError that names the argument and how many numbers of which kind it takes.
        """
        strides = _numbers("strides", strides, self.strides, "the stem and each stage", at_most=2)
        widths = _numbers("widths", widths, [stage.width for stage in self.stages], "each stage")
        depths = _numbers("depths", depths, [stage.layers for stage in self.stages], "each stage")
        stages = tuple(
            replace(stage, width=width, layers=depth, stride=stride)
            for stage, width, depth, stride in zip(self.stages, widths, depths, strides[1:], strict=True)
        )
        head = _numbers("head", None if head is None else [head], [self.head], "the last convolution")[0]
        return replace(self, stem_stride=strides[0], stages=stages, head=head)

    def with_choices(
        self,
        kernels: Sequence[int] | None = None,
        expansions: Sequence[int] | None = None,
        least: int | None = None,
    ) -> Chain:
        """Return this chain with other choices, where its blocks are all pairs of a kernel and an expansion.

        Args:
            kernels: odd; in rising order.
            expansions: in rising order.
            least: layers that each stage keeps, from 1 on.

        Raises: ValueError that names the argument.
        """
        own = sides_of(self.blocks)
        kernels = own[0] if kernels is None else kernels
        expansions = own[1] if expansions is None else expansions
        least = self.least if least is None else least
        for name, values, odd in (("kernels", kernels, True), ("expansions", expansions, False)):
            rising = list(values) == sorted(set(values)) and len(values) > 0
            if not rising or values[0] < 1 or (odd and any(value % 2 == 0 for value in values)):
                raise ValueError(f"{name} must be {'odd ' * odd}integers from 1 on, rising; got {list(values)}")
        if least < 1:
            raise ValueError(f"least must be at least 1; got {least}")
        return replace(self, blocks=elastic_blocks(kernels, expansions), least=least)

    def scaled(self, stem: int) -> Chain:
        """Return this chain with all widths in proportion to `stem` channels of the stem, multiples of 4."""
        if stem == self.stem:
            return self

        def scale(width: int) -> int:
            return max(4, round(width * stem / self.stem / 4) * 4)

        stages = tuple(replace(stage, width=scale(stage.width)) for stage in self.stages)
        fixed, feature = (None if width is None else scale(width) for width in (self.fixed, self.feature))
        scaled = replace(self, stem=stem, fixed=fixed, stages=stages, head=scale(self.head), feature=feature)
        return replace(scaled, named=self.named or self)

    def shortened(self, layers: int) -> Chain:
        """Return this chain with at most so many layers in each stage."""
        stages = tuple(replace(stage, layers=min(stage.layers, layers)) for stage in self.stages)
        return replace(self, stages=stages, named=self.named and self.named.shortened(layers))

    def ending(self, ends: Sequence[int]) -> Chain:
        """Return this chain with other channels at the end of each stage.

        Raises: ValueError for another number of them, and for fewer than 1.
        """
        ends = _numbers("ends", ends, [stage.width for stage in self.stages], "each stage")
        stages = tuple(replace(stage, end=end) for stage, end in zip(self.stages, ends, strict=True))
        return replace(self, stages=stages)

    def smallest_side(self, side: int) -> int:
        """Return the side of the last feature map for images of this side."""
        for stride in self.strides:
            side = -(-side // stride)
        return side


@cache
def parse_block(name: str) -> tuple[int, int | Fraction, int]:
    """Return kernel, expansion and groups of a block's name such as "k5 e6", "k5 e13/3" or "k3 e1 g2".

    Raises: ValueError for others.
    """
    match = _NAME.fullmatch(name)
    first, second, third = match.groups() if match else ("0", "0", "0")
    kernel, groups, ratio = int(first), int(third or 1), Fraction(second)
    expansion = int(ratio) if ratio.denominator == 1 else ratio
    if kernel % 2 == 0 or expansion < 1 or groups < 1:
        raise ValueError(f"a block must be named like 'k5 e6' (odd kernel, expansion; 'g2' for groups); got {name!r}")
    return kernel, expansion, groups


def _numbers(
    name: str, values: Sequence[int] | None, ours: Sequence[int], of: str, at_most: int | None = None
) -> Sequence[int]:
    if values is None:
        return ours
    limit = "of at least 1" if at_most is None else f"from 1 to {at_most}"
    if len(values) != len(ours) or not all(1 <= value <= (at_most or value) for value in values):
        raise ValueError(f"{name} must be {len(ours)} integers {limit}, for {of}; got {values!r}")
    return values


def _stages(*shapes: tuple[int, int, int], excites: Excite | None = None) -> tuple[Stage, ...]:
    return tuple(Stage(*shape, excites=excites) for shape in shapes)


def elastic_blocks(kernels: Sequence[int], expansions: Sequence[int | Fraction]) -> tuple[str, ...]:
    """Return the names of the blocks of all pairs of a kernel and an expansion."""
    return tuple(f"k{kernel} e{expansion}" for kernel in kernels for expansion in expansions)


@cache  # every architecture asks for the choices of its layers
def _stepped(blocks: tuple[str, ...], step: int, channels: int) -> tuple[str, ...]:
    """Return blocks of all widths in steps, from the smallest to the largest of `blocks`."""
    kernels, expansions = sides_of(blocks)
    least, most = expansions[0] * channels, expansions[-1] * channels
    return elastic_blocks(kernels, [Fraction(width, channels) for width in (*range(least, most, step), most)])


def sides_of(blocks: Sequence[str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the kernels and the expansions, whole numbers, of blocks, each in rising order."""
    shapes = [parse_block(name) for name in blocks]
    return tuple(sorted({kernel for kernel, _, _ in shapes})), tuple(sorted({int(ratio) for _, ratio, _ in shapes}))


_MOBILE = ("k3 e3", "k3 e6", "k5 e3", "k5 e6", "k7 e3", "k7 e6")

_PROXYLESS = _stages((24, 4, 2), (40, 4, 2), (80, 4, 2), (96, 4, 1), (192, 4, 2), (320, 1, 1))

CHAINS = {
    # Cai et al., ICLR 2019, arXiv:1812.00332
    "proxyless": Chain(
        stem=32,
        stem_stride=2,
        fixed=16,
        stages=_PROXYLESS,
        head=1280,
        activation="relu6",
        blocks=_MOBILE,
        skips="repeat",
        eps=1e-3,
    ),
    # Wu et al., CVPR 2019, arXiv:1812.03443, table 1
    "fbnet": Chain(
        stem=16,
        stem_stride=2,
        fixed=None,
        stages=_stages((16, 1, 1), (24, 4, 2), (32, 4, 2), (64, 4, 2), (112, 4, 1), (184, 4, 2), (352, 1, 1)),
        head=1984,
        activation="relu",
        blocks=("k3 e1", "k3 e1 g2", "k3 e3", "k3 e6", "k5 e1", "k5 e1 g2", "k5 e3", "k5 e6"),
        skips="all",
    ),
    # Chu et al., ICCV 2021, arXiv:1907.01845
    "fairnas": Chain(
        stem=32,
        stem_stride=2,
        fixed=16,
        stages=_stages((32, 2, 2), (40, 4, 2), (80, 4, 2), (96, 4, 1), (192, 4, 2), (320, 1, 1)),
        head=1280,
        activation="relu6",
        blocks=("k3 e3", "k5 e3", "k7 e3", "k3 e6", "k5 e6", "k7 e6"),
        skips="none",
        dropout=0.2,
    ),
    # for images of 32x32 and smaller
    "mobilenet-small": Chain(
        stem=16,
        stem_stride=1,
        fixed=16,
        stages=_stages((24, 3, 1), (40, 3, 2), (80, 3, 2)),
        head=320,
        activation="relu6",
        blocks=("k3 e3", "k3 e6", "k5 e3", "k5 e6"),
        skips="repeat",
    ),
    # Cai et al., ICLR 2020, arXiv:1908.09791: layers share weights
    "ofa": Chain(
        stem=16,
        stem_stride=2,
        fixed=16,
        fixed_activation="relu",
        fixed_shortcut=True,
        stages=(
            Stage(24, 4, 2, "relu"),
            Stage(40, 4, 2, "relu", excites="mobile"),
            Stage(80, 4, 2),
            Stage(112, 4, 1, excites="mobile"),
            Stage(160, 4, 2, excites="mobile"),
        ),
        head=960,
        feature=1280,
        activation="hardswish",
        blocks=elastic_blocks((3, 5, 7), (3, 4, 6)),
        skips="last",
        least=2,
        dropout=0.1,
    ),
    # Wang et al., CVPR 2020, arXiv:2006.08509: layers share weights, widths in steps of 8
    "apq": Chain(
        stem=32,
        stem_stride=2,
        fixed=16,
        stages=_PROXYLESS,
        head=1280,
        activation="relu6",
        blocks=elastic_blocks((3, 5, 7), (4, 6)),
        skips="last",
        eps=1e-3,
        least=2,
        step=8,
    ),
    # Li et al., CVPR 2020, arXiv:1911.13053: the layers of an EfficientNet
    "dna": Chain(
        stem=32,
        stem_stride=2,
        fixed=16,
        fixed_excites="efficient",
        stages=_stages((24, 2, 2), (40, 4, 2), (80, 4, 2), (112, 4, 1), (192, 4, 2), (320, 1, 1), excites="efficient"),
        head=1280,
        activation="silu",
        blocks=("k3 e6", "k5 e6", "k7 e6", "k3 e3", "k5 e3", "k7 e3"),
        skips="none",
        dropout=0.2,
    ),
}
"""The chains by the names of their spaces."""
