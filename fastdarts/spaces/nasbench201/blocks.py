"""The fixed layers of NAS-Bench-201's networks: channels and cells by stage, and the residual block between stages."""

from torch import Tensor, nn

from fastdarts.primitives.modules import ReLUConvBN


def stages(C: int, cells: int) -> list[tuple[int, bool]]:
    """Return (channels, is a residual block) of each layer: three stages of cells with two blocks between."""
    layers = []
    for stage in range(3):
        if stage:
            layers.append((C * 2**stage, True))
        layers += [(C * 2**stage, False)] * cells
    return layers


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, the first of stride 2, beside average pooling and a 1x1 convolution.

    [N, C_in, H, W] -> [N, C_out, ceil(H/2), ceil(W/2)]. Odd sides are pooled with the pixels that exist; the original
    code fails there.
    """

    def __init__(self, C_in: int, C_out: int) -> None:
        super().__init__()
        self.conv_a = ReLUConvBN(C_in, C_out, 3, 2, 1)
        self.conv_b = ReLUConvBN(C_out, C_out, 3, 1, 1)
        self.downsample = nn.Sequential(
            nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False), nn.Conv2d(C_in, C_out, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(x) + self.conv_b(self.conv_a(x))
