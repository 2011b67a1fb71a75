"""Pictures of the cells of a genotype."""

from fastdarts.spaces.darts.cell_genotypes import CellGenotypes
from fastdarts.spaces.darts.genotype import Genotype
from fastdarts.spaces.darts.layout import cells_of, lay_out
from fastdarts.spaces.picture import png, svg


def draw_cells(genotype: Genotype | CellGenotypes) -> str:
    """Draw all cells as one SVG document that follows the viewer's light or dark mode.

    Raises: ValueError if the genotype is not a valid one.
    """
    return "\n".join(svg(lay_out(genotype), _describe(genotype)))


def png_of(genotype: Genotype | CellGenotypes) -> bytes:
    """Draw the same picture as a PNG file of twice the size."""
    return png(lay_out(genotype))


def _describe(genotype: Genotype | CellGenotypes) -> str:
    """Describe the cells in words, for readers who cannot see the picture."""
    sentences = []
    for title, (nodes, concat) in cells_of(genotype):
        edges = [f"{source} to {state} {name}" for state, node in enumerate(nodes, start=2) for name, source in node]
        sentences.append(f"{title}: {', '.join(edges)}; output {', '.join(map(str, concat))}.")
    return " ".join(sentences)
