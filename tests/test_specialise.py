"""Networks found for a device in a trained search network: cut out, written as trained ones, refused otherwise."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_search import tiny_config, tiny_images

from fastdarts import cli
from fastdarts.runs.latency_config import LatencyConfig
from fastdarts.runs.search_config import SearchConfig
from fastdarts.runs.trained import load
from fastdarts.search import SearchResult, search
from fastdarts.spaces import registry
from fastdarts.spaces.cost import parameters
from fastdarts.spaces.space import priced_supernet
from fastdarts.specialise import Wanted, specialise

OPTIONS = {"cells": 6, "population": 3, "finalists": 2, "recalibrate": 1}


def searched(out: Path, **fields: Any) -> SearchResult:
    space = {"space": "ofa", "space_options": {"strides": [1, 1, 1, 2, 1, 1], "kernels": [3, 5], "expansions": [2, 4]}}
    options = {"method_options": OPTIONS, "epochs": 3, "layers": 1, "init_channels": 8, "cost": None}
    return search(tiny_config(out, **({"method": "ofa"} | space | options | fields)), tiny_images())


def found(run: Path, out: Path, target: float = 0.45, cost: str = "params", **options: Any) -> Any:
    wanted = Wanted(cost, target, options=options)
    return specialise(run, wanted, tiny_images(), tiny_images(), out=out, device="cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return searched(tmp_path_factory.mktemp("ofa")).out_dir


def test_the_network_is_within_the_target_and_in_a_folder_of_a_trained_one(run: Path, tmp_path: Path) -> None:
    before = (run / "checkpoint.pt").read_bytes()
    result = found(run, tmp_path / "small", target=0.4)
    assert result.parameters <= 400_000
    assert result.epochs == 0
    trained = load(tmp_path / "small", "cpu")
    assert sum(weight.numel() for weight in trained.network.parameters()) == result.parameters
    images = tiny_images().images
    assert len(trained.predict(images[:3])) == 3
    with torch.inference_mode():
        logits = result.network(trained.normalise(images[:3]))  # in another memory format
    torch.testing.assert_close(trained.logits(images[:3]), logits, rtol=1e-5, atol=1e-5)
    assert registry.load_architecture(str(tmp_path / "small")) == trained.architecture
    assert (run / "checkpoint.pt").read_bytes() == before
    other = found(run, tmp_path / "large", target=1.0)
    assert other.parameters >= result.parameters


def test_the_network_computes_what_its_part_did(run: Path, tmp_path: Path) -> None:
    """The weights are the search network's: stem and classifier unchanged, channels of blocks the first ones."""
    result = found(run, tmp_path / "out")
    saved = torch.load(run / "checkpoint.pt")["network"]
    ours = result.network.state_dict()
    assert torch.equal(ours["conv_stem.weight"], saved["stem.conv.weight"])
    assert torch.equal(ours["classifier.weight"], saved["classifier.weight"])
    block = ours["blocks.1.0.conv_pw.weight"]
    assert torch.equal(block, saved["layers.0.shared.conv_pw.weight"][: len(block)])


def test_a_table_of_this_device_limits_the_search(run: Path, tmp_path: Path) -> None:
    """The file is a table of milliseconds; the prediction stands beside what was measured."""
    space = registry.find("ofa", None, json.loads((run / "config.json").read_text())["space_options"])
    with torch.device("meta"):
        priced = priced_supernet(space, C=8, num_classes=3, layers=1, in_channels=1)
    table = replace(parameters(priced, (1, 1, 6, 6)), unit="ms")
    table.save(tmp_path / "phone.json")
    result = found(run, tmp_path / "out", target=0.4, cost=str(tmp_path / "phone.json"))
    assert result.cost is not None
    assert result.cost.predicted == pytest.approx(result.parameters / 1e6)
    assert result.cost.predicted <= 0.4
    assert result.cost.measured is not None


