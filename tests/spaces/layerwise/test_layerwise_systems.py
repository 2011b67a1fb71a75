"""The published systems on chains: search, evaluate, export, compare; resumed; on CIFAR's images."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_search import tiny_config, tiny_images

from fastdarts import cli
from fastdarts.search import search
from fastdarts.spaces.layerwise.architecture import LayerChoices

SYSTEMS: dict[str, dict[str, Any]] = {
    "proxyless": {"method": "proxyless"},
    "proxyless by rewards": {"method": "proxyless", "options": {"gradient": "reinforce", "networks": 3}},
    "fbnet": {"method": "fbnet"},
    "fairnas": {"method": "fairnas", "options": {"cells": 20, "population": 5}},
}
SMALL = {"space": "mobilenet-small", "layers": 2, "init_channels": 8}


def fields_of(system: str) -> dict[str, Any]:
    found = SYSTEMS[system]
    return {"method": found["method"], "method_options": found.get("options", {}), "cost": "flops"}


def flags_of(system: str) -> list[str]:
    fields = fields_of(system)
    options = [f"{name}={value}" for name, value in fields["method_options"].items()]
    given = ["--method", fields["method"], "--cost", "flops"]
    return [*given, *(["--method-options", *options] if options else [])]


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_search_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path, system: str) -> None:
    fields = SMALL | {"save_every_steps": 1, "epochs": 3} | fields_of(system)
    whole = search(tiny_config(tmp_path / "whole", **fields), tiny_images())
    search(tiny_config(tmp_path / "parts", **fields), tiny_images(), callbacks=[lambda metrics, network: True])
    again = search(tiny_config(tmp_path / "parts", resume=True, **fields), tiny_images())
    assert all(torch.equal(whole.alphas[name], again.alphas[name]) for name in whole.alphas)
    assert whole.genotype == again.genotype
    losses = [[metrics["train_loss"] for metrics in run.metrics] for run in (whole, again)]
    assert losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_digits_from_search_to_onnx(tmp_path: Path, system: str) -> None:
    """With the preset of digits: less than two minutes on two cores for each."""
    pytest.importorskip("onnxruntime", reason="writes ONNX")
    found, trained = tmp_path / "search", tmp_path / "trained"
    command = ["search", "--space", "mobilenet-small", "--device", "cpu", "--out", str(found), *flags_of(system)]
    assert cli.main(command) == 0
    genotype = LayerChoices.from_json((found / "genotype.json").read_text())
    assert genotype.space == "mobilenet-small"
    metrics = [json.loads(line) for line in (found / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["train_loss"] < metrics[0]["train_loss"]
    train = ["evaluate", "--genotype", str(found), "--dataset", "digits", "--epochs", "2", "--out", str(trained)]
    assert cli.main([*train, "--device", "cpu", "--export", str(tmp_path / "net")]) == 0
    assert (tmp_path / "net.onnx").stat().st_size > 1000
    assert json.loads((trained / "result.json").read_text())["test_accuracy"] > 0.2  # guessing: 0.1


@pytest.mark.slow
def test_the_systems_side_by_side(tmp_path: Path) -> None:
    methods = "proxyless,fbnet,fairnas"
    sizes = ["--layers", "1", "--init-channels", "4", "--epochs", "1", "--select-epochs", "1", "--seeds", "1"]
    shared = ["--space", "mobilenet-small", "--search", "cost=flops", "--device", "cpu", "--out", str(tmp_path / "out")]
    command = ["compare", "--methods", methods, *sizes, *shared]
    assert cli.main(command) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(name in page for name in methods.split(","))


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_images_of_cifar(cifar10_images: Path, tmp_path: Path, system: str) -> None:
    """Steps on real images of 32x32, in one epoch of a small part of them."""
    data = ["--dataset", "imagefolder", "--data", str(cifar10_images), "--search-fraction", "0.01"]
    sizes = ["--space", "proxyless", "--space-options", "strides=1,1,1,2,1,2,1", "--layers", "1"]
    sizes += ["--init-channels", "8", "--epochs", "1", "--batch-size", "50", "--alpha-warmup", "0"]
    command = ["search", *data, *sizes, "--device", "cpu", "--out", str(tmp_path / "run"), *flags_of(system)]
    assert cli.main(command) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert metrics["cost"] > 0
    assert metrics["train_loss"] < 10
