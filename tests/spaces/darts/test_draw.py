"""Pictures of cells: the layout holds what it promises for any genotype, and the SVG says what the genotype says."""

import random
import re
import xml.etree.ElementTree as ElementTree
from itertools import combinations
from typing import Any

import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from fastdarts.primitives.table import CANDIDATES
from fastdarts.spaces.darts.draw import draw_cells
from fastdarts.spaces.darts.genotype import DARTS_V1, DARTS_V2, Genotype
from fastdarts.spaces.darts.layout import lay_out
from fastdarts.spaces.drawing import Box, Line, Point

SVG = "{http://www.w3.org/2000/svg}"


def random_genotype(seed: int) -> Genotype:
    """1 to 6 nodes with 1 to 4 ops each, also several from one state; any states put out."""
    rng = random.Random(seed)

    def cell() -> tuple[Any, list[int]]:
        steps = rng.randint(1, 6)
        nodes = [
            [(rng.choice(list(CANDIDATES)), rng.randrange(state)) for _ in range(rng.randint(1, 4))]
            for state in range(2, 2 + steps)
        ]
        return nodes, rng.sample(range(steps + 2), rng.randint(1, steps + 2))

    return Genotype(*cell(), *cell())


GENOTYPES = {"V1": DARTS_V1, "V2": DARTS_V2} | {f"random{seed}": random_genotype(seed) for seed in range(20)}


@pytest.fixture(params=GENOTYPES)
def genotype(request: pytest.FixtureRequest) -> Genotype:
    return GENOTYPES[request.param]


def edges(genotype: Genotype) -> list[tuple[str, int, int]]:
    """(primitive, source, target) of all edges of both cells."""
    cells = (genotype.nodes("normal"), genotype.nodes("reduce"))
    return [
        (name, source, target) for nodes in cells for target, node in enumerate(nodes, start=2) for name, source in node
    ]


def overlap(a: Box, b: Box) -> bool:
    return a.x < b.x + b.width and b.x < a.x + a.width and a.y < b.y + b.height and b.y < a.y + a.height


def pieces(line: Line) -> list[tuple[float, float, float, float]]:
    """The straight pieces of a line, each as its bounding box x0, y0, x1, y1."""
    return [
        (min(a[0], b[0]), min(a[1], b[1]), max(a[0], b[0]), max(a[1], b[1]))
        for a, b in zip(line.points, line.points[1:], strict=False)
    ]


def test_nothing_overlaps(genotype: Genotype) -> None:
    drawing = lay_out(genotype)
    assert not [pair for pair in combinations(drawing.boxes, 2) if overlap(*pair)]
    for box in drawing.boxes:
        assert 0 <= box.x <= drawing.width - box.width
        assert 0 <= box.y <= drawing.height - box.height


def test_lines_cross_boxes_only_at_their_own_labels(genotype: Genotype) -> None:
    drawing = lay_out(genotype)
    for line in drawing.lines:
        through = [
            box
            for x0, y0, x1, y1 in pieces(line)
            for box in drawing.boxes
            if x0 < box.x + box.width and box.x < x1 and y0 < box.y + box.height and box.y < y1
        ]
        assert [box.colours for box in through] == ([line.colours] if line.colours else [])


def test_lines_never_run_along_each_other(genotype: Genotype) -> None:
    """Parallel pieces on one line of the grid must not share a stretch: crossings are at right angles."""
    found = [piece for line in lay_out(genotype).lines for piece in pieces(line)]
    for a, b in combinations(found, 2):
        if a[1] == a[3] == b[1] == b[3]:
            assert a[2] <= b[0] or b[2] <= a[0]
        if a[0] == a[2] == b[0] == b[2]:
            assert a[3] <= b[1] or b[3] <= a[1]


def test_each_edge_joins_its_states(genotype: Genotype) -> None:
    drawing = lay_out(genotype)
    states = [box for box in drawing.boxes if box.colours is None]
    split = 1 + next(number for number, box in enumerate(states) if box.note == "concat")
    boundary = max(box.y + box.height for box in states[:split])

    def state_at(point: Point) -> int:
        """The number in its cell of the state that the point touches; the output has the highest."""
        x, y = point
        cell = states[:split] if y <= boundary else states[split:]
        touched = [box.x <= x <= box.x + box.width and box.y <= y <= box.y + box.height for box in cell]
        assert touched.count(True) == 1
        return touched.index(True)

    drawn, concats = [], []
    for line in drawing.lines:
        source, target = state_at(line.points[0]), state_at(line.points[-1])
        end, lane = line.points[-1]
        if line.colours:
            (name,) = (box.text for box in drawing.boxes if box.colours and box.middle[1] == lane and box.x < end)
            drawn.append((name, source, target))
        else:
            concats.append(source)
            assert target == len(states[:split] if lane <= boundary else states[split:]) - 1
    assert sorted(drawn) == sorted(edges(genotype))
    assert sorted(concats) == sorted([*genotype.normal_concat, *genotype.reduce_concat])


def test_svg_says_what_the_genotype_says(genotype: Genotype) -> None:
    root = ElementTree.fromstring(draw_cells(genotype))
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    names = sorted(text for text in texts if text in CANDIDATES)
    assert names == sorted(name for name, _, _ in edges(genotype))
    assert {"ck−2", "ck−1", "ck", "Normal cell", "Reduction cell"} <= set(texts)
    description = root.findtext(f"{SVG}desc")
    assert description is not None
    words = [
        (name, int(source), int(target)) for source, target, name in re.findall(r"(\d+) to (\d+) (\w+)", description)
    ]
    assert words == edges(genotype)
    assert not [element for element in root.iter() if "href" in element.attrib]


def test_svg_is_small() -> None:
    assert len(draw_cells(DARTS_V2)) < 15_000


def test_labels_hold_their_text() -> None:
    """Widths measured in the font that the PNG uses, which is a wide one."""
    for box in lay_out(DARTS_V1).boxes:
        if box.colours:
            width = TextPath((0, 0), box.text, size=12, prop=FontProperties(family="DejaVu Sans")).get_extents().width
            assert width + 8 <= box.width


@pytest.mark.parametrize(
    ("normal", "message"),
    [([("jump", 0), ("jump", 1)], "jump"), ([("skip_connect", 0), ("skip_connect", 2)], r"0\.\.1"), ([], "two")],
)
def test_bad_genotype(normal: list[tuple[str, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_cells(DARTS_V1._replace(normal=normal))
