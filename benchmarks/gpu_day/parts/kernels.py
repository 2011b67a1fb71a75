"""Kernels that a search needs and the compile cache does not have: how many, and how long they take to compile."""

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import triton

from benchmarks.gpu_day.day import Day, Notes
from benchmarks.gpu_day.steps import Steps
from fastdarts.kernels.launch import compiling_ahead


def run(day: Day, notes: Notes) -> None:
    compiled: list[str] = []
    found: list[str] = []

    def listen(src: Any, cache_hit: bool, **_: Any) -> None:
        (found if cache_hit else compiled).append(src.name)

    triton.knobs.compilation.listener = listen
    start = time.perf_counter()
    ahead: AbstractContextManager[object] = nullcontext() if day.stand_in else compiling_ahead()
    with ahead:
        Steps(day, cuda_graphs=False).step()
    notes["seconds"] = time.perf_counter() - start
    notes["in the cache"], notes["compiled anew"] = len(found), len(compiled)
    notes["names"] = sorted(set(compiled))
