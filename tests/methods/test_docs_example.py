"""The method that docs/methods.md shows: under 40 lines, and all that holds for every method holds for it."""

import re
import sys
from pathlib import Path

import pytest
import test_all
from tiny_method import finish, tiny_state

from fastdarts import methods

PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods.md"


@pytest.fixture
def example(tmp_path, monkeypatch):
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert block.count("\n") < 40
    (tmp_path / "annealed.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    yield "annealed:Annealed"
    sys.modules.pop("annealed", None)


def test_it_resumes(example, tmp_path):
    test_all.test_a_killed_search_goes_on_bit_for_bit(tmp_path, example)


def test_its_temperature_falls(example):
    temperatures = [metrics["method"]["temperature"] for metrics in finish(tiny_state(example))]
    assert temperatures == pytest.approx([1, 0.1**0.5, 0.1])


def steps_of(page):
    """The column `step` of the table of methods, by name; a row may be of several methods."""
    costs = {}
    for line in page.read_text().splitlines():
        columns = [column.split(", ") for column in line.strip("| ").split(" | ")]
        if line.startswith("| `") and columns[0][0].strip("`") in methods.NAMES:
            costs |= dict(zip((name.strip("`") for name in columns[0]), columns[2], strict=True))
    return costs


def test_the_table_and_the_readme_name_all_methods():
    costs = steps_of(PAGE)
    assert sorted(costs) == sorted(methods.NAMES)
    text = (PAGE.parents[1] / "README.md").read_text()
    assert all(f"`{name}`" in text for name in methods.NAMES)
    assert f"`pc-darts` takes {costs['pc-darts']}" in " ".join(text.split())
    assert f"`gdas` {costs['gdas']}" in text
