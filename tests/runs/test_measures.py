"""What is measured beside the accuracy, against numbers counted by hand."""

import math
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from fastdarts import DARTS_V2
from fastdarts.data import ImageData
from fastdarts.evaluate import EvalConfig, evaluate
from fastdarts.runs.measures import balanced_accuracy, class_accuracies, latency


def test_balanced_accuracy_counts_rare_classes_as_much() -> None:
    counts = torch.tensor([[90, 10, 0], [5, 5, 0], [0, 0, 0]])
    assert class_accuracies(counts) == [0.9, 0.5, None]
    assert balanced_accuracy(counts) == pytest.approx(0.7)


def test_latency_is_the_median_of_passes() -> None:
    passes = []

    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            passes.append(tuple(images.shape))
            time.sleep(0.4)
            return images

    found = latency(Slow(), (3, 4, 5), 2)
    assert 0.4 <= found < 1.5
    assert set(passes) == {(2, 3, 4, 5)}
    assert len(passes) == 4  # one to prepare, three to measure


def test_an_evaluation_reports_them(tmp_path: Path) -> None:
    images = torch.randint(256, (24, 1, 6, 6), dtype=torch.uint8)
    data = ImageData(images, torch.arange(24) % 3, ("a", "b", "c"), (0.5,), (0.3,))
    small = {"init_channels": 4, "layers": 2, "batch_size": 7, "epochs": 1, "cutout": 0, "device": "cpu"}
    result = evaluate(DARTS_V2, EvalConfig(dataset="custom", out=tmp_path, **small), data, data)
    assert result.confusion is not None
    assert result.confusion.sum(1).tolist() == [8, 8, 8]
    assert float(result.confusion.diagonal().sum()) / 24 == pytest.approx(result.test_accuracy)
    assert result.balanced_accuracy == pytest.approx(result.test_accuracy)
    assert set(result.latency) == {1, 64}
    page = (tmp_path / "report.html").read_text()
    for words in ("balanced accuracy", "latency, 64 images", "Accuracy of each class", "images of b are taken for"):
        assert words in page
    numbers = ImageData(images, torch.rand(24, 2), (), (0.5,), (0.3,))
    config = EvalConfig(dataset="custom", out=tmp_path / "b", **small)
    other = evaluate(DARTS_V2, config, numbers, numbers, loss=nn.functional.mse_loss)
    assert other.confusion is None
    assert math.isnan(other.balanced_accuracy)
