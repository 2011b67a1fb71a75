"""Define the parts of a picture of an architecture: boxes, lines and their colours; `picture` renders them."""

from dataclasses import dataclass, field
from typing import NamedTuple

from fastdarts.primitives.table import CANDIDATES

Point = tuple[float, float]


class Colours(NamedTuple):
    """Hold the colours of a family of primitives: of its lines, and of the fill and text of its labels."""

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
    "dense_conv": Colours("#8b4fd6", "#eee3fb", "#47207c"),
    "factored_conv": Colours("#c4326c", "#fbe1ea", "#701538"),
    "noise": Colours("#a8841c", "#f8f0d3", "#5c4708"),
    "tanh": Colours("#2f6fdf", "#dfeafc", "#123a7d"),
    "relu": _POOL,
    "sigmoid": Colours("#8b4fd6", "#eee3fb", "#47207c"),
    "identity": Colours("#1c9a5f", "#dcf3e6", "#0b4f2f"),
}
"""Colours of each kind of `fastdarts.primitives.table.Candidate`, and of activations."""


FONT, NOTE_FONT, CORNER, ARROW = 12, 10, 9, 8


OWN = Colours("#0e8a8a", "#dcf1f1", "#0a4a4a")
"""Colours of user-defined ops, which are not in the library's table."""


def colours_of(primitive: str) -> Colours:
    """Return the colours of the family of `primitive`."""
    known = CANDIDATES.get(primitive)
    return FAMILIES.get(primitive if known is None else known.kind, OWN)


@dataclass(frozen=True)
class Box:
    """Describe a state of the cell or an edge's label: a rounded rectangle with text and an optional note below it."""

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

    @property
    def rounding(self) -> float:
        """Return the radius of the corners."""
        return min(self.height / 2, 12) if self.colours else 8


@dataclass(frozen=True)
class Line:
    """Describe a path of horizontal and vertical pieces that ends in an arrow to the right."""

    points: tuple[Point, ...]
    colours: Colours | None = None  # None: a concatenation

    def commands(self) -> list[tuple[str, tuple[Point, ...]]]:
        """Return SVG path commands (M, L and quadratic Q) along the points, with rounded corners, up to the arrow."""
        *inner, (x, y) = self.points
        points = [*inner, (x - ARROW, y)]
        commands: list[tuple[str, tuple[Point, ...]]] = [("M", (points[0],))]
        for before, corner, after in zip(points, points[1:], points[2:], strict=False):
            commands.append(("L", (towards(corner, before),)))
            commands.append(("Q", (corner, towards(corner, after))))
        return [*commands, ("L", (points[-1],))]

    def arrow(self) -> list[Point]:
        x, y = self.points[-1]
        return [(x, y), (x - ARROW, y - ARROW / 2), (x - ARROW, y + ARROW / 2)]


@dataclass
class Drawing:
    """Hold the parts of a picture for both back ends, in pixels with y pointing down."""

    width: float = 0
    height: float = 0
    titles: list[tuple[Point, str, str]] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)


def towards(corner: Point, other: Point) -> Point:
    """Return the point at which the rounding of `corner` begins on the side of `other`."""
    dx, dy = other[0] - corner[0], other[1] - corner[1]
    share = CORNER / max(abs(dx), abs(dy), CORNER)
    return corner[0] + share * dx, corner[1] + share * dy
