"""Searches of chains of layers: every method that reads rows alone, resumed, trained and exported."""

from pathlib import Path

import pytest
import torch
from tiny_search import tiny_config, tiny_images

from fastdarts import methods
from fastdarts.evaluate import EvalConfig, evaluate
from fastdarts.runs.kernels import kernels_used
from fastdarts.runs.search_config import SearchConfig
from fastdarts.search import search
from fastdarts.spaces import registry
from fastdarts.spaces.layerwise.architecture import LayerChoices
from fastdarts.spaces.space import has_kernels

NEEDS_MORE = {
    "lambda-darts",
    "pc-darts",
    "p-darts",
    "daas",
    "darts-minus",
    "drnas-progressive",
    "gold-nas",
    "ofa",
    "dna",
}
OPTIONS = {
    "darts-plus": {"rule": "ranking"},
    "fairnas": {"cells": 3, "population": 2},
    "random": {"cells": 3, "finalists": 2},
    "robustdarts": {"iterations": 2, "images": 4},
    "sdarts-adv": {"steps": 2},
}


def config(out: Path, **fields: object) -> SearchConfig:
    chain = {"space": "proxyless", "init_channels": 8, "layers": 1}
    options = {"space_options": {"strides": [1, 1, 1, 2, 1, 1, 1]}}
    return tiny_config(out, **(chain | options | fields))


@pytest.mark.parametrize("method", sorted(set(methods.NAMES) - NEEDS_MORE))
def test_a_method_searches_a_chain(tmp_path: Path, method: str) -> None:
    result = search(config(tmp_path, method=method, method_options=OPTIONS.get(method, {})), tiny_images())
    assert isinstance(result.genotype, LayerChoices)
    assert len(result.genotype.layers) == 6
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize("method", sorted(NEEDS_MORE))
def test_a_method_that_needs_another_space_says_so(tmp_path: Path, method: str) -> None:
    with pytest.raises(ValueError, match=f"method '{method}' needs .*, which space 'proxyless' does not have"):
        config(tmp_path, method=method)


def test_space_options_are_checked_by_name_and_type(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'stride', which is unknown; did you mean 'strides'"):
        config(tmp_path, space_options={"stride": [1]})
    with pytest.raises(TypeError, match="strides must be a list of int"):
        config(tmp_path, space_options={"strides": "small"})


def test_second_order_dropout_and_pruning(tmp_path: Path) -> None:
    fields = {"layers": 2, "space": "mobilenet-small", "space_options": {}}
    search(config(tmp_path / "second", order=2, **fields), tiny_images())
    dropped = search(config(tmp_path / "dropped", op_dropout=1e-3, prune_below=0.19, **fields), tiny_images())
    assert dropped.metrics[-1]["method"]["ops_left"] < sum(alpha.numel() for alpha in dropped.alphas.values())


def test_a_resumed_search_is_the_same(tmp_path: Path) -> None:
    fields = {"method": "gdas", "layers": 2, "save_every_steps": 1}
    whole = search(config(tmp_path / "whole", **fields), tiny_images())
    search(config(tmp_path / "parts", **fields), tiny_images(), callbacks=[lambda metrics, network: True])
    again = search(config(tmp_path / "parts", resume=True, **fields), tiny_images())
    assert all(torch.equal(whole.alphas[name], again.alphas[name]) for name in whole.alphas)
    assert whole.genotype == again.genotype


def test_the_found_network_is_trained_and_exported(tmp_path: Path) -> None:
    found = search(config(tmp_path / "search"), tiny_images())
    settings = {"dataset": "custom", "space": "proxyless", "epochs": 1, "batch_size": 16, "device": "cpu"}
    small = {"init_channels": 8, "crop_padding": 1, "cutout": 0}
    trained = evaluate(
        found.genotype,
        EvalConfig(**settings, **small, out=tmp_path / "train", export=tmp_path / "net"),
        tiny_images(),
        tiny_images(),
    )
    assert trained.parameters == sum(weight.numel() for weight in trained.network.parameters())
    assert (tmp_path / "net.onnx").is_file()


def test_the_first_line_names_the_kernels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    search(config(tmp_path, epochs=1), tiny_images())
    assert f"kernels: {kernels_used(torch.device('cpu'), 'auto')}" in caplog.messages


def test_chains_have_kernels_on_a_cpu_alone() -> None:
    space = registry.find("proxyless")
    assert has_kernels(space, "cpu")
    assert not has_kernels(space, "cuda")
    assert not has_kernels(registry.find("dna"), "cpu")  # whose blocks have other activations
    assert has_kernels(registry.find("darts"), "cuda")
