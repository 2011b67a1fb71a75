"""Give a part its settings, and take its results."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import synchronize
from fastdarts.config.files import write_atomically
from fastdarts.primitives.table import PRIMITIVES

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Geometry:
    """Sizes of what is run: the paper's search, or small ones on a CPU."""

    C: int
    layers: int
    nodes: int  # of a cell
    batch: int
    size: int
    primitives: tuple[str, ...]
    smoke: dict[str, tuple[int, int, int]]  # by name: channels, image size, images
    replays: int
    rounds: int  # timed steps


PAPER = Geometry(
    16, 8, 4, 64, 32, PRIMITIVES, {"16/32": (16, 32, 2), "32/16": (32, 16, 4), "64/8": (64, 8, 8)}, 100, 20
)
SMALL = Geometry(2, 3, 2, 2, 8, ("max_pool_3x3", "skip_connect"), {"4/6": (4, 6, 2)}, 2, 1)


@dataclass(frozen=True)
class Day:
    """Say where a part runs.

    Args:
        stand_in: run small shapes on the CPU, kernels in Triton's interpreter.
        images: folder of images with train/ and test/, or "" without one.
        kit: folder of the unpacked kit, or "" without one.
        work: a folder for files that need not be kept.
        until: time.time() at which the part is ended.
        results: results of the parts before this one, by part.
    """

    stand_in: bool
    images: str
    kit: str
    work: str
    until: float
    results: dict[str, Any]

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.stand_in else "cuda")

    @property
    def geometry(self) -> Geometry:
        return SMALL if self.stand_in else PAPER

    @property
    def left(self) -> float:
        """Seconds until the part is ended."""
        return self.until - time.time()

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class Notes:
    """Collect a part's results; each is in the file at once, so that a part that is ended keeps what it has found."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = {}

    def __setitem__(self, name: str, value: Any) -> None:
        self.values[name] = value
        write_atomically(self.path, json.dumps(self.values))


def milliseconds(run: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Return the median time of `run` over `rounds` calls after one that is not counted."""
    times = []
    for _ in range(rounds + 1):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        times.append(1e3 * (time.perf_counter() - start))
    return sorted(times[1:])[rounds // 2]
