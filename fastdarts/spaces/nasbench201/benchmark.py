"""Accuracies of cells from a NATS-Bench file, the published table of NAS-Bench-201."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastdarts.spaces.nasbench201.architecture import NasBench201Cell

_EPOCHS = "200"
"""The benchmark's full training."""
_TABLES = {
    "cifar10_valid": ("cifar10-valid", "valid-accuracy"),
    "cifar10_test": ("cifar10", "test-accuracy"),
    "cifar100_valid": ("cifar100", "valid-accuracy"),
    "cifar100_test": ("cifar100", "test-accuracy"),
    "imagenet16_valid": ("ImageNet16-120", "valid-accuracy"),
    "imagenet16_test": ("ImageNet16-120", "test-accuracy"),
}


def open_table(file: Path) -> Callable[[NasBench201Cell], dict[str, float]]:
    """Open a NATS-Bench file of the topology search space.

    Args:
        file: the .pickle.pbz2 file, or the folder of one file a cell, as the benchmark's authors distribute them. These
            are pickles: open only files that you trust.

    Returns: a function from a cell to its accuracies in percent after 200 epochs, means over the benchmark's seeds.

    Raises: ImportError without the package nats_bench; FileNotFoundError; ValueError for another kind of file.
    """
    if not file.exists():
        raise FileNotFoundError(f"benchmark: there is no file {file}")
    if importlib.util.find_spec("nats_bench") is None:
        raise ImportError("benchmark needs the package nats_bench; run: pip install 'fastdarts[benchmark]'")
    library = importlib.import_module("nats_bench")
    try:
        api: Any = library.create(str(file), "tss", fast_mode=file.is_dir(), verbose=False)
    except Exception as error:  # the library has no errors of its own
        raise ValueError(f"benchmark: {file} is no NATS-Bench file of the topology space: {error}") from error

    def look_up(cell: NasBench201Cell) -> dict[str, float]:
        index = api.query_index_by_arch(str(cell))
        if index < 0:
            raise ValueError(f"benchmark: {file} has no entry for {cell}")
        found = {}
        for name, (dataset, metric) in _TABLES.items():
            value = api.get_more_info(index, dataset, hp=_EPOCHS, is_random=False).get(metric)
            if value is not None:
                found[name] = float(value)
        return found

    return look_up
