"""Lay out a picture of the cells of DARTS' space; `fastdarts.spaces.darts.draw` renders it."""

from fastdarts.spaces.darts.cell_genotypes import CellGenotypes
from fastdarts.spaces.darts.genotype import FoundCell, Genotype
from fastdarts.spaces.drawing import Drawing
from fastdarts.spaces.staircase import counted, lay_cell

INPUTS = [("c", f"k−{2 - state}", f"state {state}") for state in (0, 1)]


def lay_out(genotype: Genotype | CellGenotypes) -> Drawing:
    """Place the cells below each other. Raises: ValueError if the genotype is not a valid one."""
    drawing = Drawing()
    for title, (nodes, concat) in cells_of(genotype):
        stride = "; edges from the inputs have stride 2" if "eduction" in title else ""
        note = f"{counted(len(nodes), 'node')}, {counted(sum(map(len, nodes)), 'edge')}{stride}"
        lay_cell(drawing, (title, note), INPUTS, nodes, set(concat), ("c", "k", "concat"))
    return drawing


def cells_of(genotype: Genotype | CellGenotypes) -> list[tuple[str, FoundCell]]:
    """Return the title and the cell of each type, or of each place. Raises: ValueError for an invalid genotype."""
    if isinstance(genotype, CellGenotypes):
        count = len(genotype.cells)
        reductions = dict.fromkeys((count // 3, 2 * count // 3), " (reduction)")
        return [(f"Cell {index}{reductions.get(index, '')}", cell) for index, cell in enumerate(genotype.cells)]
    valid = genotype.validated()
    return [
        ("Normal cell", valid.cell(0, reduction=False)),
        ("Reduction cell", valid.cell(0, reduction=True)),
    ]
