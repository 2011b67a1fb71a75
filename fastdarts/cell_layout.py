"""Where everything of a picture of cells stands; `draw` draws it."""

from dataclasses import dataclass, field
from typing import NamedTuple

from fastdarts.genotype import Genotype, Pairs
from fastdarts.space import candidate

Point = tuple[float, float]


class Colours(NamedTuple):
    """Of one family of primitives: its lines, and the filling and the text of its labels."""

    line: str
    fill: str
    text: str


_POOL = Colours("#d9730d", "#fdebd7", "#7a3d00")
FAMILIES: dict[str, Colours] = {
    "none": Colours("#868e99", "#eceef1", "#3b424c"),
    "max_pool": _POOL,
    "avg_pool": _POOL,
    "skip": Colours("#1c9a5f", "#dcf3e6", "#0b4f2f"),
    "sep_conv": Colours("#2f6fdf", "#dfeafc", "#123a7d"),
    "dil_conv": Colours("#8b4fd6", "#eee3fb", "#47207c"),
    "pointwise": Colours("#2f6fdf", "#dfeafc", "#123a7d"),
    "dense_conv": Colours("#2f6fdf", "#dfeafc", "#123a7d"),
    "factored_conv": Colours("#c4326c", "#fbe1ea", "#701538"),
    "noise": Colours("#a8841c", "#f8f0d3", "#5c4708"),
}
"""Colours of each kind of `fastdarts.space.Candidate`."""

# Sizes in pixels. A lane is the horizontal end of one edge: it carries the label and the arrow.
MARGIN, TITLE, LANE, GAP = 20, 58, 34, 20
INPUT_WIDTH, NODE_WIDTH, OUTPUT_WIDTH, STATE_HEIGHT, LABEL_HEIGHT = 76, 44, 76, 44, 24
FONT, NOTE_FONT, CORNER, ARROW = 12, 10, 9, 8


@dataclass(frozen=True)
class Box:
    """A state of the cell or the label of an edge: a rounded rectangle with its text and perhaps a note below that."""

    x: float
    y: float
    width: float
    height: float
    text: str
    subscript: str = ""
    note: str = ""
    colours: Colours | None = None  # None: a state

    @property
    def middle(self) -> Point:
        return self.x + self.width / 2, self.y + self.height / 2


@dataclass(frozen=True)
class Line:
    """A path of horizontal and vertical pieces that ends in an arrow to the right."""

    points: tuple[Point, ...]
    colours: Colours | None = None  # None: a concatenation

    def commands(self) -> list[tuple[str, tuple[Point, ...]]]:
        """SVG path commands (M, L and the quadratic Q) along the points, corners rounded, as far as the arrow."""
        *inner, (x, y) = self.points
        points = [*inner, (x - ARROW, y)]
        commands: list[tuple[str, tuple[Point, ...]]] = [("M", (points[0],))]
        for before, corner, after in zip(points, points[1:], points[2:], strict=False):
            commands.append(("L", (_towards(corner, before),)))
            commands.append(("Q", (corner, _towards(corner, after))))
        return [*commands, ("L", (points[-1],))]

    def arrow(self) -> list[Point]:
        x, y = self.points[-1]
        return [(x, y), (x - ARROW, y - ARROW / 2), (x - ARROW, y + ARROW / 2)]


@dataclass(frozen=True)
class Lane:
    """Where an edge from a source state goes: at height y to the right as far as end."""

    source: int
    y: float
    end: float
    colours: Colours | None = None


@dataclass
class Drawing:
    """What both back ends draw; pixels, y downwards."""

    width: float = 0
    height: float = 0
    titles: list[tuple[Point, str, str]] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)


def lay_out(genotype: Genotype) -> Drawing:
    """The normal cell above the reduction cell. Raises: ValueError if the genotype is not a valid one."""
    drawing = Drawing()
    for title, nodes, concat in cells_of(genotype.validated()):
        stride = "; edges from the inputs have stride 2" if title == "Reduction cell" else ""
        corner = (MARGIN, drawing.height + MARGIN)
        drawing.titles.append(
            (corner, title, f"{_count(len(nodes), 'node')}, {_count(sum(map(len, nodes)), 'edge')}{stride}")
        )
        _lay_cell(drawing, corner[1] + TITLE, nodes, set(concat))
    return drawing


