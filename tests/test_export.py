"""Exported networks give the module's outputs, for any batch size."""

import copy
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdarts import DARTS_V2, EvalNetwork
from fastdarts.export import export


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


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    present = importlib.util.find_spec
    monkeypatch.setattr("fastdarts.export.find_spec", lambda name: None if name == "onnxscript" else present(name))
    with pytest.raises(ImportError, match=r"needs onnxscript; run: pip install 'fastdarts\[export\]'"):
        export(trained((4, 4)), (4, 4), tmp_path / "net")
    assert not list(tmp_path.iterdir())
