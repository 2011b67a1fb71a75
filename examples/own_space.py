"""Search in a space of your own: a chain of layers, each of which chooses one op.

    python examples/own_space.py

From the command line, in this folder: `fastdarts search --plugin own_space --space chain --order 1`.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fastdarts.mixed.mix import Mix
from fastdarts.mixed.mixed_op import MixedOp
from fastdarts.primitives.modules import build
from fastdarts.search import SearchConfig, search
from fastdarts.spaces.drawing import Box, Drawing, colours_of
from fastdarts.spaces.group import Choice, Group
from fastdarts.spaces.network import DiscreteNetwork
from fastdarts.spaces.picture import png, svg
from fastdarts.spaces.registry import register_space
from fastdarts.spaces.supernet import Supernet

OPS = ("skip_connect", "sep_conv_3x3", "dil_conv_3x3")


@dataclass(frozen=True)
class Chain:
    """The architecture: the op of each layer."""

    ops: tuple[str, ...]
    space = "chain"

    def to_json(self):
        return json.dumps({"space": self.space, "ops": self.ops})


class ChainSupernet(Supernet):
    """Stem, mixed layers, classifier."""

    def __init__(self, C, num_classes, layers, in_channels, backend, primitives):
        super().__init__({"layers": Group("layers", (primitives,) * layers)})
        self.stem = nn.Sequential(nn.Conv2d(in_channels, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))
        self.layers = nn.ModuleList(MixedOp(C, 1, primitives, backend) for _ in range(layers))
        self.classifier = nn.Linear(C, num_classes)
        self.make_alphas()

    def forward(self, x):
        mix = self.op_weights()["layers"]
        x = self.stem(x)
        for row, layer in enumerate(self.layers):
            x = layer(x, mix.weights[row], None if mix.active is None else mix.active[row])
        return self.classifier(x.mean((2, 3)))

    def mixed_ops(self, group):
        return [list(self.layers)]

    def derive(self, scores, choice=Choice()):  # noqa: B008 - frozen
        rows = self.groups["layers"].ops
        return Chain(tuple(row[int(s.argmax())] for row, s in zip(rows, scores["layers"], strict=True)))

    def mixes_of(self, architecture):
        rows = self.groups["layers"].ops
        active = [[row.index(op)] for row, op in zip(rows, architecture.ops, strict=True)]
        weights = torch.zeros_like(self.alphas["layers"]).scatter_(
            1, torch.tensor(active).to(self.alphas["layers"].device), 1
        )
        return {"layers": Mix(weights, active)}

    def random(self, generator, max_skips=None):
        rows = self.groups["layers"].ops
        return Chain(tuple(row[int(torch.randint(len(row), (), generator=generator))] for row in rows))


class ChainNetwork(DiscreteNetwork):
    """The network of one chain, trained from scratch."""

    def __init__(self, chain, C, num_classes, layers, in_channels, **ignored):
        super().__init__()
        self.in_channels = in_channels
        self.stem = nn.Sequential(nn.Conv2d(in_channels, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))
        self.layers = nn.Sequential(*(build(op, C, stride=1) for op in chain.ops))
        self.classifier = nn.Linear(C, num_classes)

    def forward(self, x):
        return self.classifier(self.layers(self.stem(x)).mean((2, 3)))


class ChainSpace:
    """The space, as the programs see it."""

    name, title = "chain", "a chain of layers, an op on each"
    features = frozenset({"skip connections", "depth"})

    def __init__(self, primitives=OPS):
        self.primitives = primitives
        self.groups = {"layers": Group("layers", (primitives,))}

    def search_defaults(self, dataset):
        return {"init_channels": 8, "layers": 6}

    def evaluation_defaults(self, dataset):
        return {"auxiliary": False, "init_channels": 16}

    def arguments(self):
        return {"primitives": self.primitives}

    def supernet(self, **arguments):
        return ChainSupernet(**arguments)

    def discrete(self, architecture, **options):
        return ChainNetwork(architecture, **options)

    def from_json(self, text):
        return Chain(tuple(json.loads(text)["ops"]))

    def from_text(self, text):
        return None

    def numbers(self, architecture):
        return {"skips_layers": architecture.ops.count("skip_connect")}

    def table(self, file):
        raise ValueError("benchmark: space 'chain' has no tabulated accuracies")

    def svg(self, architecture):
        return "\n".join(svg(draw(architecture), " then ".join(architecture.ops)))

    def png(self, architecture):
        return png(draw(architecture))


def draw(chain):
    """Lay out a box a layer."""
    boxes = [Box(20, 20 + 40 * row, 160, 28, op, colours=colours_of(op)) for row, op in enumerate(chain.ops)]
    return Drawing(width=200, height=40 + 40 * len(boxes), boxes=boxes)


register_space("chain", ChainSpace)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--out", type=Path, default=None)
    result = search(SearchConfig(dataset="digits", space="chain", order=1, **vars(parser.parse_args())))
    print(result.genotype)
    print(f"validation accuracy {result.metrics[-1]['valid_accuracy']:.3f}, pictures and report in {result.out_dir}")
