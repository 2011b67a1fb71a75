"""A child process for each variant: its peak memory is its own, and a compilation that takes too long can be ended."""

import ctypes
import multiprocessing
import os
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import COMPILED, Case, build
from benchmarks.machine import synchronize
from fastdarts.runs.resources import free_bytes, peak_bytes, reset_peak

LEAST = 0.1
"""Seconds of a turn: it repeats shorter steps, as a search does, whose steps find threads awake and caches filled."""


@dataclass
class Measurement:
    """Seconds of each timed step and of the first (warm-up) step, memory in bytes; `error` if there are none."""

    seconds: list[float] = field(default_factory=list)
    first_seconds: float | None = None
    peak_bytes: int = 0
    """Largest memory of the process less `rest_bytes`; on a GPU, largest memory that torch allocated."""
    rest_bytes: int = 0
    """Memory of the process with all libraries loaded, before the case was built."""
    error: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Worker:
    """Context manager: a process that holds one variant of one case and makes a step when asked."""

    def __init__(self, case: Case, variant: str, device: torch.device, threads: int) -> None:
        # Children of a server that has torch loaded start in milliseconds.
        root = str(Path(__file__).resolve().parents[1])
        paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        if root not in paths:
            os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, paths)])
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.cases"])
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, case, variant, device, threads), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.is_alive() and self._process.pid is not None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)  # compilers that it started too
            except ProcessLookupError:
                self._process.kill()
        self._process.join()
        self._pipe.close()

    def step(self, limit: float | None = None) -> float:
        """Seconds of one step, the mean of a turn's.

        Raises:
            TimeoutError: after `limit` seconds.
            RuntimeError: with the reason if it fails.
        """
        seconds: float = self._ask("step", limit)
        return seconds

    def release(self) -> None:
        """Give free memory back to the system, or on a GPU to other processes; the next step is slow."""
        self._ask("release", None)

    def memory(self) -> tuple[int, int]:
        """(peak of all steps so far, rest), see Measurement."""
        memory: tuple[int, int] = self._ask("memory", None)
        return memory

    def _ask(self, what: str, limit: float | None) -> Any:
        try:
            self._pipe.send(what)
            if not self._pipe.poll(limit):
                raise TimeoutError
            answer = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise RuntimeError("its process ended, most likely for lack of memory") from error
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer


def measure(
    case: Case,
    variants: Sequence[str],
    device: torch.device,
    threads: int,
    *,
    budget: float,
    rounds: tuple[int, int],
    limit: float,
) -> dict[str, Measurement]:
    """Time the variants of a case in turns (A, B, C, A, B, C, ...), so that what disturbs the machine hits all alike.

    Two steps come before the timed ones: in them libraries make primitives and the allocator faults its pages in. Where
    the machine cannot hold the memory of all variants at once, each gives its own back after its turn, and a step comes
    before each timed one.

    Args:
        budget: seconds for all timed steps together.
        rounds: least and largest number of them for each variant; the least goes before the budget.
        limit: seconds for the first step of the compiled variant, in which `torch.compile` compiles.
    """
    results = {variant: Measurement() for variant in variants}
    room, needed = free_bytes(device), 0
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for variant, result in results.items():
            worker = stack.enter_context(Worker(case, variant, device, threads))
            try:
                result.first_seconds = worker.step(limit if variant == COMPILED else None)
                needed += worker.memory()[0]
                worker.release()
                workers[variant] = worker
            except TimeoutError:
                result.error = f"not compiled after {limit:.0f} s"
                worker.__exit__()
            except RuntimeError as error:
                result.error = str(error)
        start = time.perf_counter()
        done = 0
        while workers and (done < rounds[0] or (done < rounds[1] and time.perf_counter() - start < budget)):
            for variant, worker in list(workers.items()):
                try:
                    if done == 0 or needed > room:
                        worker.step()
                    results[variant].seconds.append(worker.step())
                    if needed > room:
                        worker.release()
                except RuntimeError as error:
                    results[variant] = Measurement(error=str(error))
                    del workers[variant]
            done += 1
        for variant, worker in workers.items():
            results[variant].peak_bytes, results[variant].rest_bytes = worker.memory()
    return results


def _serve(pipe: Connection, case: Case, variant: str, device: torch.device, threads: int) -> None:
    os.setpgrp()
    torch.set_num_threads(threads)
    try:
        rest = reset_peak(device)
        run = build(case, variant, device)
        while True:
            what = pipe.recv()
            if what == "release":
                _release(device)
                pipe.send(None)
                continue
            if what == "memory":
                on_gpu = device.type == "cuda"
                pipe.send((peak_bytes(device) - (0 if on_gpu else rest), rest))
                continue
            start, steps = time.perf_counter(), 0
            while steps == 0 or time.perf_counter() - start < LEAST:
                run()
                synchronize(device)
                steps += 1
            pipe.send((time.perf_counter() - start) / steps)
    except EOFError:
        return
    except Exception as error:
        traceback.print_exc()
        pipe.send(f"{type(error).__name__}: {error}".splitlines()[0][:200])


def _release(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU C library, which keeps what was freed
        if trim is not None:
            trim(0)
