"""Write a found network as plain PyTorch code that imports nothing of this package."""

import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fastdarts.primitives import modules
from fastdarts.primitives.table import candidate
from fastdarts.spaces.darts import discrete
from fastdarts.spaces.darts.cell_genotypes import CellGenotypes
from fastdarts.spaces.darts.discrete import depth_of
from fastdarts.spaces.darts.genotype import FoundCell, Genotype

_HEAD = '''"""{title}

{shape}. Train it, change it, or load the weights beside it:

    network = Network()
    network.load_state_dict(torch.load("{weights}", weights_only=True))

Cells: each state is a feature map, 0 and 1 are the cell's inputs, and each node adds up its ops.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, cat, nn


def drop_path(x: Tensor, probability: float) -> Tensor:
    """Zero each sample of x [N, ...] with `probability` and scale the others, so that the expectation is unchanged."""
    mask = x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(1 - probability)
    return x / (1 - probability) * mask
'''

_NETWORK = '''class Network(nn.Module):
    """Compute logits [N, {classes}] of images [N, {channels}, {height}, {width}].

    Images are {range}. In train mode with an auxiliary head, return a tuple of the logits and that head's.

    Args:
        drop_path_prob: in train mode, the probability of dropping an op's output for one sample.
    """

    def __init__(self, drop_path_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_path_prob = drop_path_prob
        self.register_buffer("mean", torch.tensor({mean}).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor({std}).view(-1, 1, 1), persistent=False)
{stem}
        self.cells = nn.ModuleList(
            [
{cells}
            ]
        )
{auxiliary}        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear({features}, {classes})

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the last cell's feature map [N, {features}, H, W]."""
        return self._states(x)[-1]

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        states = self._states(x)
        logits = self.classifier(self.global_pooling(states[-1]).flatten(1))
{result}

    def _states(self, x: Tensor) -> list[Tensor]:
        """Return the output of each cell."""
        x = {normalise}
{stem_forward}
        outputs = []
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, self.drop_path_prob)
            outputs.append(s1)
        return outputs
'''

_CELL = '''class {name}(nn.Module):
    """{what}: states {concat} are its output."""

    def __init__(self, C_prev_prev: int, C_prev: int, C: int, reduction_prev: bool) -> None:
        super().__init__()
        self.preprocess0 = FactorizedReduce(C_prev_prev, C) if reduction_prev else ReLUConvBN(C_prev_prev, C)
        self.preprocess1 = ReLUConvBN(C_prev, C)
        self._ops = nn.ModuleList(
            [
{ops}
            ]
        )

    def forward(self, s0: Tensor, s1: Tensor, drop_path_prob: float) -> Tensor:
        def op(index: int, x: Tensor) -> Tensor:
            y = self._ops[index](x)
            droppable = self.training and drop_path_prob > 0 and not isinstance(self._ops[index], nn.Identity)
            return drop_path(y, drop_path_prob) if droppable else y

        s0, s1 = self.preprocess0(s0), self.preprocess1(s1)
{nodes}
        return cat([{outputs}], dim=1)
'''


class CellClass(NamedTuple):
    """Hold the name and the description of a cell's class in the code, the cell, and True for a reduction."""

    name: str
    what: str
    cell: FoundCell
    reduction: bool


class ImageFormat(NamedTuple):
    """Hold the images that a network takes: (C, H, W), statistics of each channel, and their values in words."""

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    takes_bytes: bool


