"""Predicted accuracies of cells, through a stand-in for NAS-Bench-301's library with its interface."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_search import tiny_config, tiny_images

from fastdarts.search import search
from fastdarts.spaces.darts.cell_genotypes import PUBLISHED as BY_CELL
from fastdarts.spaces.darts.genotype import PUBLISHED, Genotype
from fastdarts.spaces.registry import find

LIBRARY = """
import numpy, torch

class Ensemble:
    def predict(self, config, representation, with_noise):
        torch.manual_seed(3)
        assert representation == "genotype" and not with_noise
        assert len(config.normal) == len(config.reduce) == 8
        return numpy.float32(90 + sum(op == "sep_conv_3x3" for op, _ in config.normal + config.reduce) / 8)

def load_ensemble(folder):
    numpy.random.seed(3), torch.manual_seed(3)
    torch.backends.cudnn.benchmark = True
    if "broken" in folder:
        raise KeyError("seed")
    return Ensemble()
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of models, and make the library importable."""
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "nasbench301.py").write_text(LIBRARY)
    monkeypatch.syspath_prepend(tmp_path / "library")
    monkeypatch.delitem(sys.modules, "nasbench301", raising=False)
    return written(tmp_path / "xgb_v1.0")


def written(folder: Path) -> Path:
    (folder / "0").mkdir(parents=True)
    (folder / "0" / "surrogate_model.model").write_bytes(b"")
    return folder


def test_a_prediction_leaves_random_numbers_and_settings_alone(models: Path) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), torch.backends.cudnn.benchmark  # noqa: NPY002
    predict = find("darts").table(models)
    assert predict(PUBLISHED["DARTS_V2"]) == {"nb301_cifar10_valid": 90 + 5 / 8}
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert torch.backends.cudnn.benchmark == before[2]


def _changed(**fields: Any) -> Genotype:
    return PUBLISHED["DARTS_V2"]._replace(**fields)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (PUBLISHED["NASNET_A"], "has not four nodes"),
        (next(iter(BY_CELL.values())), "each place of the network has a cell of its own"),
        (_changed(normal=[("none", 0), *PUBLISHED["DARTS_V2"].normal[1:]]), "its normal cell has none"),
        (_changed(reduce=[("skip_connect", 0)] * 8), "its reduce cell has not four nodes with an op on each of two"),
        (_changed(normal_concat=[3, 4, 5]), "its normal cell does not put out all nodes"),
    ],
)
def test_other_cells_are_left_out_with_the_reason(cell: Any, reason: str, models: Path) -> None:
    predict = find("darts").table(models)
    with pytest.warns(UserWarning, match=reason):
        assert predict(cell) == {}


def test_what_is_no_surrogate_is_refused(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        find("darts").table(tmp_path / "absent")
    with pytest.raises(ValueError, match="holds no surrogate of NAS-Bench-301"):
        find("darts").table(tmp_path / "library")
    with pytest.raises(ValueError, match="is no surrogate of NAS-Bench-301: 'seed'"):
        find("darts").table(written(tmp_path / "broken"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install nasbench301"):
        find("darts").table(models)


def test_a_search_reports_it(models: Path, tmp_path: Path) -> None:
    found = search(tiny_config(tmp_path / "out", epochs=1, benchmark=models), tiny_images())
    assert 90 <= found.tabulated["nb301_cifar10_valid"] <= 92
    assert json.loads((tmp_path / "out" / "benchmark.json").read_text()) == found.tabulated
    assert "nb301" in (tmp_path / "out" / "report.html").read_text()
