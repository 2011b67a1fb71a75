"""A picture of a recurrent cell: its states on a staircase, one labelled edge into each node."""

from fastdarts.spaces.drawing import Drawing
from fastdarts.spaces.recurrent.architecture import RecurrentCell
from fastdarts.spaces.staircase import counted, lay_cell


def lay_out(cell: RecurrentCell) -> Drawing:
    """Place the states, the edges and the output."""
    drawing = Drawing()
    note = f"{counted(len(cell.nodes), 'node')}; the output is the mean of {counted(len(cell.states), 'state')}"
    nodes = [[node] for node in cell.nodes]
    lay_cell(drawing, ("Recurrent cell", note), [("0", "", "x, h")], nodes, set(cell.states), ("h", "t", "mean"))
    return drawing


def describe(cell: RecurrentCell) -> str:
    """Describe the cell in words, for readers who cannot see the picture."""
    edges = [f"{source} to {target} {name}" for target, (name, source) in enumerate(cell.nodes, start=1)]
    return f"Recurrent cell: {', '.join(edges)}; output: the mean of states {', '.join(map(str, cell.states))}."
