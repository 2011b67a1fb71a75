"""The layers of a chain, named as timm names them, so that a chain's weights load into timm's EfficientNet."""

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "relu6": nn.ReLU6}
_NAME = re.compile(r"k(\d+) e(\d+)(?: g(\d+))?")


def parse_block(name: str) -> tuple[int, int, int]:
    """Return kernel, expansion and groups of a block's name such as "k5 e6" or "k3 e1 g2"; ValueError for others."""
    match = _NAME.fullmatch(name)
    kernel, expansion, groups = (int(number or 1) for number in match.groups()) if match else (0, 0, 0)
    if kernel % 2 == 0 or expansion < 1 or groups < 1:
        raise ValueError(f"a block must be named like 'k5 e6' (odd kernel, expansion; 'g2' for groups); got {name!r}")
    return kernel, expansion, groups


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm and activation: [N, C, H, W] -> [N, C', H', W']."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, activation: str, eps: float
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels, eps)
        self.act = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.bn1(self.conv(x)))
        return y


class InvertedResidual(nn.Module):
    """MBConv: 1x1 convolution that expands the channels, depthwise convolution, 1x1 convolution; each with batch norm.

    Source: Sandler et al., CVPR 2018, arXiv:1801.04381.

    Args:
        in_channels, out_channels: sizes of input and output.
        name: kernel, expansion and groups, see `parse_block`.
        stride: stride of the depthwise convolution.
        activation: after the first two batch norms.
        eps: eps of the batch norms.
        shortcut: add the input to the output.

    Raises: ValueError where the groups do not divide the channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        name: str,
        stride: int,
        activation: str,
        eps: float,
        shortcut: bool = False,
    ) -> None:
        super().__init__()
        self.shortcut = shortcut
        kernel, expansion, groups = parse_block(name)
        middle = expansion * in_channels
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"block {name!r} needs channels in {groups} groups; got {in_channels} and {out_channels}")
        self.conv_pw = nn.Conv2d(in_channels, middle, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle, eps)
        self.act1 = ACTIVATIONS[activation]()
        self.shuffle = nn.ChannelShuffle(groups) if groups > 1 else nn.Identity()
        self.conv_dw = nn.Conv2d(middle, middle, kernel, stride, kernel // 2, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle, eps)
        self.act2 = ACTIVATIONS[activation]()
        self.conv_pwl = nn.Conv2d(middle, out_channels, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        y = self.shuffle(self.act1(self.bn1(self.conv_pw(x))))
        y = self.act2(self.bn2(self.conv_dw(y)))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.shortcut else y


class DepthwiseSeparable(nn.Module):
    """MBConv without expansion and shortcut, the fixed block after a stem: [N, C, H, W] -> [N, C', H, W]."""

    def __init__(self, in_channels: int, out_channels: int, activation: str, eps: float) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels, eps)
        self.act1 = ACTIVATIONS[activation]()
        self.conv_pw = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn2(self.conv_pw(self.act1(self.bn1(self.conv_dw(x)))))
        return y


class LeftOut(nn.Module):
    """Compute nothing: the choice of a layer that only its shortcut passes."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


@torch.no_grad()
def initialise(network: nn.Module) -> None:
    """Draw a chain's weights as ProxylessNAS' code does: He's rule by all output channels, depthwise ones included."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            module.weight.normal_(0, (2 / fan_out) ** 0.5)
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            module.weight.uniform_(-bound, bound)
            module.bias.zero_()
