"""Measure each variant in a child process, which isolates its peak memory and allows to end a long compilation."""

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
"""Least seconds of a turn. Shorter steps are repeated, because in a search threads are awake and caches are filled."""


@dataclass
class Measurement:
    """Hold the seconds of each timed step and of the first (warm-up) step, and memory in bytes, or an `error`."""

    seconds: list[float] = field(default_factory=list)
    first_seconds: float | None = None
    peak_bytes: int = 0
    """Peak memory of the process minus `rest_bytes`; on a GPU, peak memory allocated by torch."""
    rest_bytes: int = 0
    """Memory of the process with all libraries loaded, before the case is built."""
    error: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Worker:
    """Manage a process that holds one variant of one case and runs a step on request; use it as a context manager."""

    def __init__(self, case: Case, variant: str, device: torch.device, threads: int) -> None:
        # A fork server that has loaded torch starts children in milliseconds.
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
                os.killpg(self._process.pid, signal.SIGKILL)  # also ends compilers that it has started
            except ProcessLookupError:
                self._process.kill()
        self._process.join()
        self._pipe.close()

    def step(self, limit: float | None = None) -> float:
        """Run a turn of steps; return the mean seconds of a step.

        Raises:
            TimeoutError: the turn takes more than `limit` seconds.
            RuntimeError: the step fails; the message is the reason.
        """
        seconds: float = self._ask("step", limit)
        return seconds

    def release(self) -> None:
        """Return free memory to the system, or on a GPU to other processes; the next step will be slow."""
        self._ask("release", None)

    def memory(self) -> tuple[int, int]:
        """Return (peak_bytes of all steps so far, rest_bytes), see Measurement."""
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
    """Time the variants of a case in turns (A, B, C, A, B, C, ...), so that disturbances affect all of them alike.

    Two untimed steps come first, in which libraries create primitives and the allocator faults pages in. If the memory
    of all variants does not fit into the machine at once, each variant releases its memory after its turn, and an
    untimed step precedes each timed one.

    Args:
        case: the case to measure.
        variants: the case's variants to measure.
        device: device of the case.
        threads: CPU threads of each variant's process.
        budget: seconds for all timed steps together.
        rounds: smallest and largest number of timed steps per variant; the smallest has priority over the budget.
        limit: seconds for the first step of the compiled variant, in which `torch.compile` compiles.

    Returns: the measurement of each variant.
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
        trim = getattr(
            ctypes.CDLL(None), "malloc_trim", None
        )  # of the GNU C library, which does not return freed memory by itself
        if trim is not None:
            trim(0)
