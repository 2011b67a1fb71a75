"""Loggers and callbacks of a run: what they get, when they end it."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_search import tiny_config, tiny_images

import fastdarts.evaluate as evaluate_module
import fastdarts.search as search_module
from fastdarts import DARTS_V2
from fastdarts.evaluate import EvalConfig, evaluate
from fastdarts.runs.loggers import Logger, TensorBoard
from fastdarts.search import search


class Recorder:
    """A logger that remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def log_metrics(self, epoch, metrics):
        self.calls.append(("metrics", epoch, dict(metrics)))

    def log_histograms(self, epoch, histograms):
        self.calls.append(("histograms", epoch, {name: values.clone() for name, values in histograms.items()}))

    def close(self):
        self.calls.append(("close",))


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "_write_results", lambda *arguments: None)
    monkeypatch.setattr(evaluate_module, "_write_pages", lambda *arguments, **more: None)


def eval_config(out: Path, **fields: Any) -> EvalConfig:
    small = {"epochs": 3, "batch_size": 16, "init_channels": 4, "layers": 2, "device": "cpu"}
    return EvalConfig(**{"dataset": "custom", "out": out, "cutout": 0, "crop_padding": 0} | small | fields)


def test_loggers_of_a_search_get_each_epoch_and_are_closed(tmp_path):
    logger: Logger = Recorder()
    result = search(tiny_config(tmp_path), train=tiny_images(), loggers=[logger])
    assert [call[:2] for call in logger.calls] == [
        *(("metrics", 0), ("histograms", 0), ("metrics", 1), ("histograms", 1)),
        ("close",),
    ]
    numbers, histograms = logger.calls[2][2], logger.calls[3][2]
    assert numbers["train_loss"] == result.metrics[1]["train_loss"]
    assert all(isinstance(value, int | float) for value in numbers.values())
    assert torch.equal(histograms["alphas_normal"], result.alphas_normal.flatten())
    assert list((tmp_path / "tensorboard").glob("events.*"))  # beside the logger


def test_loggers_are_closed_when_a_search_fails(tmp_path):
    logger = Recorder()

    def fail(metrics, network):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        search(tiny_config(tmp_path), train=tiny_images(), callbacks=[fail], loggers=[logger])
    assert logger.calls[-1] == ("close",)


def test_loggers_of_an_evaluation(tmp_path):
    logger = Recorder()
    images = tiny_images()
    result = evaluate(DARTS_V2, eval_config(tmp_path, epochs=1), images, images, loggers=[logger])
    assert [call[:2] for call in logger.calls] == [("metrics", 0), ("close",)]  # no alphas, so no histograms
    assert logger.calls[0][2]["test_loss"] == result.metrics[0]["test_loss"]


@pytest.mark.parametrize(
    ("answer", "epochs"), [(True, 1), (False, 2), (None, 2), (1, 2), ("stop", 2), (np.True_, 2)], ids=str
)
def test_only_true_ends_a_run(tmp_path, answer, epochs):
    images = tiny_images()
    calls = []

    def callback(metrics, network):
        calls.append((metrics["epoch"], type(network).__name__))
        return answer

    found = search(tiny_config(tmp_path / "search"), train=images, callbacks=[callback, callback])
    assert calls == [(epoch, "SearchNetwork") for epoch in range(epochs) for _ in range(2)]
    assert len(found.metrics) == epochs
    calls.clear()
    trained = evaluate(DARTS_V2, eval_config(tmp_path / "evaluation", epochs=2), images, images, callbacks=[callback])
    assert calls == [(epoch, "EvalNetwork") for epoch in range(epochs)]
    assert trained.epochs == epochs


def test_tensorboard_has_scalars_and_histograms_and_forgets_what_is_done_again(tmp_path):
    for first, loss in ((0, 1.0), (1, 2.0)):
        board: Logger = TensorBoard(tmp_path, first)
        for epoch in (0, 1) if first == 0 else (1, 2):
            board.log_metrics(epoch, {"train_loss": loss})
            board.log_histograms(epoch, {"alphas_normal": torch.zeros(14, 8)})
        board.close()
    events = EventAccumulator(str(tmp_path), size_guidance={"histograms": 0}).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train_loss")] == [(0, 1.0), (1, 2.0), (2, 2.0)]
    assert [event.step for event in events.Histograms("alphas_normal")] == [0, 1, 2]


def test_without_tensorboard_a_run_does_without(tmp_path, monkeypatch):
    monkeypatch.setattr("fastdarts.runs.loggers.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'fastdarts\[tensorboard\]'"):
        TensorBoard(tmp_path)
    search(tiny_config(tmp_path, epochs=1), train=tiny_images())
    assert (tmp_path / "metrics.jsonl").is_file()
    assert not (tmp_path / "tensorboard").exists()


def test_tensorboard_in_a_folder_whose_name_is_not_utf8(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9/board"))
    try:
        folder.mkdir(parents=True)
    except OSError:
        pytest.skip("this file system has no such names")
    board = TensorBoard(folder)
    board.log_metrics(0, {"loss": 1.0})
    board.close()
    assert len(os.listdir(folder)) == 1
