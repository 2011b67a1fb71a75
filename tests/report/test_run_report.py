"""report.html is made from a run's files alone, shows them, loads nothing and escapes everything."""

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastdarts.primitives.table import PRIMITIVES
from fastdarts.report.chart import Chart
from fastdarts.report.run_report import write_report
from fastdarts.runs import environment as environment_module
from fastdarts.runs.environment import environment
from fastdarts.spaces.darts.genotype import DARTS_V2

EPOCHS = 6


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_common(folder: Path, dataset: str = "digits") -> None:
    folder.mkdir(exist_ok=True)
    config = {"dataset": dataset, "data": None, "epochs": EPOCHS, "image_size": [8, 8], "lr": 0.025, "amp": True}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "environment.json").write_text(json.dumps({"torch": "2.14.1", "threads": 2, "cpu": "A CPU", "gpus": []}))
    (folder / "genotype.json").write_text(DARTS_V2.to_json())


def search_epoch(epoch: int) -> dict[str, Any]:
    progress = epoch / EPOCHS
    return {
        "event": "epoch",
        "epoch": epoch,
        "lr": 0.001 + 0.012 * (1 + math.cos(math.pi * progress)),
        "train_loss": 2.3 * math.exp(-2 * progress),
        "train_accuracy": 0.1 + 0.85 * progress,
        "valid_loss": 2.31 * math.exp(-1.8 * progress),
        "valid_accuracy": 0.1 + 0.8125 * progress,
        "images_per_second": 410.0 + epoch,
        "seconds": 20.0,
        "alpha_seconds": 15.0,
        "genotype": DARTS_V2._asdict(),
        "skips_normal": 2,
        "skips_reduce": epoch % 3,
        "entropy_normal": math.log(8) - 0.01 * epoch,
        "entropy_reduce": math.log(8) - 0.02 * epoch,
    }


@pytest.fixture
def search_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "search"
    write_common(folder)
    write_lines(folder / "metrics.jsonl", [{"event": "start"}, *map(search_epoch, range(EPOCHS))])
    steps = np.linspace(0, 1, EPOCHS + 1)[:, None, None]
    drift = np.random.default_rng(0).normal(size=(2, 5, len(PRIMITIVES)))
    np.savez(folder / "alphas.npz", normal=steps * drift[0], reduce=steps * drift[1], primitives=np.array(PRIMITIVES))
    return folder


@pytest.fixture
def evaluation_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "evaluation"
    write_common(folder)
    epochs = [
        {
            "event": "epoch",
            "epoch": epoch,
            "lr": 0.025,
            "train_loss": 1 / (1 + epoch),
            "train_accuracy": 0.9,
            "test_accuracy": 0.9 + 0.01 * epoch,
            "seconds": 30.0,
        }
        for epoch in range(EPOCHS)
    ]
    write_lines(folder / "metrics.jsonl", epochs)
    result = {"parameters": 3349342, "multiply_adds": 528359040, "classes": [f"c{label}" for label in range(100)]}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


class Page(HTMLParser):
    """Collect text, tags and everything that a browser would load."""

    VOID = ("meta", "img")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_search(search_folder: Path) -> None:
    path = write_report(search_folder)
    assert path == search_folder / "report.html"
    page = Page(path)
    assert page.loaded == []
    assert "script" not in page.tags
    assert "url(" not in path.read_text()
    for shown in (
        "fastdarts search on digits",
        "77.71 %",  # 0.1 + 0.8125 * 5 / 6
        "6 of 6",
        "2 min 0 s",
        "1 min 30 s (75 %)",
        "2.14.1",
        "dil_conv_3x3",
        "Skip connections",
        "Entropy of the op weights",
        "8, 8",
        f"python -m fastdarts.evaluate --dataset digits --image-size 8x8 --genotype {search_folder / 'genotype.json'}",
    ):
        assert shown in page.text, shown
    assert "--resume" not in page.text
    groups, ops = 2, len(PRIMITIVES)
    assert page.tags.count("svg") == 1 + 6 + ops + 2 * groups  # cells, charts, legend, op weights and margins
    for shown in ("Decision margins", "this cell", "no measure of the found cell"):
        assert shown in page.text, shown


