"""The programs of examples/ run, at a tiny size."""

import runpy
import sys
from pathlib import Path

import pytest

from fastdarts import cli
from fastdarts.config import plugins
from fastdarts.primitives.table import CANDIDATES
from fastdarts.spaces.registry import load_architecture

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TINY = {
    "own_op": ["--epochs", "1", "--layers", "1", "--order", "1", "--out", "run"],
    "own_data_frame": ["--images", "32", "--epochs", "1", "--out", "run"],
    "own_training_loop": ["--epochs", "1", "--steps", "1"],
    "segmentation_head": ["--steps", "1"],
}


@pytest.fixture(autouse=True)
def restored(monkeypatch, tmp_path):
    """Remove the ops and modules that an example leaves in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(plugins, "_loaded", [])
    before = dict(CANDIDATES)
    yield
    CANDIDATES.clear()
    CANDIDATES.update(before)
    sys.modules.pop("own_op", None)


def test_every_example_is_run_here():
    assert sorted(TINY) == sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", TINY)
def test_it_runs_and_prints_what_it_found(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, *TINY[name]])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert "Genotype(normal=" in capsys.readouterr().out


@pytest.mark.parametrize("name", TINY)
def test_it_is_short(name):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= 65


def test_the_own_op_as_a_plugin(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    flags = "--plugin own_op --primitives none,se_conv_3x3 --epochs 1 --layers 1 --init-channels 2 --order 1"
    assert cli.main(["search", *flags.split(), "--batch-size", "256", "--out", str(tmp_path / "run")]) == 0
    assert "se_conv_3x3" in capsys.readouterr().out
    found = load_architecture(str(tmp_path / "run" / "genotype.json"))
    assert {op for op, _ in [*found.normal, *found.reduce]} == {"se_conv_3x3"}
    assert "se_conv_3x3" in (tmp_path / "run" / "cells.svg").read_text()