def test_a_network_of_few_bits_is_written_with_its_quantisers(run: Path, tmp_path: Path) -> None:
    options = {"cells": 12, "predictor": 4}
    arguments = {"train": tiny_images(), "test": tiny_images(), "device": "cpu"}
    result = specialise(run, Wanted("bitops", 60, options=options, quantised=2), out=tmp_path / "few", **arguments)
    trained = load(tmp_path / "few", "cpu")
    assert len(trained.architecture.bits) == 5
    assert trained.network.conv_stem.quantiser.activation_bits is None
    ours = result.network.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in trained.network.state_dict().items())
    assert any(value != 6 for name, value in ours.items() if name.endswith("reach"))  # calibrated
    with pytest.raises(ValueError, match=r"target must be at least .* million bit operations; got 0\.01"):
        specialise(run, Wanted("bitops", 0.01, options=options, quantised=2), out=tmp_path / "none", **arguments)
    with pytest.raises(ValueError, match="quantised must be at least 1; got 0"):
        Wanted("bitops", 60, quantised=0)


def test_the_defaults_of_a_table_are_those_of_a_search() -> None:
    table, config = (kind(space="ofa", dataset="digits") for kind in (LatencyConfig, SearchConfig))
    for name in ("init_channels", "layers", "space_options"):
        assert getattr(table, name) == getattr(config, name)


def test_searches_of_other_one_shot_methods_are_taken(tmp_path: Path) -> None:
    options = {"cells": 4, "finalists": 2, "population": 2}
    searched(
        tmp_path / "run", method="random", space="mobilenet-small", space_options={}, method_options=options, epochs=1
    )
    result = found(tmp_path / "run", tmp_path / "out", target=0.1)
    assert result.parameters <= 100_000


def test_a_method_of_ones_own_is_imported_when_it_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_ofa.py").write_text("from fastdarts.methods.ofa import Ofa\nclass Own(Ofa): pass\n")
    config = json.loads((run / "config.json").read_text()) | {"method": "own_ofa:Own"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    (tmp_path / "run" / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes())
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="if you trust it, add --method own_ofa:Own"):
        found(tmp_path / "run", tmp_path / "out")
    wanted = Wanted("params", 0.45, options=OPTIONS, method="own_ofa:Own")
    result = specialise(tmp_path / "run", wanted, tiny_images(), tiny_images(), out=tmp_path / "out", device="cpu")
    assert result.parameters <= 450_000


def test_what_has_no_meaning_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cost_target must be at least .* million parameters"):
        found(run, tmp_path / "out", target=1e-3)
    with pytest.raises(FileNotFoundError, match="holds no search"):
        found(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="call specialise\\(\\) with train and test"):
        specialise(run, Wanted("params", 1.0))
    config = json.loads((run / "config.json").read_text())
    for change, message in (
        (
            {"method": "gdas", "method_options": {}},
            "is a search by 'gdas', whose weights are not those of single networks",
        ),
        ({"epochs": 9}, "has ended 3 of 9 epochs; resume the search first"),
        (
            {"method": "random", "method_options": {}, "space": "darts", "space_options": {}},
            "spaces of layers alone; .* is of space 'darts'",
        ),
    ):
        other = tmp_path / message[:9]
        other.mkdir()
        (other / "config.json").write_text(json.dumps(config | change))
        (other / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes())
        with pytest.raises(ValueError, match=message):
            found(other, tmp_path / "out")


@pytest.mark.slow
def test_digits_from_one_search_to_two_devices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the command line with the preset of digits; the networks are better than chance without training."""
    pytest.importorskip("onnxruntime", reason="writes ONNX")
    run, device = tmp_path / "run", ["--device", "cpu"]
    command = ["search", "--space", "ofa", "--method", "ofa", "--epochs", "8", "--method-options", "cells=20", *device]
    assert cli.main([*command, "--out", str(run)]) == 0
    for target in ("1.2", "2.0"):
        out = tmp_path / target
        cut = ["specialise", str(run), "--cost", "flops", "--target", target, "--out", str(out), *device]
        assert cli.main([*cut, "--export", str(tmp_path / f"net{target}.onnx")]) == 0
        result = json.loads((out / "result.json").read_text())
        assert result["multiply_adds"] <= float(target) * 1e6
        assert result["test_accuracy"] > 0.3  # guessing: 0.1
        capsys.readouterr()
        test = ["evaluate", "--genotype", str(out), "--dataset", "digits", "--test-only", *device]
        assert cli.main([*test, "--checkpoint", str(out / "checkpoint.pt")]) == 0
        assert f"test error {result['test_error_percent']:.2f} %" in capsys.readouterr().out