def _count(number: int, of: str) -> str:
    return f"{number} {of}{'' if number == 1 else 's'}"


def _lay_cell(drawing: Drawing, top: float, nodes: list[Pairs], concat: set[int]) -> None:
    """Adds one cell, its inputs at height `top`.

    The states stand on a staircase: each node has a column and a band of rows to itself. An edge leaves its source
    downwards, turns into its own lane of the target's band and meets the target from the left. Labels stand in the
    lanes just left of the target's column, where nothing else is, so they cannot overlap; edges cross each other
    only at right angles, and a node's line to the output crosses nothing.
    """
    label_width = 0.64 * FONT * max(len(name) for node in nodes for name, _ in node) + 16  # fits the widest usual fonts
    states = [
        Box(x, top, INPUT_WIDTH, STATE_HEIGHT, "c", f"k−{2 - state}", f"state {state}")
        for state, x in enumerate((MARGIN, MARGIN + INPUT_WIDTH + GAP))
    ]
    labels: list[Box] = []
    lanes: list[Lane] = []
    y = top + STATE_HEIGHT + GAP
    for state, node in enumerate(nodes, start=2):
        x = states[-1].x + states[-1].width + 12
        height = max(LANE * len(node), STATE_HEIGHT)
        states.append(Box(x + label_width + 28, y, NODE_WIDTH, height, str(state)))
        lane_y = y + (height - LANE * (len(node) - 1)) / 2
        # The nearest source on top: its vertical ends before the lanes of farther ones pass below.
        for name, source in sorted(node, key=lambda pair: -pair[1]):
            colours = FAMILIES[candidate(name).kind]
            labels.append(Box(x, lane_y - LABEL_HEIGHT / 2, label_width, LABEL_HEIGHT, name, colours=colours))
            lanes.append(Lane(source, lane_y, states[-1].x, colours))
            lane_y += LANE
        y += height + GAP

    output_x = states[-1].x + NODE_WIDTH + 48
    ends: list[float] = []
    for state in sorted(concat - {0, 1}):
        middle, end = states[state].middle, states[state].middle[1]
        drawing.lines.append(Line(((middle[0] + NODE_WIDTH / 2, end), (output_x, end))))
        ends.append(end)
    for state in sorted(concat & {0, 1}, reverse=True):  # an input goes to the output below all nodes
        lanes.append(Lane(state, y, output_x))
        ends.append(y)
        y += GAP
    for source, box in reversed(list(enumerate(states))):  # the lanes of earlier sources pass over later ones
        leaving = [lane for lane in lanes if lane.source == source]
        pitch = min(10.0, (box.width - 16) / max(len(leaving) - 1, 1))
        # The topmost lane leaves rightmost, so that edges of one source never cross each other.
        for rank, lane in enumerate(leaving):
            x = box.middle[0] + pitch * ((len(leaving) - 1) / 2 - rank)
            drawing.lines.append(Line(((x, box.y + box.height), (x, lane.y), (lane.end, lane.y)), lane.colours))

    output = Box(output_x, min(ends) - 28, OUTPUT_WIDTH, max(ends) - min(ends) + 56, "c", "k", "concat")
    drawing.boxes += [*states, *labels, output]
    drawing.width = max(drawing.width, output_x + OUTPUT_WIDTH + MARGIN)
    drawing.height = max(y - GAP, output.y + output.height) + MARGIN


def cells_of(genotype: Genotype) -> tuple[tuple[str, list[Pairs], list[int]], ...]:
    """Title, pairs of each node, and states put out."""
    return (
        ("Normal cell", genotype.nodes("normal"), genotype.normal_concat),
        ("Reduction cell", genotype.nodes("reduce"), genotype.reduce_concat),
    )


def _towards(corner: Point, other: Point) -> Point:
    """The point where the rounding of a corner begins, on the side of `other`."""
    dx, dy = other[0] - corner[0], other[1] - corner[1]
    share = CORNER / max(abs(dx), abs(dy), CORNER)
    return corner[0] + share * dx, corner[1] + share * dy
