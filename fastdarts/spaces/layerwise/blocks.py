"""The layers of a chain, named as timm names them, so that a chain's weights load into timm's EfficientNet."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastdarts.spaces.layerwise.chain import Activation, Chain, Excite, Layer, parse_block

ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
}


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm and activation: [N, C, H, W] -> [N, C', H', W']."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, activation: Activation, eps: float
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels, eps)
        self.act = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.bn1(self.conv(x)))
        return y


class SqueezeExcite(nn.Module):
    """Weigh channels by a function of their means: [N, C, H, W] -> the same (Hu et al., CVPR 2018, arXiv:1709.01507).

    Sources of the two kinds: Howard et al., ICCV 2019, arXiv:1905.02244; Tan and Le, ICML 2019, arXiv:1905.11946.

    Args:
        channels: of x.
        read: channels that the block reads, of which "efficient" squeezes to a quarter.
        kind: sizes and functions, see `Excite`.
    """

    def __init__(self, channels: int, read: int, kind: Excite) -> None:
        super().__init__()
        mobile = kind == "mobile"
        inside = squeezed(channels) if mobile else max(1, read // 4)
        self.conv_reduce = nn.Conv2d(channels, inside, 1)
        self.act1 = nn.ReLU() if mobile else nn.SiLU()
        self.conv_expand = nn.Conv2d(inside, channels, 1)
        self.gate = nn.Hardsigmoid() if mobile else nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x * self.gate(self.conv_expand(self.act1(self.conv_reduce(x.mean((2, 3), keepdim=True)))))
        return y


def squeezed(channels: int) -> int:
    """Return the channels inside a `SqueezeExcite`: a quarter, to the nearest multiple of 8 that is not much less."""
    quarter = channels // 4
    nearest = max(8, (quarter + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * quarter else nearest


class InvertedResidual(nn.Module):
    """MBConv: 1x1 convolution that expands the channels, depthwise convolution, 1x1 convolution; each with batch norm.

    Source: Sandler et al., CVPR 2018, arXiv:1801.04381.

    Args:
        layer: sizes of input and output, stride of the depthwise convolution, squeeze and excitation.
        name: kernel, expansion and groups, see `parse_block`.
        activation: after the first two batch norms.
        eps: eps of the batch norms.
        shortcut: add the input to the output.

    Raises: ValueError where the groups do not divide the channels.
    """

    def __init__(self, layer: Layer, name: str, activation: Activation, eps: float, shortcut: bool = False) -> None:
        super().__init__()
        self.shortcut = shortcut
        kernel, expansion, groups = parse_block(name)
        inside, outside = layer.in_channels, layer.width
        middle = round(expansion * inside)
        if inside % groups or outside % groups:
            raise ValueError(f"block {name!r} needs channels in {groups} groups; got {inside} and {outside}")
        self.conv_pw = nn.Conv2d(inside, middle, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle, eps)
        self.act1 = ACTIVATIONS[activation]()
        self.shuffle = nn.ChannelShuffle(groups) if groups > 1 else nn.Identity()
        self.conv_dw = nn.Conv2d(middle, middle, kernel, layer.stride, kernel // 2, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle, eps)
        self.act2 = ACTIVATIONS[activation]()
        self.se = SqueezeExcite(middle, inside, layer.excites) if layer.excites else nn.Identity()
        self.conv_pwl = nn.Conv2d(middle, outside, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(outside, eps)

    def forward(self, x: Tensor) -> Tensor:
        y = self.shuffle(self.act1(self.bn1(self.conv_pw(x))))
        y = self.se(self.act2(self.bn2(self.conv_dw(y))))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.shortcut else y


class DepthwiseSeparable(nn.Module):
    """MBConv without expansion, the fixed block after a stem: [N, stem, H, W] -> [N, fixed, H, W]."""

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        assert chain.fixed is not None
        self.shortcut = chain.fixed_shortcut
        self.conv_dw = nn.Conv2d(chain.stem, chain.stem, 3, padding=1, groups=chain.stem, bias=False)
        self.bn1 = nn.BatchNorm2d(chain.stem, chain.eps)
        self.act1 = ACTIVATIONS[chain.fixed_activation or chain.activation]()
        excites = chain.fixed_excites
        self.se = SqueezeExcite(chain.stem, chain.stem, excites) if excites else nn.Identity()
        self.conv_pw = nn.Conv2d(chain.stem, chain.fixed, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(chain.fixed, chain.eps)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn2(self.conv_pw(self.se(self.act1(self.bn1(self.conv_dw(x))))))
        return x + y if self.shortcut else y


def feature(chain: Chain) -> nn.Module:
    """Return the layer between pooling and classifier, [N, head, 1, 1] -> [N, feature, 1, 1]; an identity if none."""
    if chain.feature is None:
        return nn.Identity()
    conv = nn.Conv2d(chain.head, chain.feature, 1, bias=False)
    return nn.Sequential(conv, ACTIVATIONS[chain.activation]())


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
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            module.weight.uniform_(-bound, bound)
            module.bias.zero_()