def test_what_a_method_adds(search_folder: Path) -> None:
    """Charts of its numbers, its marks of epochs in them, and why it ended the search."""
    epochs: list[dict[str, Any]] = []
    for epoch in range(4):
        method = {"stage": epoch // 2, "eigenvalue": 0.1 * epoch, "eigenvalue_mean": 0.1, "betas_normal": [1.0, 2.0]}
        epochs.append(search_epoch(epoch) | {"method": method, "stopped": None})
    epochs[-1]["method"] |= {"stop_epoch": 4, "cells_epoch": 2}
    epochs[-1]["stopped"] = "it has <risen>"
    write_lines(search_folder / "metrics.jsonl", epochs)
    path = write_report(search_folder)
    page = Page(path)
    for shown in ("Ended after epoch 4: it has <risen>.", "Stage", "Eigenvalue", "eigenvalue mean", "stop", "1, 2"):
        assert shown in page.text, shown
    assert path.read_text().count('class="mark"') == 2 * 2
    assert "--resume" not in page.text


def test_epochs_that_were_given_up_count_as_time_alone(search_folder: Path) -> None:
    epochs = [search_epoch(epoch) for epoch in (0, 1, 2, 3, 2, 3, 4, 5)]
    epochs[3]["method"] = {"back_to_epoch": 2}
    epochs[5]["method"] = {"drop_path": 0.25}
    write_lines(search_folder / "metrics.jsonl", epochs)
    path = write_report(search_folder)
    page = Page(path)
    assert "6 of 6" in page.text
    assert "2 min 40 s" in page.text
    assert "back to" in page.text
    assert "Drop path" in page.text
    assert path.read_text().count('class="mark"') == 1


def test_search_that_was_stopped(search_folder: Path) -> None:
    write_lines(search_folder / "metrics.jsonl", [search_epoch(0)])
    page = Page(write_report(search_folder))
    assert f"python -m fastdarts.search --resume --out {search_folder}" in page.text
    assert "the 5 epochs that are left" in page.text


def test_evaluation(evaluation_folder: Path) -> None:
    page = Page(write_report(evaluation_folder))
    for shown in (
        "fastdarts evaluation on digits",
        "5.00 %",  # test error; the last epoch has an accuracy of 0.95
        "95.00 %",
        "3,349,342",
        "528,359,040",
        "3 min 0 s",
        "c0, c1, ",
        "c19, … (100)",
        f"--test-only --checkpoint {evaluation_folder / 'checkpoint.pt'}",
    ):
        assert shown in page.text, shown
    assert page.loaded == []
    assert "Skip connections" not in page.text


def test_all_text_is_escaped(search_folder: Path) -> None:
    evil = "<script>alert('x')</script>&\""
    for name in ("config.json", "environment.json"):
        values = json.loads((search_folder / name).read_text())
        (search_folder / name).write_text(json.dumps(values | {evil: [evil], "dataset": evil, "data": evil}))
    folder = search_folder.rename(search_folder.with_name("<iframe>&amp; 'x'"))
    page = Page(write_report(folder))
    assert not {"script", "iframe"} & set(page.tags)
    assert "<iframe>&amp; 'x'" in page.text
    assert page.text.count(evil) >= 5  # title, heading, and name and value in both tables


def test_values_that_are_missing(search_folder: Path) -> None:
    """A regression has no accuracy (null), and a number may be NaN."""
    epochs = [search_epoch(epoch) | {"train_accuracy": None, "valid_accuracy": None} for epoch in range(3)]
    epochs[1]["valid_loss"] = math.nan
    write_lines(search_folder / "metrics.jsonl", epochs)
    page = Page(write_report(search_folder))
    assert "Accuracy" not in page.text
    assert "nan" not in page.text.lower()


FAULTS: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "no folder": ("config.json", lambda path: shutil.rmtree(path.parent), r"no file .*config\.json"),
    "no config": ("config.json", Path.unlink, r"no file .*config\.json"),
    "no metrics": ("metrics.jsonl", Path.unlink, r"no file .*metrics\.jsonl"),
    "no alphas": ("alphas.npz", Path.unlink, r"no file .*alphas\.npz"),
    "config is a list": ("config.json", lambda path: path.write_text("[1]"), r"config\.json must be a JSON object"),
    "cut config": ("config.json", lambda path: path.write_text('{"a": '), r"config\.json is not JSON"),
    "binary": ("environment.json", lambda path: path.write_bytes(b"\xff\xfe"), r"environment\.json is not text"),
    "cut metrics": (
        "metrics.jsonl",
        lambda path: path.write_text(path.read_text()[:-30]),
        r"jsonl, line 7 is not JSON",
    ),
    "no epochs": ("metrics.jsonl", lambda path: path.write_text('{"event": "start"}\n'), r"metrics\.jsonl has no line"),
    "no key": (
        "metrics.jsonl",
        lambda path: path.write_text(path.read_text().replace("valid_loss", "loss")),
        r"metrics\.jsonl, line 2: the key 'valid_loss' is missing",
    ),
    "no number": (
        "metrics.jsonl",
        lambda path: path.write_text(path.read_text().replace('"seconds": 20.0', '"seconds": "20"')),
        r"line 2: 'seconds' must be a number; got '20'",
    ),
    "bad genotype": (
        "genotype.json",
        lambda path: path.write_text(path.read_text().replace("skip_connect", "jump")),
        r"genotype\.json: .*'jump'",
    ),
    "cut alphas": ("alphas.npz", lambda path: path.write_bytes(path.read_bytes()[:200]), r"alphas\.npz is not"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_files(search_folder: Path, fault: str) -> None:
    name, spoil, message = FAULTS[fault]
    spoil(search_folder / name)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        write_report(search_folder)
    assert not (search_folder / "report.html").exists()


def test_bad_result(evaluation_folder: Path) -> None:
    path = evaluation_folder / "result.json"
    path.write_text('{"parameters": 1}')
    with pytest.raises(ValueError, match=r"result\.json: the key 'multiply_adds' is missing"):
        write_report(evaluation_folder)
    path.write_text('{"parameters": 1, "multiply_adds": "2"}')
    with pytest.raises(ValueError, match=r"result\.json: 'multiply_adds' must be a number; got '2'"):
        write_report(evaluation_folder)


def test_own_images_have_no_command(search_folder: Path) -> None:
    path = search_folder / "config.json"
    path.write_text(path.read_text().replace("digits", "custom"))
    assert "python -m" not in Page(write_report(search_folder)).text


@pytest.mark.parametrize(
    "values", [[0.5], [0.5, 0.5], [0.0, 0.0, 0.0], [None, 0.1, None], [1e-9, 2e-9], [1e9, -1e9, math.inf]], ids=str
)
@pytest.mark.parametrize("style", [{}, {"percent": True}, {"integer": True}], ids=str)
def test_chart_keeps_inside_its_frame(values: list[float | None], style: dict[str, bool]) -> None:
    chart = Chart("Loss", list(range(1, len(values) + 1)), {"training": values}, **style)
    numbers: list[float] = []

    class Numbers(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found = dict(attrs)
            numbers.extend(float(found[name] or "") for name in ("cx", "cy", "x", "y") if name in found)
            numbers.extend(float(n) for point in (found.get("points") or "").split() for n in point.split(","))

    Numbers().feed(chart.svg())
    assert numbers
    assert all(0 <= number <= 420 for number in numbers)


@pytest.mark.parametrize(
    ("values", "shown"), [([2.0794415, 2.0794405], "2.079441"), ([0.00034, 0.00035], "0.00034"), ([1e5, 2e5], "120000")]
)
def test_labels_of_a_chart_differ_and_have_room(values: list[float], shown: str) -> None:
    svg = Chart("Loss", [1, 2], {"training": values}).svg()
    labels = re.findall(r'x="([\d.]+)" y="[\d.]+" text-anchor="end">([-\d.]+)<', svg)
    assert any(shown in text for _, text in labels)
    assert len({text for _, text in labels}) == len(labels)
    assert all(float(x) >= 6 * len(text) for x, text in labels)


def test_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values = environment()
    json.dumps(values)
    assert values["torch"] == torch.__version__
    assert values["threads"] == torch.get_num_threads()
    assert values["cpu"]
    assert len(values["gpus"]) == torch.cuda.device_count()
    monkeypatch.setattr(environment_module, "__file__", str(tmp_path / "fastdarts" / "runs" / "environment.py"))
    assert environment()["commit"] is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "empty"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert environment()["commit"] == head
