"""Runs on texts that SIGKILL ends within an epoch: resumed, they end as if nothing had happened, bit for bit."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_text import tiny_text_evaluation, tiny_text_search

from fastdarts.evaluate_text import evaluate_text
from fastdarts.runs.text_eval_state import TextEvalState
from fastdarts.runs.text_search_state import TextSearchState
from fastdarts.search import search
from fastdarts.spaces.recurrent.architecture import PUBLISHED

CHILD = "import sys; from test_text_kills import killed; killed(sys.argv[1], sys.argv[2])"
STATES = {"search": TextSearchState, "evaluation": TextEvalState}
LAST_STEPS = {"search": 12, "evaluation": 41}
AVERAGING = {"patience": 1, "test_columns": 4}


def run(kind: str, out: Path, **fields: Any) -> None:
    """Run a search of second order with bfloat16 products, or a training that soon averages its weights."""
    if kind == "search":
        search(tiny_text_search(out, method="darts", amp=True, save_every_steps=3, **fields))
    else:
        config = tiny_text_evaluation(out, AVERAGING, epochs=8, lr=20.0, save_every_steps=3, **fields)
        evaluate_text(PUBLISHED["RNN_DARTS_V1"], config)


def killed(kind: str, out: str) -> None:
    """Run, and end this process as the system does that runs out of memory."""
    state = STATES[kind]
    step = state.train_batches

    def last(self: Any, *arguments: Any) -> Any:
        if self.steps_done == LAST_STEPS[kind]:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *arguments)

    state.train_batches = last  # type: ignore[method-assign]
    run(kind, Path(out))


def left(out: Path) -> dict[str, Any]:
    """Return what the last checkpoint holds, but for times."""
    kept: dict[str, Any] = torch.load(out / "checkpoint.pt", weights_only=False)
    return {name: value for name, value in kept.items() if name not in ("seconds", "metrics", "config", "environment")}


def differences(a: Any, b: Any, name: str = "") -> list[str]:
    """Return the names of the numbers that differ."""
    if isinstance(a, dict):
        names = [f"{name}.{key}" for key in a.keys() ^ b.keys()]
        return names + [wrong for key in a.keys() & b.keys() for wrong in differences(a[key], b[key], f"{name}.{key}")]
    if isinstance(a, list | tuple):
        pairs = enumerate(zip(a, b, strict=True))
        return [wrong for index, (x, y) in pairs for wrong in differences(x, y, f"{name}.{index}")]
    equal = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if equal else [name]


@pytest.mark.parametrize("kind", STATES)
def test_a_killed_run_goes_on_bit_for_bit(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, alphas, averages, hidden states of both texts, dropout masks to come, windows of unequal lengths."""
    monkeypatch.setattr("fastdarts.report.alphas.draw_alphas", lambda path: None)  # takes longer than these runs
    monkeypatch.setattr("fastdarts.report.run_report.write_report", lambda out: None)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    child = [sys.executable, "-c", CHILD, kind, str(parts)]
    done = subprocess.run(child, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert left(parts)["step"] > 0  # within an epoch
    run(kind, parts, resume=True)
    run(kind, whole)
    assert differences(left(parts), left(whole)) == []
    assert kind == "search" or left(whole)["averaging"]
    assert (parts / "genotype.json").read_text() == (whole / "genotype.json").read_text()
