"""Cells of NAS-Bench-201: how many there are, their strings and JSON, and what is said of wrong ones."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fastdarts.spaces import registry
from fastdarts.spaces.nasbench201.architecture import ENDS, PRIMITIVES, NasBench201Cell, all_cells
from fastdarts.spaces.nasbench201.space import NasBench201

BEST = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"


def test_15625_cells_that_are_read_as_they_are_written() -> None:
    found = {}
    for cell in all_cells():
        found[str(cell)] = cell
        assert NasBench201Cell.parse(str(cell)) == cell
    assert len(found) == 5**6 == 15_625


def test_the_benchmarks_order_of_edges() -> None:
    cell = NasBench201Cell.parse(BEST)
    assert dict(zip(ENDS, cell.ops, strict=True)) == {
        (0, 1): "nor_conv_3x3",
        (0, 2): "nor_conv_3x3",
        (1, 2): "nor_conv_3x3",
        (0, 3): "skip_connect",
        (1, 3): "nor_conv_3x3",
        (2, 3): "nor_conv_3x3",
    }
    assert str(cell) == BEST
    assert hash(cell) == hash(NasBench201Cell(list(cell.ops)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nor_conv_3x3",
        BEST[:-1],
        BEST[1:],
        BEST.replace("+", "|"),
        BEST.replace("~2", "~1"),
        BEST.replace("~2", "~3"),
        BEST.replace("|nor_conv_3x3~2|", "|"),
        BEST + "+|none~0|none~1|none~2|none~3|",
        BEST.replace("|+|", "| + |"),
    ],
)
def test_strings_that_are_no_cell(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape("must be written as |op~0|+|op~0|op~1|+|op~0|op~1|op~2|; got")):
        NasBench201Cell.parse(text)


def test_ops_that_are_not_in_the_space() -> None:
    with pytest.raises(ValueError, match=r"ops must be among none, .*; got 'sep_conv_3x3'"):
        NasBench201Cell.parse(BEST.replace("skip_connect", "sep_conv_3x3"))
    with pytest.raises(ValueError, match="one op for each of the 6 edges; got 5"):
        NasBench201Cell(("none",) * 5)
    with pytest.raises(ValueError, match=r"primitives must be among none, .* in this space; got 'max_pool_3x3'"):
        registry.find("nasbench201", ["none", "max_pool_3x3"])


def test_json() -> None:
    cell = NasBench201Cell.parse(BEST)
    assert json.loads(cell.to_json()) == {"space": "nasbench201", "arch": BEST}
    assert registry.read_architecture(cell.to_json()) == cell
    for text in ('{"space": "nasbench201"}', '{"space": "nasbench201", "arch": 3}'):
        with pytest.raises(ValueError, match="must be a JSON object with the key arch"):
            registry.read_architecture(text)
    with pytest.raises(ValueError, match=r"space must be one of darts, .*; got 'nasbench301'; did you mean"):
        registry.read_architecture('{"space": "nasbench301", "arch": "x"}')
    with pytest.raises(ValueError, match="must be the name of a space; got 3"):
        registry.read_architecture('{"space": 3}')


def test_what_a_user_names(tmp_path: Path) -> None:
    cell = NasBench201Cell.parse(BEST)
    assert registry.load_architecture(BEST) == cell
    path = tmp_path / "genotype.json"
    path.write_text(cell.to_json())
    assert registry.load_architecture(str(path)) == cell
    path.write_text(cell.to_json().replace("~2", "~1"))
    with pytest.raises(ValueError, match=rf"{path}: a cell must be written as"):
        registry.load_architecture(str(path))
    assert registry.space_of(cell).name == "nasbench201"
    assert NasBench201().from_text("DARTS_V2") is None


def test_numbers_and_picture() -> None:
    space, cell = NasBench201(), NasBench201Cell.parse(BEST)
    assert space.numbers(cell) == {"skips_cell": 1}
    root = ElementTree.fromstring(space.svg(cell))
    texts = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert sorted(text for text in texts if text in PRIMITIVES) == ["nor_conv_3x3"] * 5 + ["skip_connect"]
    assert "6 edges with an op; the same cell in all stages" in texts
    assert "2 to 3 nor_conv_3x3" in (root.findtext("{http://www.w3.org/2000/svg}desc") or "")
    nothing = NasBench201Cell(("none",) * 6)  # nothing enters the output
    for drawn in (cell, nothing):
        assert space.png(drawn).startswith(b"\x89PNG")
        ElementTree.fromstring(space.svg(drawn))
