"""Weights as people have them, and files that would do something else than hold weights."""

import argparse
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastdarts.runs import checkpoint
from fastdarts.runs.weights import load_weights


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.Linear(2, 3)))


OURS = network().state_dict()


def renamed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in OURS.items()}


def plain_names() -> dict[str, torch.Tensor]:
    return {name: value for name, value in OURS.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: OURS, []),
        (plain_names, ["num_batches_tracked"]),
        (lambda: renamed("module."), ["stripped 'module.'"]),
        (lambda: renamed("_orig_mod."), ["stripped '_orig_mod.'"]),
        (lambda: renamed("module._orig_mod."), ["'module.'", "'_orig_mod.'"]),
        (lambda: {n.replace("2.0", "2._orig_mod.0"): v for n, v in OURS.items()}, ["'_orig_mod.'"]),
        (lambda: {"state_dict": renamed("model."), "epoch": 3}, ["'state_dict'", "stripped 'model.'"]),
        (lambda: {"n_averaged": torch.tensor(3)} | renamed("module."), ["stripped 'module.'"]),
        (lambda: {"model": OURS, "optimizer": {"state": {0: {"m": torch.ones(2)}}}}, ["taken from 'model'"]),
        (lambda: {"ema": {"net": {"weights": OURS}}}, ["taken from 'ema.net.weights'"]),
        (
            lambda: {"state_dict": OURS, "args": argparse.Namespace(lr=1)},
            ["holds other Python objects", "'state_dict'"],
        ),
        (lambda: {"net": OURS, "best": np.float64(1.0), "path": Path("x")}, ["holds other Python objects"]),
        (lambda: network_with(OURS), ["holds other Python objects"]),
    ],
)
@pytest.mark.parametrize("new_format", [True, False])
def test_they_load(content: Any, said: list[str], new_format: bool, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(content(), path, _use_new_zipfile_serialization=new_format)
    weights, notes = load_weights(path, OURS)
    for name, value in OURS.items():
        assert torch.equal(weights[name], value), name
    for words in said:
        assert words in "; ".join(notes)
    assert bool(notes) == bool(said)


def network_with(state: dict[str, torch.Tensor]) -> nn.Module:
    whole = network()
    whole.load_state_dict(state)
    return whole


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("made-by-a-checkpoint",)


@pytest.mark.parametrize("new_format", [True, False])
def test_nothing_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_format: bool) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"evil": Evil(), "net": OURS}, "weights.pt", _use_new_zipfile_serialization=new_format)
    weights, _ = load_weights(tmp_path / "weights.pt", OURS)
    assert weights.keys() == OURS.keys()
    assert os.listdir(tmp_path) == ["weights.pt"]


def test_files_without_weights(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(ValueError, match=r"holds no state_dict of a network; it holds other Python objects"):
        load_weights(path, OURS)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match=f"checkpoint {path}"):
        load_weights(path, OURS)
    path.write_text("hello")
    with pytest.raises(ValueError, match=f"checkpoint {path} is damaged"):
        load_weights(path, OURS)
    with pytest.raises(ValueError, match="is no regular file"):
        load_weights(tmp_path, OURS)


def test_a_compressed_archive_is_refused_before_it_is_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(10**6)}, buffer)
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(buffer) as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    assert path.stat().st_size < 10**5
    with pytest.raises(ValueError, match="is compressed, which torch never does"):
        checkpoint.load(path, "search")
