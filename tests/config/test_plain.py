"""Numpy's and torch's numbers become plain ones at the door."""

import enum
import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdarts.config.plain import for_json, plain
from fastdarts.runs import checkpoint
from fastdarts.runs.search_config import SearchConfig


class Kind(enum.IntEnum):
    ONE = 1


def test_values_become_plain() -> None:
    value = {
        "a": np.float64(0.5),
        "b": [np.int32(3), np.bool_(True), np.str_("x")],
        "c": (np.arange(2), torch.tensor(2.0)),
        "d": OrderedDict(e=Kind.ONE),
        np.int64(3): range(2),
        "path": Path("x"),
    }
    result = plain(value)
    assert result == {"a": 0.5, "b": [3, True, "x"], "c": ([0, 1], 2.0), "d": {"e": 1}, 3: [0, 1], "path": "x"}
    assert [type(item) for item in (result["a"], *result["b"], result["d"]["e"])] == [float, int, bool, str, int]
    json.dumps(result)


def test_what_cannot_be_kept_is_named() -> None:
    with pytest.raises(TypeError, match=r"metrics\.deep\[1\] is a object"):
        plain({"deep": [1, object()]}, "metrics")


def test_numbers_that_json_does_not_have() -> None:
    assert for_json({"a": float("nan"), "b": [float("inf"), 1.0]}) == {"a": None, "b": [None, 1.0]}


def test_a_config_takes_numpys_numbers(tmp_path: Path) -> None:
    config = SearchConfig(
        epochs=np.int64(3),  # type: ignore[arg-type]
        lr=np.float64(0.1),
        momentum=np.float32(0.5),  # type: ignore[arg-type]
        flip=np.bool_(False),  # type: ignore[arg-type]
        image_size=tuple(np.array([8, 9])),
        method="gdas",
        method_options={"tau_max": np.float64(3.0)},
    )
    assert [type(v) for v in (config.epochs, config.lr, config.momentum, config.flip)] == [int, float, float, bool]
    assert type(config.method_options["tau_max"]) is float
    config.save(tmp_path / "config.json")
    assert SearchConfig.load(tmp_path / "config.json") == config


def test_a_checkpoint_that_is_written_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    state = {"groups": [{"lr": np.float64(0.1)}], "metrics": [{"f1": np.float32(0.5)}], "weights": torch.ones(2)}
    checkpoint.save(path, "search", state)
    loaded = checkpoint.load(path, "search")
    assert loaded["groups"] == [{"lr": 0.1}]
    assert loaded["metrics"] == [{"f1": 0.5}]
    assert torch.equal(loaded["weights"], torch.ones(2))
