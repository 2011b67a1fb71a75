"""The benchmark's network of one cell: what NAS-Bench-201 trained for its tables."""

from torch import Tensor, nn

from fastdarts.mixed.mixed_op import check_input
from fastdarts.primitives.modules import build
from fastdarts.spaces.nasbench201.architecture import ENDS, NasBench201Cell
from fastdarts.spaces.nasbench201.blocks import ResidualBlock, stages
from fastdarts.spaces.network import DiscreteNetwork, Head, Stem


class Cell201(nn.Module):
    """One op an edge; the last node is the output: [N, C, H, W] -> [N, C, H, W]."""

    def __init__(self, architecture: NasBench201Cell, C: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(build(name, C, 1) for name in architecture.ops)

    def forward(self, x: Tensor) -> Tensor:
        nodes = [x]
        for node in range(1, 4):
            terms = [op(nodes[source]) for op, (source, to) in zip(self.layers, ENDS, strict=True) if to == node]
            nodes.append(sum(terms[1:], terms[0]))
        return nodes[-1]


class EvalNetwork201(DiscreteNetwork):
    """Stem, three stages of `layers` cells with residual blocks between, batch norm, relu, global pooling, classifier.

    Args:
        architecture: the cell that all stages repeat.
        C: channels of the first stage; 16 in the benchmark.
        num_classes: size of the logits.
        layers: cells a stage; 5 in the benchmark.
        in_channels: channels of the images.
        stem: make(in_channels, C) -> your own first layers instead of a 3x3 convolution.
        head: make(channels, num_classes) -> your own last layers.
    """

    def __init__(
        self,
        architecture: NasBench201Cell,
        C: int = 16,
        num_classes: int = 10,
        layers: int = 5,
        in_channels: int = 3,
        *,
        stem: Stem | None = None,
        head: Head | None = None,
    ) -> None:
        super().__init__()
        for name, value in {"C": C, "num_classes": num_classes, "layers": layers, "in_channels": in_channels}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        self.in_channels = in_channels
        if stem is None:
            self.stem: nn.Module = nn.Sequential(nn.Conv2d(in_channels, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))
        else:
            self.stem = stem(in_channels, C)
        self.cells = nn.ModuleList()
        C_prev = C
        for C_cell, residual in stages(C, layers):
            self.cells.append(ResidualBlock(C_prev, C_cell) if residual else Cell201(architecture, C_cell))
            C_prev = C_cell
        if head is None:
            self.lastact = nn.Sequential(nn.BatchNorm2d(C_prev), nn.ReLU())
            self.global_pooling = nn.AdaptiveAvgPool2d(1)
            self.classifier = nn.Linear(C_prev, num_classes)
        else:
            self.head = head(C_prev, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits [N, num_classes] (or your head's output) from images [N, in_channels, H, W]."""
        check_input(x, self.in_channels)
        x = self.stem(x)
        for cell in self.cells:
            x = cell(x)
        if hasattr(self, "head"):
            return self.head(x)
        logits: Tensor = self.classifier(self.global_pooling(self.lastact(x)).flatten(1))
        return logits
