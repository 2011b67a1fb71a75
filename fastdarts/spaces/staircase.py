"""Lay out the states, edges and labels of a cell; `fastdarts.spaces.picture` renders them."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastdarts.spaces.drawing import FONT, Box, Colours, Drawing, Line, colours_of

# Sizes in pixels. A lane is the horizontal end of an edge, with the label and the arrow.
MARGIN, TITLE, LANE, GAP = 20, 58, 34, 20

INPUT_WIDTH, NODE_WIDTH, OUTPUT_WIDTH, STATE_HEIGHT, LABEL_HEIGHT = 76, 44, 76, 44, 24


@dataclass(frozen=True)
class Lane:
    """Hold the lane of an edge from state `source`: it runs to the right at height `y`, up to x = `end`."""

    source: int
    y: float
    end: float
    colours: Colours | None = None


def lay_cell(
    drawing: Drawing,
    title: tuple[str, str],
    inputs: Sequence[tuple[str, str, str]],
    nodes: Sequence[Sequence[tuple[str, int]]],
    outputs: set[int],
    output: tuple[str, str, str],
) -> None:
    """Add one cell below the present contents of `drawing`.

    The states form a staircase: each node has its own column and its own band of rows. An edge leaves its source
    downwards, turns into its own lane in the target's band and enters the target from the left. Labels are in the lanes
    just left of the target's column, which contains nothing else, so they cannot overlap. Edges cross each other only
    at right angles, and a node's line to the output crosses nothing.

    Args:
        drawing: receives the boxes and lines.
        title: the title and a note below it.
        inputs: (text, subscript, note) of each input state.
        nodes: the (op, source state) pairs of each node; states are the inputs, then the nodes.
        outputs: the states that form the cell's output.
        output: text, subscript and note of the output's box.
    """
    corner = (MARGIN, drawing.height + MARGIN)
    drawing.titles.append((corner, *title))
    top = corner[1] + TITLE
    longest = max((len(name) for node in nodes for name, _ in node), default=0)
    label_width = 0.64 * FONT * longest + 16  # fits the widest usual fonts
    states = [
        Box(MARGIN + place * (INPUT_WIDTH + GAP), top, INPUT_WIDTH, STATE_HEIGHT, *words)
        for place, words in enumerate(inputs)
    ]
    labels: list[Box] = []
    lanes: list[Lane] = []
    y = top + STATE_HEIGHT + GAP
    for state, node in enumerate(nodes, start=len(inputs)):
        x = states[-1].x + states[-1].width + 12
        height = max(LANE * len(node), STATE_HEIGHT)
        states.append(Box(x + label_width + 28, y, NODE_WIDTH, height, str(state)))
        lane_y = y + (height - LANE * (len(node) - 1)) / 2
        # The nearest source has the top lane, so its vertical piece ends above the lanes of farther sources.
        for name, source in sorted(node, key=lambda pair: -pair[1]):
            colours = colours_of(name)
            labels.append(Box(x, lane_y - LABEL_HEIGHT / 2, label_width, LABEL_HEIGHT, name, colours=colours))
            lanes.append(Lane(source, lane_y, states[-1].x, colours))
            lane_y += LANE
        y += height + GAP

    output_x = states[-1].x + NODE_WIDTH + 48
    ends: list[float] = []
    for state in sorted(outputs - set(range(len(inputs)))):
        middle, end = states[state].middle, states[state].middle[1]
        drawing.lines.append(Line(((middle[0] + NODE_WIDTH / 2, end), (output_x, end))))
        ends.append(end)
    for state in sorted(outputs & set(range(len(inputs))), reverse=True):  # inputs reach the output below all nodes
        lanes.append(Lane(state, y, output_x))
        ends.append(y)
        y += GAP
    for source, box in reversed(list(enumerate(states))):  # the lanes of earlier sources pass over later ones
        leaving = [lane for lane in lanes if lane.source == source]
        pitch = min(10.0, (box.width - 16) / max(len(leaving) - 1, 1))
        # The topmost lane starts rightmost, so that edges of one source never cross each other.
        for rank, lane in enumerate(leaving):
            x = box.middle[0] + pitch * ((len(leaving) - 1) / 2 - rank)
            drawing.lines.append(Line(((x, box.y + box.height), (x, lane.y), (lane.end, lane.y)), lane.colours))

    end_box = Box(output_x, min(ends) - 28, OUTPUT_WIDTH, max(ends) - min(ends) + 56, *output)
    drawing.boxes += [*states, *labels, end_box]
    drawing.width = max(drawing.width, output_x + OUTPUT_WIDTH + MARGIN)
    drawing.height = max(y - GAP, end_box.y + end_box.height) + MARGIN


def counted(number: int, what: str) -> str:
    """Return `number` followed by the noun `what`, in the plural unless the number is 1."""
    return f"{number} {what}{'' if number == 1 else 's'}"
