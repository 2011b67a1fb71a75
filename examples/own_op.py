"""Search with an op of your own: a squeeze-and-excite convolution beside three built-in ops, on digits.

    python examples/own_op.py

From the command line, in this folder, `--plugin` imports this file, which registers the op:

    fastdarts search --plugin own_op --primitives skip_connect,sep_conv_3x3,dil_conv_3x3,se_conv_3x3
    fastdarts evaluate --plugin own_op --genotype RUN/genotype.json
"""

import argparse
from pathlib import Path

from torch import Tensor, nn

import fastdarts
from fastdarts.search import SearchConfig, search

PRIMITIVES = ("skip_connect", "sep_conv_3x3", "dil_conv_3x3", "se_conv_3x3")


class SqueezeExciteConv(nn.Module):
    """ReLU, 3x3 convolution, batch norm, then a factor for each channel (Hu et al., CVPR 2018)."""

    def __init__(self, C: int, stride: int, affine: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.ReLU(), nn.Conv2d(C, C, 3, stride, padding=1, bias=False), nn.BatchNorm2d(C, affine=affine)
        )
        hidden = max(C // 4, 1)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(C, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, C, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y * self.gate(y)


fastdarts.register_primitive("se_conv_3x3", SqueezeExciteConv)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--order", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    result = search(SearchConfig(dataset="digits", primitives=PRIMITIVES, device="cpu", **vars(given)))
    print(result.genotype)
    for name, alphas in result.alphas.items():
        mean = alphas.softmax(-1).mean(0).tolist()
        print(name, ", ".join(f"{op} {weight:.2f}" for op, weight in zip(PRIMITIVES, mean, strict=True)))


if __name__ == "__main__":
    main()
