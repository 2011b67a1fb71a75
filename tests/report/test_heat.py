"""Heat maps and the lines of op weights: every number is under the pointer, names are escaped, gaps stay empty."""

import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from fastdarts.report.alphas import GroupHistory
from fastdarts.report.alphas_svg import group_svg, largest, legend, margins
from fastdarts.report.heat import HeatMap, confusion_map

OPS = ["none", "skip_connect", "sep_conv_3x3", "<own>"]


def history(weights: np.ndarray, row_weights: np.ndarray | None = None) -> GroupHistory:
    return GroupHistory("normal cell", weights, [(0, 2), (1, 2)], row_weights)


def weights_over(epochs: int) -> np.ndarray:
    """`sep_conv_3x3` grows on the first edge; the second has no <own> and prefers `none`."""
    weights = np.full((epochs + 1, 2, 4), 0.25)
    weights[:, 0, 2] += 0.3 * np.linspace(0, 1, epochs + 1)
    weights[:, 1, 0] = 0.6
    weights[:, 1, 1] = 0.25 + 0.05 * np.linspace(0, 1, epochs + 1)
    weights[:, 1, 3] = math.nan
    return weights


@pytest.mark.parametrize("epochs", [0, 1, 50])
def test_lines_of_each_op(epochs: int) -> None:
    group = history(weights_over(epochs), np.full((epochs + 1, 2), 0.5))
    root = ElementTree.fromstring(group_svg(group, OPS, largest([group])))
    titles = [node.text or "" for node in root.iter() if node.tag.endswith("title")]
    assert sum("sep_conv_3x3, 0 → 2" in title for title in titles) == 1
    assert not any(title.startswith("<own>, 1 → 2") for title in titles)
    assert sum(title == "weight of the edge" for title in titles) == 2
    lines = [node.attrib["points"].split() for node in root.iter() if node.tag.endswith("polyline")]
    assert all(len(line) == epochs + 1 for line in lines)
    best = [node.text for node in root.iter() if node.attrib.get("class") == "best"]
    assert best[1].startswith("skip_connect")  # the strongest besides none


def test_a_line_is_where_its_numbers_are() -> None:
    group = history(weights_over(10))
    root = ElementTree.fromstring(group_svg(group, OPS, 1.0))
    grid = [node.attrib["d"] for node in root.iter() if node.attrib.get("class") == "grid"]
    bottom, top = (float(re.match(r"M\d+ ([\d.]+)h", path)[1]) for path in grid[:2])
    line = next(node for node in root.iter() if node.attrib.get("stroke") and node.tag.endswith("polyline"))
    first = float(line.attrib["points"].split()[0].split(",")[1])
    assert (bottom - first) / (bottom - top) == pytest.approx(0.25, abs=0.01)


def test_margins_leave_none_out() -> None:
    found = margins(history(weights_over(4)), OPS)
    assert found.rows == ["0 → 2", "1 → 2"]
    assert found.values[0][-1] == 1.0  # the largest lead, 0.3
    assert found.values[0][2] == pytest.approx(0.5)
    assert found.values[1][-1] == pytest.approx(0.05 / 0.3)
    assert "skip_connect 0.300, sep_conv_3x3 0.250, lead 0.050" in found.texts[1][-1]
    alone = weights_over(1)
    alone[:, 1, 1:] = math.nan
    assert margins(history(alone), OPS).values[1] == [None, None]


def test_confusion_is_shared_out_by_rows() -> None:
    found = confusion_map([[3, 1], [0, 0]], ["<cat>", "dog"])
    assert found.values == [[0.75, 0.25], [None, None]]
    assert found.texts[0][1] == "1 of 4 images of <cat> are taken for dog (25.0 %)"
    assert "<cat>" not in found.svg()
    many = confusion_map(np.eye(100, dtype=int).tolist(), [f"class {number}" for number in range(100)])
    assert many.rows[99] == "99 class 99"
    assert many.columns[99] == "99"


def test_a_map_is_well_formed() -> None:
    root = ElementTree.fromstring(HeatMap("A & B", ["x" * 60], ["1", "2"], [[0.5, None]], [["a", "<b>"]]).svg())
    cells = [node for node in root.iter() if node.tag.endswith("rect")]
    assert [cell.attrib["class"] for cell in cells] == ["heat", "void"]
    assert [cell[0].text for cell in cells] == ["a", "<b>"]
    assert max(len(node.text or "") for node in root.iter() if node.attrib.get("class") == "tick") == 24


def test_legend_names_every_op() -> None:
    class Text(HTMLParser):
        words = ""

        def handle_data(self, data: str) -> None:
            self.words += data + " "

    parser = Text()
    parser.feed(str(legend(OPS)))
    assert parser.words.split() == OPS
