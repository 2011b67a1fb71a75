"""Lines, bar, metrics.jsonl."""

import io
import json
import logging
import math
import shutil
import sys

import pytest

from fastdarts.runs import progress
from fastdarts.runs.console import console
from fastdarts.runs.progress import MetricsFile, Progress, duration


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_without_a_terminal_one_line_an_epoch_and_one_a_minute(clock, capsys):
    with console(logging.INFO), Progress(epochs=4, steps_per_epoch=10) as shown:
        for step, seconds in ((1, 30), (2, 61), (3, 90), (4, 122)):
            clock.now = seconds
            shown.update(0, step, {"train_loss": 1.23456, "gradient_norm": 7.0, "train_accuracy": math.nan})
        clock.now = 200
        shown.end_epoch(0, "train loss 1.2")
        clock.now = 800
        shown.end_epoch(3, "train loss 0.5")
    # 61 s for 2 of 40 steps leave 19 * 61 s, 122 s for 4 leave 9 * 122 s
    assert capsys.readouterr() == (
        "epoch 1/4, step 2/10: train loss 1.23, 19 min 19 s left\n"
        "epoch 1/4, step 4/10: train loss 1.23, 18 min 18 s left\n"
        "epoch 1/4: train loss 1.2, 10 min 0 s left\n"
        "epoch 4/4: train loss 0.5\n",
        "",
    )


def test_a_resumed_run_counts_its_own_time(clock):
    shown = Progress(epochs=4, steps_per_epoch=10, step=20)
    clock.now = 50
    assert shown.seconds_left(25) == 150


def open_terminal(monkeypatch):
    """Make stderr a terminal; not in a fixture, between which and the test pytest sets stderr again."""
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def test_quiet_shows_no_bar(monkeypatch):
    terminal = open_terminal(monkeypatch)
    with console(logging.WARNING), Progress(epochs=2, steps_per_epoch=5) as shown:
        shown.update(1, 2, {"train_loss": 0.5})
    assert terminal.getvalue() == ""


def test_a_library_prints_no_lines(clock, capsys):
    with Progress(epochs=4, steps_per_epoch=10) as shown:
        shown.end_epoch(0, "train loss 1.2")
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_a_bar(monkeypatch):
    terminal = open_terminal(monkeypatch)
    with Progress(epochs=2, steps_per_epoch=5) as shown:
        shown.update(1, 2, {"train_loss": 0.5, "valid_loss": 0.75})
        shown.bar.refresh()
    last = terminal.getvalue().split("\r")[-1]
    assert "epoch 2/2, step 2/5" in last
    assert "70 %" in last
    assert "train loss 0.5, valid loss 0.75" in last


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.354, "0.35 s"),
        (0.999, "1 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_metrics_start_with_what_is_known_and_grow_by_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 0}\n{"epoch": 1}\n{"epo')
    metrics = MetricsFile(path, [{"epoch": 0}])
    metrics.write({"epoch": 1, "loss": 0.5})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"epoch": 0}, {"epoch": 1, "loss": 0.5}]


def test_a_deleted_metrics_file_is_written_anew(tmp_path):
    known = [{"epoch": 0}]
    metrics = MetricsFile(tmp_path / "run" / "metrics.jsonl", known)
    shutil.rmtree(tmp_path / "run")
    known.append({"epoch": 1, "loss": float("nan")})
    metrics.write(known[-1])
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == '{"epoch": 0}\n{"epoch": 1, "loss": null}\n'
