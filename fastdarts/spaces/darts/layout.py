"""Lay out a picture of DARTS' two cells; `fastdarts.spaces.darts.draw` renders it."""

from fastdarts.spaces.darts.genotype import Genotype, Pairs
from fastdarts.spaces.drawing import Drawing
from fastdarts.spaces.staircase import counted, lay_cell

INPUTS = [("c", f"k−{2 - state}", f"state {state}") for state in (0, 1)]


def lay_out(genotype: Genotype) -> Drawing:
    """Place the normal cell above the reduction cell. Raises: ValueError if the genotype is not a valid one."""
    drawing = Drawing()
    for title, nodes, concat in cells_of(genotype.validated()):
        stride = "; edges from the inputs have stride 2" if title == "Reduction cell" else ""
        note = f"{counted(len(nodes), 'node')}, {counted(sum(map(len, nodes)), 'edge')}{stride}"
        lay_cell(drawing, (title, note), INPUTS, nodes, set(concat), ("c", "k", "concat"))
    return drawing


def cells_of(genotype: Genotype) -> tuple[tuple[str, list[Pairs], list[int]], ...]:
    """Return the title, the (op, source state) pairs of each node and the output states of both cells."""
    return (
        ("Normal cell", genotype.nodes("normal"), genotype.normal_concat),
        ("Reduction cell", genotype.nodes("reduce"), genotype.reduce_concat),
    )
