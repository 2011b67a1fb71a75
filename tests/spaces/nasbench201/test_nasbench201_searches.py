"""Searches in NAS-Bench-201: by every method, resumed, reported, trained from scratch, compared."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_search import tiny_config, tiny_images
from torch.nn.functional import cross_entropy

import fastdarts.search as search_module
from fastdarts.compare import CompareConfig, compare, run_one
from fastdarts.evaluate import EvalConfig, _Command, evaluate
from fastdarts.report.alphas import read_alphas
from fastdarts.runs.compare_config import methods_of
from fastdarts.runs.search_config import SearchConfig
from fastdarts.runs.search_state import SearchState
from fastdarts.search import search
from fastdarts.spaces.nasbench201.architecture import ENDS, PRIMITIVES, NasBench201Cell
from fastdarts.spaces.registry import load_architecture, read_architecture

CELL = "|nor_conv_1x1~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|none~1|nor_conv_3x3~2|"
OPTIONS: dict[str, dict[str, Any]] = {
    "fairnas": {"cells": 3, "population": 2},
    "drnas-progressive": {"k": (2, 1), "left": 2},
    "random": {"cells": 3, "finalists": 2},
    "robustdarts": {"iterations": 2, "images": 4},
    "p-darts": {"depth": (1.0, 1.0, 1.4)},
    "sdarts-adv": {"steps": 2},
}


def config_of(out: Path, **fields: Any) -> SearchConfig:
    return tiny_config(out, **({"space": "nasbench201", "init_channels": 4, "deterministic": True} | fields))


@pytest.mark.parametrize("name", methods_of("nasbench201"))
def test_every_method_searches_here(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "_write_results", lambda *_: None)
    epochs = 3 if name == "p-darts" else 2
    config = config_of(tmp_path, method=name, epochs=epochs, method_options=OPTIONS.get(name, {}), alpha_warmup=0.0)
    result = search(config, train=tiny_images())
    assert isinstance(result.genotype, NasBench201Cell)
    assert read_architecture(result.genotype.to_json()) == result.genotype
    assert len(result.metrics) == epochs or result.stopped is not None
    assert list(result.alphas) == ["cell"]
    lasting = PRIMITIVES[1:] if name == "fairdarts" else PRIMITIVES
    assert result.alphas["cell"].shape == (6, len(lasting))
    assert result.alphas["cell"].isfinite().sum() == 6 * {"p-darts": 2, "sgas": 1, "drnas-progressive": 2}.get(
        name, len(lasting)
    )
    last = result.metrics[-1]
    assert last["skips_cell"] == result.genotype.ops.count("skip_connect") or name in ("random", "ftt-nas")
    assert 0 <= last["entropy_cell"] <= math.log(5) + 1e-6
    assert all(math.isfinite(value) for value in last["method"].values() if isinstance(value, int | float))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"method": "p-darts", "epochs": 3, "method_options": {"dropped": (3, 2)}},
            r"dropped must leave two of the 5 ops on an edge of space 'nasbench201'",
        ),
        ({"method": "pc-darts", "init_channels": 6}, "init_channels must be a multiple of the method's k = 4; got 6"),
        ({"primitives": ("none", "sep_conv_3x3")}, r"primitives must be among none, .*; got 'sep_conv_3x3'"),
    ],
)
def test_what_has_no_meaning_here_is_refused(fields: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        config_of(tmp_path, **fields)


def test_options_that_go_with_any_method(tmp_path: Path) -> None:
    images = tiny_images()
    halves = images.subset(torch.arange(27)), images.subset(torch.arange(27, 48))
    for fields in ({"prune_below": 0.25}, {"op_dropout": 0.3}, {"max_skips": 0}, {"primitives": PRIMITIVES[1:4]}):
        state = SearchState(config_of(tmp_path, **fields), *halves, cross_entropy, torch.device("cpu"))
        with torch.no_grad():
            state.network.alphas["cell"].normal_()
        state.train_step()
        state.method.end_epoch(state, {})
        assert (state.method.kept is not None) == ("prune_below" in fields)
        cell = state.method.genotype(state.network)
        assert "max_skips" not in fields or "skip_connect" not in cell.ops
        assert "primitives" not in fields or state.network.alphas["cell"].shape == (6, 3)


@pytest.fixture(scope="module")
def stopped_and_resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search of PC-DARTS that a callback ended after the first of two epochs, and that went on."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("searches")
    fields: dict[str, Any] = {"method": "pc-darts", "alpha_warmup": 0.0}
    whole = search(config_of(folder / "whole", **fields), train=tiny_images())
    first = search(config_of(folder / "parts", **fields), train=tiny_images(), callbacks=[lambda *_: True])
    assert len(first.metrics) == 1
    resumed = search(config_of(folder / "parts", **fields, resume=True), train=tiny_images())
    assert torch.equal(resumed.alphas["cell"], whole.alphas["cell"])
    assert resumed.genotype == whole.genotype
    assert [line["valid_loss"] for line in resumed.metrics] == [line["valid_loss"] for line in whole.metrics]
    return folder / "parts"


def test_a_search_that_goes_on_writes_all_files(stopped_and_resumed: Path) -> None:
    out = stopped_and_resumed
    found = json.loads((out / "genotype.json").read_text())
    assert found["space"] == "nasbench201"
    (group,), primitives = read_alphas(out / "alphas.npz")
    assert (group.title, group.ends, primitives) == ("cell", list(ENDS), list(PRIMITIVES))
    assert group.weights.shape == (3, 6, 5)
    np.testing.assert_allclose(group.weights.sum(2), 1, rtol=1e-5)
    assert group.row_weights is not None
    np.testing.assert_allclose(group.row_weights[:, 0], 1, rtol=1e-6)  # the one edge into node 1
    epochs = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in epochs] == [0, 1]
    assert epochs[1]["genotype"] == found
    assert len(epochs[1]["method"]["betas_cell"]) == 6
    page = (out / "report.html").read_text()
    for shown in ("search by pc-darts", "skips, cell", "Entropy of the op weights", "the same cell in all stages"):
        assert shown in page, shown
    for name in ("cells.svg", "cells.png", "alphas.png"):
        assert (out / name).stat().st_size > 1000


def test_what_was_found_is_trained(stopped_and_resumed: Path, tmp_path: Path) -> None:
    architecture = load_architecture(str(stopped_and_resumed / "genotype.json"))
    small: dict[str, Any] = {"epochs": 1, "init_channels": 4, "layers": 1, "batch_size": 16, "device": "cpu"}
    config = EvalConfig(space="nasbench201", dataset="cifar10", out=tmp_path / "run", crop_padding=1, **small)
    assert (config.lr, config.weight_decay, config.auxiliary, config.drop_path) == (0.1, 5e-4, False, 0)
    images = tiny_images()
    trained = evaluate(architecture, config, images, images.subset(torch.arange(9)))
    assert trained.parameters == trained.parameters_with_auxiliary
    assert read_architecture((tmp_path / "run" / "genotype.json").read_text()) == architecture
    page = (tmp_path / "run" / "report.html").read_text()
    assert "the same cell in all stages" in page
    assert f"{trained.parameters:,}" in page


def test_the_command_line_takes_the_benchmarks_string() -> None:
    command = _Command(genotype=CELL)
    assert (command.space, command.layers, command.drop_path) == ("nasbench201", 1, 0)
    assert (EvalConfig(space="nasbench201", dataset="cifar10").layers, SearchConfig(space="nasbench201").layers) == (
        5,
        1,
    )
    assert load_architecture(CELL).ops == (
        *("nor_conv_1x1", "none", "skip_connect"),
        *("avg_pool_3x3", "none", "nor_conv_3x3"),
    )


def test_a_comparison(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in range(2):
        (tmp_path / "images" / f"c{label}").mkdir(parents=True)
        for index in range(8):
            pixels = rng.integers(120 * label, 120 * label + 120, (6, 6), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / f"c{label}" / f"{index}.png")
    config = CompareConfig(
        dataset="imagefolder",
        data=tmp_path / "images",
        methods="darts",
        seeds=1,
        epochs=1,
        init_channels=4,
        layers=1,
        batch_size=4,
        order=1,
        space="nasbench201",
        search={"crop_padding": 1},
        select_epochs=1,
        select={"init_channels": 4, "layers": 1, "batch_size": 4, "crop_padding": 1},
        device="cpu",
        out=tmp_path / "out",
        resume=True,
    )
    assert config.search_config("darts", 0, tmp_path / "out").space == "nasbench201"
    assert config.select_config(0, tmp_path / "out").space == "nasbench201"
    config.save(tmp_path / "out" / "config.json")
    record = run_one(config, "darts", 0)
    assert list(record["numbers"]) == ["skips_cell"]
    comparison = compare(config)
    assert comparison.runs == [record]
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"<td>{record['numbers']['skips_cell']:.0f}</td>" in page
    assert "the same cell in all stages" in page
