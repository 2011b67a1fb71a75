"""The documentation site: its pictures are current, its pages are in the menu, and it builds without warnings."""

import os
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from test_structure import ROOMS

from fastdarts import DARTS_V2
from fastdarts.spaces.darts.draw import draw_cells

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def test_the_picture_of_the_rooms_is_current():
    """If it is not: python docs/rooms.py."""
    assert (DOCS / "rooms.svg").read_text() == runpy.run_path(str(DOCS / "rooms.py"))["picture"]()


def test_the_architecture_page_has_the_rooms_in_their_order():
    rooms = re.findall(r"^\| `?(\w+)`? \|", (DOCS / "architecture.md").read_text(), re.MULTILINE)
    assert tuple(rooms[1:]) == ROOMS


def test_the_readmes_picture_is_what_draw_makes():
    assert (DOCS / "darts-v2.svg").read_text() == draw_cells(DARTS_V2) + "\n"


def test_every_page_is_in_the_menu_once():
    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in pages(part)]

    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert sorted(pages(config["nav"])) == sorted(path.name for path in DOCS.glob("*.md"))


@pytest.mark.skipif(find_spec("mkdocstrings") is None, reason="needs the extra 'docs'")
def test_it_builds_without_warnings(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert "register_primitive" in (tmp_path / "site" / "api" / "index.html").read_text()
