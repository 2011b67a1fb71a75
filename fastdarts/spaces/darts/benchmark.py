"""CIFAR-10 accuracies of cells as the surrogate of NAS-Bench-301 predicts them (Zela et al., ICLR 2022)."""

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.backends import cudnn

from fastdarts.primitives.table import PRIMITIVES
from fastdarts.spaces.darts.cell_genotypes import CellGenotypes
from fastdarts.spaces.darts.genotype import CellName, Genotype

_OPS = frozenset(PRIMITIVES) - {"none"}
_CELLS: tuple[CellName, ...] = ("normal", "reduce")
_MODEL = "*surrogate_model.model"


def open_surrogate(folder: Path) -> Callable[[Genotype | CellGenotypes], dict[str, float]]:
    """Open an ensemble of surrogate models.

    Args:
        folder: of the ensemble, as the benchmark's authors distribute it (`xgb_v1.0` for example). Its models are
            pickles: open only what you trust.

    Returns: a function from a cell to the predicted validation accuracy in percent, the mean of the ensemble without
        noise. For a cell that the surrogate was not made for it warns and returns nothing.

    Raises: ImportError without the package nasbench301; FileNotFoundError; ValueError for another kind of folder.
    """
    if not folder.exists():
        raise FileNotFoundError(f"benchmark: there is no folder {folder}")
    if next(folder.rglob(_MODEL), None) is None:
        raise ValueError(f"benchmark: {folder} holds no surrogate of NAS-Bench-301, that is no file {_MODEL}")
    if importlib.util.find_spec("nasbench301") is None:
        raise ImportError("benchmark needs the package nasbench301; run: pip install nasbench301")
    with _random_numbers_kept():
        library = importlib.import_module("nasbench301")
        try:
            ensemble: Any = library.load_ensemble(str(folder))
        except Exception as error:  # the library has no errors of its own
            raise ValueError(f"benchmark: {folder} is no surrogate of NAS-Bench-301: {error}") from error

    def predict(cell: Genotype | CellGenotypes) -> dict[str, float]:
        if reason := _unknown(cell):
            warnings.warn(f"benchmark: NAS-Bench-301 does not know this cell: {reason}", stacklevel=2)
            return {}
        assert isinstance(cell, Genotype)
        normal, reduce = ([pair for node in cell.nodes(name) for pair in node] for name in _CELLS)
        with _random_numbers_kept():
            accuracy = ensemble.predict(
                config=cell._replace(normal=normal, reduce=reduce), representation="genotype", with_noise=False
            )
        return {"nb301_cifar10_valid": float(accuracy)}

    return predict


def _unknown(cell: Genotype | CellGenotypes) -> str | None:
    """Return why a cell is outside of the benchmark's space; None for one that is inside."""
    if isinstance(cell, CellGenotypes):
        return "each place of the network has a cell of its own"
    for name in _CELLS:
        nodes = cell.nodes(name)
        if len(nodes) != 4 or any(len({source for _, source in node}) != len(node) or len(node) != 2 for node in nodes):
            return f"its {name} cell has not four nodes with an op on each of two edges"
        if others := {op for node in nodes for op, _ in node} - _OPS:
            return f"its {name} cell has {', '.join(sorted(others))}"
        if sorted(getattr(cell, f"{name}_concat")) != [2, 3, 4, 5]:
            return f"its {name} cell does not put out all nodes"
    return None


@contextmanager
def _random_numbers_kept() -> Iterator[None]:
    """Restore random numbers and cuDNN's settings at the end: the library seeds numpy and torch, and tunes cuDNN."""
    state, tuned, enabled = np.random.get_state(), cudnn.benchmark, cudnn.enabled  # noqa: NPY002
    with torch.random.fork_rng():
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002
            cudnn.benchmark, cudnn.enabled = tuned, enabled
