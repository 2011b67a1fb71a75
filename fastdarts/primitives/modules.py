"""Define the candidate operations as plain PyTorch modules: the kernels' specification, baseline and fallback.

Structure and parameter names are those of the original DARTS code, so that checkpoints load in both directions.
Convolutions have no bias; batch norms have eps 1e-5 and momentum 0.1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, cat, nn

from fastdarts.primitives.table import Candidate, candidate


def check_even(channels: int, what: str) -> None:
    """Raise a ValueError if `channels`, called `what`, is odd: a factorised reduction computes two halves."""
    if channels % 2:
        raise ValueError(f"{what} must be even, since a factorised reduction makes two halves; got {channels}")


class ReLUConvBN(nn.Module):
    """Apply relu, convolution and batch norm: [N, C_in, H, W] -> [N, C_out, H', W']; preprocesses a cell's input."""

    def __init__(
        self, C_in: int, C_out: int, kernel_size: int = 1, stride: int = 1, padding: int = 0, affine: bool = True
    ) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C_in, C_out, kernel_size, stride, padding, bias=False),
            nn.BatchNorm2d(C_out, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class DilConv(nn.Module):
    """Apply relu, dilated depthwise convolution, pointwise convolution and batch norm, once."""

    def __init__(self, C: int, kernel_size: int, stride: int, padding: int, dilation: int, affine: bool = True) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C, C, kernel_size, stride, padding, dilation, groups=C, bias=False),
            nn.Conv2d(C, C, 1, bias=False),
            nn.BatchNorm2d(C, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class SepConv(nn.Module):
    """Apply relu, depthwise convolution, pointwise convolution and batch norm, twice; the first pass is strided."""

    def __init__(self, C: int, kernel_size: int, stride: int, padding: int, affine: bool = True) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C, C, kernel_size, stride, padding, groups=C, bias=False),
            nn.Conv2d(C, C, 1, bias=False),
            nn.BatchNorm2d(C, affine=affine),
            nn.ReLU(),
            nn.Conv2d(C, C, kernel_size, 1, padding, groups=C, bias=False),
            nn.Conv2d(C, C, 1, bias=False),
            nn.BatchNorm2d(C, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class FactoredConv(nn.Sequential):
    """Apply relu, 1x7 convolution, 7x1 convolution and batch norm: `conv_7x1_1x7` of the NASNet and AmoebaNet cells."""

    def __init__(self, C: int, kernel_size: int, stride: int, affine: bool = True) -> None:
        half = kernel_size // 2
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(C, C, (1, kernel_size), (1, stride), (0, half), bias=False),
            nn.Conv2d(C, C, (kernel_size, 1), (stride, 1), (half, 0), bias=False),
            nn.BatchNorm2d(C, affine=affine),
        )


class Zero(nn.Module):
    """Return zeros in the output's shape: the primitive `none`."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return (x if self.stride == 1 else x[:, :, :: self.stride, :: self.stride]).mul(0.0)


class Noise(nn.Module):
    """Return standard normal noise in the output's shape, whatever the input: the primitive `noise` (RobustDARTS)."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        size = (-(-side // self.stride) for side in x.shape[2:])
        return torch.randn(*x.shape[:2], *size, dtype=x.dtype, device=x.device)


class FactorizedReduce(nn.Module):
    """Apply relu, two 1x1 convolutions of stride 2 (the second shifted one pixel down and right), concat, batch norm.

    [N, C_in, H, W] -> [N, C_out, ceil(H/2), ceil(W/2)]. An odd side is padded with one zero row or column at its end
    (the original fails for odd sides); even sides are not padded.
    """

    def __init__(self, C_in: int, C_out: int, affine: bool = True) -> None:
        super().__init__()
        check_even(C_out, "C_out")
        self.relu = nn.ReLU()
        self.conv_1 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(C_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        if x.shape[2] % 2 or x.shape[3] % 2:
            x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        return self.bn(cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1))


def build(name: str, C: int, stride: int, affine: bool = True) -> nn.Module:
    """Build the module of primitive `name` for C channels at stride 1 or 2, as used in the evaluation network.

    Args:
        name: a name in `CANDIDATES`.
        C: channels of input and output.
        stride: 1 or 2.
        affine: give batch norms learned scales and shifts.

    Raises:
        ValueError: unknown name or stride, or odd C for a stride-2 skip, which needs two halves.
    """
    if stride not in (1, 2):
        raise ValueError(f"stride must be 1 or 2; got {stride}")
    c: Candidate = candidate(name)
    match c.kind:
        case "none":
            return Zero(stride)
        case "max_pool":
            return nn.MaxPool2d(c.kernel, stride, c.padding)
        case "avg_pool":
            return nn.AvgPool2d(c.kernel, stride, c.padding, count_include_pad=False)
        case "skip":
            return nn.Identity() if stride == 1 else FactorizedReduce(C, C, affine)
        case "sep_conv":
            return SepConv(C, c.kernel, stride, c.padding, affine)
        case "dil_conv":
            return DilConv(C, c.kernel, stride, c.padding, c.dilation, affine)
        case "pointwise" | "dense_conv":
            return ReLUConvBN(C, C, c.kernel, stride, c.padding, affine)
        case "factored_conv":
            return FactoredConv(C, c.kernel, stride, affine)
        case "noise":
            return Noise(stride)
        case "own":
            assert c.make is not None
            return c.make(C, stride, affine)


def build_for_search(name: str, C: int, stride: int) -> nn.Module:
    """Build the module of primitive `name` for a MixedOp: batch norms have no affine parameters, pools get one too."""
    module = build(name, C, stride, affine=False)
    if candidate(name).is_pool and candidate(name).norm:
        return nn.Sequential(module, nn.BatchNorm2d(C, affine=False))
    return module
