"""A picture of a cell: its four nodes on a staircase, one labelled edge between each two."""

from fastdarts.spaces.drawing import Drawing
from fastdarts.spaces.nasbench201.architecture import ENDS, NasBench201Cell
from fastdarts.spaces.staircase import counted, lay_cell


def lay_out(cell: NasBench201Cell) -> Drawing:
    """Place the nodes and the edges that have an op other than `none`."""
    nodes = [
        [(op, source) for op, (source, target) in zip(cell.ops, ENDS, strict=True) if target == node and op != "none"]
        for node in range(1, 4)
    ]
    drawing = Drawing()
    note = f"{counted(sum(map(len, nodes)), 'edge')} with an op; the same cell in all stages"
    lay_cell(drawing, ("Cell", note), [("0", "", "input")], nodes, {3}, ("out", "", "node 3"))
    return drawing


def describe(cell: NasBench201Cell) -> str:
    """Describe the cell in words, for readers who cannot see the picture."""
    edges = [f"{source} to {target} {op}" for op, (source, target) in zip(cell.ops, ENDS, strict=True)]
    return f"Cell: {', '.join(edges)}."