def network_source(
    genotype: Genotype | CellGenotypes, options: Mapping[str, Any], images: ImageFormat, weights: str
) -> str:
    """Return the code of a module `Network` whose parameters have the names of `EvalNetwork`'s.

    Args:
        genotype: the cells.
        options: C, num_classes, layers, auxiliary, in_channels and stem ("cifar" or "imagenet"), as of EvalNetwork.
        images: the images that the network takes; the code normalises them.
        weights: name of the file with the weights, for the description.

    Raises: ValueError for ops of the user's own, whose code is not known.
    """
    classes, stem = options["num_classes"], options["stem"]
    layers = depth_of(genotype, None if isinstance(genotype, CellGenotypes) else options["layers"])
    classes_of_cells = [_class_of(genotype, index, layers) for index in range(layers)]
    cells, features, auxiliary_channels = _cell_calls(classes_of_cells, options["C"], stem)
    auxiliary = options["auxiliary"] and auxiliary_channels is not None
    channels, height, width = images.shape
    network = _NETWORK.format(
        classes=classes,
        channels=channels,
        height=height,
        width=width,
        range="bytes, or floats of 0 to 255" if images.takes_bytes else "floats",
        mean=list(images.mean),
        std=list(images.std),
        normalise="(x.float() / 255 - self.mean) / self.std" if images.takes_bytes else "(x - self.mean) / self.std",
        stem=_indented(_STEMS[stem].format(images=channels, C=options["C"], C2=options["C"] // 2, C3=3 * options["C"])),
        stem_forward=_indented(_STEM_FORWARD[stem]),
        cells=_indented("\n".join(cells), 4),
        features=features,
        auxiliary=_indented(f'self.auxiliary_head = AuxiliaryHead({auxiliary_channels}, {classes}, "{stem}")\n')
        if auxiliary
        else "",
        result=_indented(_AUXILIARY_RESULT.format(index=2 * layers // 3) if auxiliary else "return logits"),
    )
    used = {one.name: one for one in classes_of_cells}
    parts = [*map(_cell, used.values()), network]
    head = _HEAD.format(
        title=f"A network of {layers} cells that differentiable architecture search (DARTS) found.",
        shape=f"It takes images [N, {channels}, {height}, {width}] and has {classes} outputs",
        weights=weights,
    )
    return "\n\n".join([head, *_definitions("\n".join(parts)), *parts])


_STEMS = {
    "cifar": """\
self.stem = nn.Sequential(nn.Conv2d({images}, {C3}, 3, padding=1, bias=False), nn.BatchNorm2d({C3}))""",
    "imagenet": """\
self.stem0 = nn.Sequential(
    nn.Conv2d({images}, {C2}, 3, stride=2, padding=1, bias=False),
    nn.BatchNorm2d({C2}),
    nn.ReLU(),
    nn.Conv2d({C2}, {C}, 3, stride=2, padding=1, bias=False),
    nn.BatchNorm2d({C}),
)
self.stem1 = nn.Sequential(
    nn.ReLU(), nn.Conv2d({C}, {C}, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d({C})
)""",
}
_STEM_FORWARD = {
    "cifar": "s0 = s1 = self.stem(x)",
    "imagenet": "s0 = self.stem0(x)\ns1 = self.stem1(s0)",
}
_AUXILIARY_RESULT = "return (logits, self.auxiliary_head(states[{index}])) if self.training else logits"


def _indented(code: str, levels: int = 2) -> str:
    return textwrap.indent(code, "    " * levels)


def _class_of(genotype: Genotype | CellGenotypes, index: int, layers: int) -> CellClass:
    """Return the class of the cell at a place."""
    reduction = index in (layers // 3, 2 * layers // 3)
    kind, what = ("Reduction", "Halve the image's sides") if reduction else ("Normal", "Keep the image's size")
    number = index if isinstance(genotype, CellGenotypes) else ""
    return CellClass(f"{kind}Cell{number}", what, genotype.cell(index, reduction), reduction)


def _cell_calls(cells: Sequence[CellClass], C: int, stem: str) -> tuple[list[str], int, int | None]:
    """Return the code of each cell, the channels of the last, and those of the one that feeds the auxiliary head."""
    calls: list[str] = []
    reduction_prev = stem == "imagenet"
    C_prev_prev = C_prev = C if stem == "imagenet" else 3 * C
    auxiliary = None
    for index, (name, _, (_, concat), reduction) in enumerate(cells):
        C *= 2 if reduction else 1
        calls.append(f"{name}({C_prev_prev}, {C_prev}, {C}, reduction_prev={reduction_prev}),")
        reduction_prev = reduction
        C_prev_prev, C_prev = C_prev, len(concat) * C
        if index == 2 * len(cells) // 3:
            auxiliary = C_prev
    return calls, C_prev, auxiliary


def _cell(described: CellClass) -> str:
    """Return the code of a cell's class."""
    name, what, (nodes, concat), reduction = described
    ops: list[str] = []
    lines = []
    for state, node in enumerate(nodes, start=2):
        terms = []
        for op, source in node:
            terms.append(f"op({len(ops)}, s{source})")
            ops.append(f"{_op(op, 2 if reduction and source < 2 else 1)},  # {source} -> {state}: {op}")
        lines.append(f"s{state} = {' + '.join(terms) or 's0'}")
    outputs = ", ".join(f"s{state}" for state in concat)
    words = ", ".join(map(str, concat))
    return _CELL.format(
        name=name,
        what=what,
        concat=words,
        ops=_indented("\n".join(ops), 4),
        nodes=_indented("\n".join(lines)),
        outputs=outputs,
    )


def _op(name: str, stride: int) -> str:
    """Return the code that builds an op, as `primitives.modules.build` does."""
    c = candidate(name)
    match c.kind:
        case "none":
            return f"Zero({stride})"
        case "noise":
            return f"Noise({stride})"
        case "max_pool":
            return f"nn.MaxPool2d({c.kernel}, {stride}, {c.padding})"
        case "avg_pool":
            return f"nn.AvgPool2d({c.kernel}, {stride}, {c.padding}, count_include_pad=False)"
        case "skip":
            return "nn.Identity()" if stride == 1 else "FactorizedReduce(C, C)"
        case "sep_conv":
            return f"SepConv(C, {c.kernel}, {stride}, {c.padding})"
        case "dil_conv":
            return f"DilConv(C, {c.kernel}, {stride}, {c.padding}, {c.dilation})"
        case "pointwise" | "dense_conv":
            return f"ReLUConvBN(C, C, {c.kernel}, {stride}, {c.padding})"
        case "factored_conv":
            return f"FactoredConv(C, {c.kernel}, {stride})"
    raise ValueError(f"op {name!r} is your own: its code is not known here; export to .pt2 or .onnx instead")


_DEFINITIONS: tuple[Any, ...] = (
    modules.check_even,
    modules.ReLUConvBN,
    modules.FactorizedReduce,
    modules.SepConv,
    modules.DilConv,
    modules.FactoredConv,
    modules.Zero,
    modules.Noise,
    discrete.quarter_means,
    discrete.AuxiliaryPool,
    discrete.AuxiliaryHead,
)


def _definitions(code: str) -> list[str]:
    """Return the sources of the modules and functions that the code uses, and of those that they use in turn."""
    sources = {thing.__name__: inspect.getsource(thing) for thing in _DEFINITIONS}
    used: set[str] = set()
    texts = [code]
    while texts:
        words = set(re.findall(r"(\w+)\(", texts.pop()))
        new = words & sources.keys() - used
        used |= new
        texts += [sources[name] for name in new]
    return [source for name, source in sources.items() if name in used]
