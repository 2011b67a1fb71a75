"""Draw tables of numbers as heat maps in SVG, which follow the page's theme; a cell tells its number when hovered."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

_CHARACTER = 5.4  # largest width of a character in a label
_WIDTH = 640  # of the cells
_LABEL = 24  # most characters of a label


@dataclass(frozen=True)
class HeatMap:
    """Describe a heat map.

    Attributes:
        title: for readers of the page's structure.
        rows, columns: their labels.
        values: [rows][columns], 0..1; None leaves a cell empty.
        texts: [rows][columns], what a cell tells when the pointer is over it.
        row_height: in pixels.
        every_column: label every n-th column.
        axis: name of the columns' axis.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    texts: Sequence[Sequence[str]]
    row_height: float = 16
    every_column: int = 1
    axis: str = ""

    def svg(self) -> Markup:
        """Return the map as SVG; the page provides the classes `heat`, `void` and `tick`."""
        return Markup("".join(self._elements()))

    def _elements(self) -> Iterator[str]:
        left = 14 + _CHARACTER * max((len(_short(name)) for name in self.rows), default=0)
        step = _WIDTH / max(len(self.columns), 1)
        bottom = self.row_height * len(self.rows)
        width, height = left + _WIDTH + 8, bottom + 36
        yield f'<svg class="map" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(self.title)}">'
        for row, name in enumerate(self.rows):
            y = row * self.row_height
            yield f'<text class="tick" x="{left - 6:.1f}" y="{y + self.row_height / 2 + 4:.1f}" text-anchor="end">'
            yield f"{escape(_short(name))}</text>"
            for column in range(len(self.columns)):
                value = self.values[row][column]
                place = f'x="{left + column * step:.2f}" y="{y:.1f}" width="{step:.2f}" height="{self.row_height:g}"'
                look = 'class="void"' if value is None else f'class="heat" fill-opacity="{min(max(value, 0), 1):.3f}"'
                yield f"<rect {place} {look}><title>{escape(self.texts[row][column])}</title></rect>"
        for column in range(0, len(self.columns), self.every_column):
            x = left + (column + 0.5) * step
            yield f'<text class="tick" x="{x:.1f}" y="{bottom + 15:.1f}" text-anchor="middle">'
            yield f"{escape(_short(self.columns[column]))}</text>"
        yield f'<text class="tick" x="{width - 8:.1f}" y="{bottom + 31:.1f}" text-anchor="end">'
        yield f"{escape(self.axis)}</text></svg>"


def _short(name: str) -> str:
    return name if len(name) <= _LABEL else f"{name[: _LABEL - 1]}…"


def confusion_map(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> HeatMap:
    """Return the map of a confusion matrix: rows are the images' classes, shades the shares of each row."""
    values: list[list[float | None]] = []
    texts = []
    for name, row in zip(classes, counts, strict=True):
        total = sum(row)
        values.append([count / total if total else None for count in row])
        texts.append(
            [
                f"{count} of {total} images of {name} are taken for {other}"
                + (f" ({100 * count / total:.1f} %)" if total else "")
                for other, count in zip(classes, row, strict=True)
            ]
        )
    labels = [str(number) if len(classes) > 12 else name for number, name in enumerate(classes)]
    rows = [f"{number} {name}" if len(classes) > 12 else name for number, name in enumerate(classes)]
    every = max(len(classes) // 20, 1)
    return HeatMap("Confusion matrix", rows, labels, values, texts, 14, every, "taken for")
