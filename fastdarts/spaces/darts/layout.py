"""Where everything of a picture of cells stands; `draw` draws it."""

from dataclasses import dataclass

from fastdarts.spaces.darts.genotype import Genotype, Pairs
from fastdarts.spaces.drawing import FONT, Box, Colours, Drawing, Line, colours_of

# Sizes in pixels. A lane is the horizontal end of one edge: it carries the label and the arrow.
MARGIN, TITLE, LANE, GAP = 20, 58, 34, 20

INPUT_WIDTH, NODE_WIDTH, OUTPUT_WIDTH, STATE_HEIGHT, LABEL_HEIGHT = 76, 44, 76, 44, 24


@dataclass(frozen=True)
class Lane:
    """Where an edge from a source state goes: at height y to the right as far as end."""

    source: int
    y: float
    end: float
    colours: Colours | None = None


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
            colours = colours_of(name)
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
