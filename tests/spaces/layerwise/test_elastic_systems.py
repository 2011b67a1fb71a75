"""Once-for-all beside other methods of its space, and on real images of several sizes."""

import json
from pathlib import Path

import pytest

from fastdarts import cli


@pytest.mark.long
def test_methods_of_the_elastic_space_side_by_side(tmp_path: Path) -> None:
    methods = "ofa,fairnas,random"
    sizes = ["--layers", "1", "--init-channels", "4", "--epochs", "3", "--select-epochs", "1", "--seeds", "1"]
    shared = ["--space", "ofa", "--search", "cost=flops", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert cli.main(["compare", "--methods", methods, *sizes, *shared]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(name in page for name in methods.split(","))


@pytest.mark.long
def test_images_of_cifar_of_several_sizes(cifar10_images: Path, tmp_path: Path) -> None:
    """A phase an epoch on a small part of the images; then a network for smaller ones."""
    run, out = tmp_path / "run", tmp_path / "small"
    data = ["--dataset", "imagefolder", "--data", str(cifar10_images), "--search-fraction", "0.01"]
    sizes = ["--layers", "1", "--init-channels", "8", "--epochs", "4", "--batch-size", "50"]
    space = ["--space", "ofa", "--space-options", "strides=1,1,1,2,1,2", "kernels=3,5"]
    options = ["--method-options", "sizes=24,28,32", "cells=4", "population=2"]
    command = ["search", "--method", "ofa", *data, *sizes, *space, *options, "--device", "cpu", "--out", str(run)]
    assert cli.main(command) == 0
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [epoch["method"]["phase"] for epoch in metrics] == [0, 1, 2, 3]
    assert metrics[-1]["train_loss"] < 10
    cut = ["specialise", str(run), "--cost", "params", "--target", "0.6", "--image-size", "24", "--out", str(out)]
    assert cli.main(cut) == 0
    result = json.loads((out / "result.json").read_text())
    assert result["image_size"] == [24, 24]
    assert result["parameters"] <= 600_000
