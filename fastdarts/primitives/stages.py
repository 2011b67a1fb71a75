"""The stages that a primitive consists of; counts, codes and shapes of kernels are derived from them."""

from dataclasses import dataclass
from typing import Literal

StageKind = Literal[
    "relu",
    "depthwise",
    "pointwise",
    "convolution",
    "factorized_reduction",
    "max_pool",
    "avg_pool",
    "zero",
    "noise",
    "norm",
]


@dataclass(frozen=True)
class Stage:
    """One step of a primitive; it maps C channels to C channels.

    Attributes:
        kind: what it computes. A factorised reduction is two 1x1 convolutions of stride 2, half of the channels each.
        kernel: height and width of its window.
        dilation: distance of the window's taps.
        strided: it carries the stride of the edge; other stages have stride 1.
    """

    kind: StageKind
    kernel: tuple[int, int] = (1, 1)
    dilation: int = 1
    strided: bool = False

    @property
    def weights(self) -> int:
        """Return the number of convolution weights."""
        return {"depthwise": 1, "pointwise": 1, "convolution": 1, "factorized_reduction": 2}.get(self.kind, 0)

    def shapes(self, C: int) -> list[tuple[int, ...]]:
        """Return the shapes of the convolution weights for C channels."""
        match self.kind:
            case "depthwise":
                return [(C, 1, *self.kernel)]
            case "pointwise" | "convolution":
                return [(C, C, *self.kernel)]
            case "factorized_reduction":
                return [(C // 2, C, 1, 1)] * 2
            case _:
                return []


RELU = Stage("relu")
NORM = Stage("norm")


def square(kind: StageKind, kernel: int, dilation: int = 1, strided: bool = False) -> Stage:
    """Return a stage with a square window."""
    return Stage(kind, (kernel, kernel), dilation, strided)


def separable(kernel: int, dilation: int = 1, strided: bool = False) -> tuple[Stage, ...]:
    """Return relu, depthwise convolution, pointwise convolution, batch norm."""
    return RELU, square("depthwise", kernel, dilation, strided), Stage("pointwise"), NORM
