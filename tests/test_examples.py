"""The programs of examples/ run, at a tiny size."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from fastdarts import cli
from fastdarts.spaces.registry import load_architecture

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TINY = {
    "own_op": ["--epochs", "1", "--layers", "1", "--order", "1", "--out", "run"],
    "own_data_frame": ["--images", "32", "--epochs", "1", "--out", "run"],
    "own_space": ["--epochs", "1", "--layers", "2", "--out", "run"],
    "own_training_loop": ["--epochs", "1", "--steps", "1"],
    "segmentation_head": ["--steps", "1"],
}


@pytest.fixture(autouse=True)
def own_folder(registrations_undone, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_every_example_is_run_here():
    assert sorted(TINY) == sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", TINY)
def test_it_runs_and_prints_what_it_found(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, *TINY[name]])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert re.search(r"^(Genotype|Chain)\(", capsys.readouterr().out, re.MULTILINE)


def test_the_own_op_as_a_plugin(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    flags = "--plugin own_op --primitives none,se_conv_3x3 --epochs 1 --layers 1 --init-channels 2 --order 1"
    assert cli.main(["search", *flags.split(), "--batch-size", "256", "--out", str(tmp_path / "run")]) == 0
    assert "se_conv_3x3" in capsys.readouterr().out
    found = load_architecture(str(tmp_path / "run" / "genotype.json"))
    assert {op for op, _ in [*found.normal, *found.reduce]} == {"se_conv_3x3"}
    assert "se_conv_3x3" in (tmp_path / "run" / "cells.svg").read_text()


def test_the_own_space_as_a_plugin_is_searched_resumed_and_evaluated(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    plugin, run = ["--plugin", "own_space"], str(tmp_path / "run")
    small = ["--layers", "2", "--init-channels", "2", "--batch-size", "256", "--order", "1"]
    assert cli.main(["search", *plugin, "--space", "chain", *small, "--epochs", "1", "--out", run]) == 0
    assert cli.main(["search", *plugin, "--resume", "--out", run]) == 0
    report = (tmp_path / "run" / "report.html").read_text()
    assert "skips, layers" in report
    assert "normal cell" not in report  # this space has no normal and reduction cells
    found = load_architecture(str(tmp_path / "run" / "genotype.json"))
    assert len(found.ops) == 2
    evaluation = ["--genotype", f"{run}/genotype.json", "--epochs", "1", "--batch-size", "256", "--out", f"{run}/eval"]
    assert cli.main(["evaluate", *plugin, *evaluation]) == 0
    assert "test error" in capsys.readouterr().out
