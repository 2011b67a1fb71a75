"""Exported networks give the module's outputs, for any batch size."""

import copy
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdarts import DARTS_V2, EvalNetwork
from fastdarts.cli import main
from fastdarts.data import ImageData
from fastdarts.evaluate import EvalConfig, evaluate
from fastdarts.export import export, export_run
from fastdarts.runs import checkpoint


def few_images(shape: tuple[int, int, int], count: int = 32, classes: int = 4) -> ImageData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=generator)
    return ImageData(images, torch.arange(count) % classes, tuple("abcd"), (0.5,) * shape[0], (0.3,) * shape[0])


def trained(size: tuple[int, int], **arguments: object) -> EvalNetwork:
    """A network whose running statistics are not the initial ones."""
    network = EvalNetwork(DARTS_V2, C=4, num_classes=7, layers=3, **arguments)
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(4, network.in_channels, *size))
    return network


@pytest.mark.parametrize(
    ("size", "arguments"),
    [((9, 7), {"in_channels": 1}), ((32, 32), {"auxiliary": False}), ((40, 33), {"stem": "imagenet"})],
    ids=["odd", "even", "imagenet"],
)
def test_exported_outputs_equal_the_modules(
    tmp_path: Path, size: tuple[int, int], arguments: dict[str, object]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime, of the extra 'export'")
    network = trained(size, **arguments).train().to(memory_format=torch.channels_last)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch_file, onnx_file = export(network, size, tmp_path / "net")
    assert (torch_file.name, onnx_file.name) == ("net.pt2", "net.onnx")
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())

    program = torch.export.load(torch_file)
    assert not any(name.startswith("auxiliary_head") for name in program.state_dict)
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    network.eval()
    exact = copy.deepcopy(network).double()
    for batch in (1, 2, 5):
        images = torch.randn(batch, network.in_channels, *size)
        truth = exact(images.double())
        plain = network(images)
        from_onnx = session.run(["logits"], {"images": images.numpy()})[0]
        assert_no_worse(program.module()(images), plain, truth)
        assert_no_worse(torch.from_numpy(np.asarray(from_onnx)), plain, truth)


def assert_no_worse(ours: Tensor, plain: Tensor, truth: Tensor) -> None:
    """The error against float64 is at most twice that of the module itself."""
    assert ours.shape == plain.shape
    allowed = 2 * (plain - truth).abs().max() + 16 * torch.finfo(torch.float32).eps * truth.abs().max()
    assert (ours - truth).abs().max() <= allowed


def test_suffix_is_replaced(tmp_path: Path) -> None:
    files = export(trained((4, 4)), (4, 4), tmp_path / "deep" / "cell.v2.onnx")
    assert [file.name for file in files] == ["cell.v2.pt2", "cell.v2.onnx"]
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["cell.v2.onnx", "cell.v2.pt2"]


def test_the_network_of_a_run_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript", reason="needs onnxscript, of the extra 'export'")
    images = few_images(shape=(2, 8, 6))
    run = tmp_path / "run"
    small: dict[str, Any] = {"init_channels": 4, "layers": 2, "batch_size": 16, "epochs": 1, "device": "cpu"}
    config = EvalConfig(dataset="custom", out=run, cutout=0, crop_padding=0, flip=False, drop_path=0.0, **small)
    network = evaluate(DARTS_V2, config, images, images).network
    assert main(["export", str(run)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == [str(run / "network.pt2"), str(run / "network.onnx")]
    assert "result.json" in said[2]
    program = torch.export.load(run / "network.pt2")
    batch = torch.randint(256, (3, 2, 8, 6), dtype=torch.uint8)
    plain = network((batch.float() / 255 - 0.5) / 0.3)
    truth = copy.deepcopy(network).double()((batch.double() / 255 - 0.5) / 0.3)
    assert_no_worse(program.module()(batch), plain, truth)

    (run / "result.json").unlink()
    assert main(["export", str(run), "--out", str(tmp_path / "x")]) == 2
    assert "holds no finished evaluation: it has no result.json; resume it first" in capsys.readouterr().err
    assert not list(tmp_path.glob("x*"))


def test_a_search_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "checkpoint.pt", "search", {})
    with pytest.raises(ValueError, match="is a checkpoint of 'search'; wanted one of 'evaluation'"):
        export_run(tmp_path, tmp_path / "network")


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    present = importlib.util.find_spec
    monkeypatch.setattr("fastdarts.export.find_spec", lambda name: None if name == "onnxscript" else present(name))
    with pytest.raises(ImportError, match=r"needs onnxscript; run: pip install 'fastdarts\[export\]'"):
        export(trained((4, 4)), (4, 4), tmp_path / "net")
    assert not list(tmp_path.iterdir())
