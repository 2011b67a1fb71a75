"""A picture of a chain: a strip of blocks, one a layer, as high as they are wide in channels."""

from itertools import pairwise

from fastdarts.spaces.drawing import FAMILIES, Box, Drawing, Line
from fastdarts.spaces.layerwise.architecture import LayerChoices
from fastdarts.spaces.layerwise.chain import SKIP, parse_block
from fastdarts.spaces.staircase import MARGIN, TITLE, counted

_WIDTH, _GAP, _LOWEST, _HIGHEST = 62, 22, 44, 150
_BY_KERNEL = {3: "sep_conv", 5: "dil_conv", 7: "factored_conv"}


def lay_out(architecture: LayerChoices) -> Drawing:
    """Place a box a layer from left to right; its height grows with the channels inside the block."""
    chain = architecture.chain()
    layers = chain.layers()
    built = sum(name != SKIP for name in architecture.layers)
    drawing = Drawing()
    note = f"{counted(built, 'block')}, {counted(architecture.skips(), 'layer')} left out; height: channels inside"
    drawing.titles.append(((MARGIN, MARGIN), architecture.space, note))
    middle = MARGIN + TITLE + _HIGHEST / 2
    inside = [layer.in_channels * _expansion(name) for layer, name in zip(layers, architecture.layers, strict=True)]
    x = float(MARGIN)
    boxes = [Box(x, middle - 22, _WIDTH, 44, "stem", note=str(chain.stem))]
    for layer, name, channels in zip(layers, architecture.layers, inside, strict=True):
        x += _WIDTH + _GAP
        height = _LOWEST + (_HIGHEST - _LOWEST) * channels / max(inside)
        colours = FAMILIES["skip" if name == SKIP else _BY_KERNEL.get(parse_block(name)[0], "dense_conv")]
        note = f"{layer.width}{' /2' if layer.stride == 2 else ''}"
        boxes.append(Box(x, middle - height / 2, _WIDTH, height, name, note=note, colours=colours))
    x += _WIDTH + _GAP
    boxes.append(Box(x, middle - 22, _WIDTH, 44, "head", note=str(chain.head)))
    drawing.boxes = boxes
    drawing.lines = [Line(((left.x + left.width, middle), (right.x, middle))) for left, right in pairwise(boxes)]
    drawing.width = x + _WIDTH + MARGIN
    drawing.height = middle + _HIGHEST / 2 + MARGIN
    return drawing


def describe(architecture: LayerChoices) -> str:
    """Describe the chain in words, for readers who cannot see the picture."""
    return f"{architecture.space}: {', '.join(architecture.layers)}."


def _expansion(name: str) -> float:
    return 1 if name == SKIP else float(parse_block(name)[1])
