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


def test_the_page_names_all_methods():
    for name in methods.NAMES:
        assert f"| `{name}` |" in PAGE.read_text()
