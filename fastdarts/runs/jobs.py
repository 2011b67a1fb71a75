"""Run many programs, some at a time: on this machine, or by any executor whose workers see the same folders."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import torch

from fastdarts.data.memory import PROCESSES

_ATTEMPTS = 3  # of a program that a signal ends, as when memory runs out
_POLL = 0.1  # seconds
_LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_slot = threading.local()


@dataclass(frozen=True)
class Job:
    """Describe a program that can be started again at any time and then goes on where it was.

    Attributes:
        arguments: of the Python interpreter. The program reads its standard input until it ends, which tells it that
            the process that started it is gone (see `ends_with_parent`).
        log: file that gets what it prints.
        stop: file whose existence ends it with SIGTERM.
        folder: its working folder.
        sharing: programs that run on one machine at a time, which share out threads and memory.
    """

    arguments: tuple[str, ...]
    log: Path
    stop: Path
    folder: Path
    sharing: int = 1


def run_job(job: Job) -> None:
    """Run a program in a process of its own until it ends, again if a signal has killed it."""
    for _ in range(_ATTEMPTS):
        if job.stop.exists() or _run(job) >= 0:
            return


def _run(job: Job) -> int:
    """Return the exit code; 0 for a program that was asked to stop."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in _LAUNCH}
    environment.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // job.sharing, 1)))
    environment |= {PROCESSES: str(job.sharing), **getattr(_slot, "environment", {})}
    with job.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *job.arguments],
            env=environment,
            cwd=job.folder,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the terminal's Ctrl-C reaches the caller alone, which makes the file `stop`
        )
        with process:
            while process.poll() is None:
                time.sleep(_POLL)
                if job.stop.exists():
                    process.terminate()
                    process.wait()
                    return 0
            return process.returncode


def ends_with_parent() -> None:
    """Send SIGTERM to this process when its standard input ends, because the process that started it is gone."""

    def watch() -> None:
        with suppress(OSError):
            while os.read(0, 4096):  # sys.stdin has a lock, which the interpreter needs at its end
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def run_all(
    jobs: Sequence[Job],
    executor: Executor,
    ended: Callable[[Job, BaseException | None], object],
    wait: Callable[[], object],
) -> None:
    """Run jobs by an executor.

    Args:
        jobs: the programs; they share one file `stop`.
        executor: gets `run_job` with each job.
        ended: called for each job that has ended, with the executor's error if that lost the job.
        wait: called a few times a second; an exception that it raises stops all jobs first.
    """
    waiting: dict[Job, Future[None]] = {job: executor.submit(run_job, job) for job in jobs}
    try:
        while waiting:
            time.sleep(_POLL)
            wait()
            for job, future in [pair for pair in waiting.items() if pair[1].done()]:
                del waiting[job]
                ended(job, future.exception())
    finally:
        if waiting:
            next(iter(waiting)).stop.touch()
            wait_for([future for future in waiting.values() if not future.cancel()])


@contextmanager
def local_executor(workers: int, device: str) -> Iterator[Executor]:
    """Run `workers` jobs at a time on this machine; they share out the threads and, in turn, the GPUs of `device`."""
    threads = max(torch.get_num_threads() // workers, 1)
    slots: SimpleQueue[dict[str, str]] = SimpleQueue()
    for slot in range(workers):
        slots.put({"OMP_NUM_THREADS": str(threads), **_own_gpu(slot, device)})

    def take_slot() -> None:
        _slot.environment = slots.get()

    with ThreadPoolExecutor(workers, initializer=take_slot) as executor:
        yield executor


def _own_gpu(slot: int, device: str) -> dict[str, str]:
    count = torch.cuda.device_count()
    if device not in ("auto", "cuda") or count < 2:
        return {}
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",")[:count] if named else [str(index) for index in range(count)]
    return {"CUDA_VISIBLE_DEVICES": gpus[slot % count]}


@contextmanager
def dask_executor(scheduler: str) -> Iterator[tuple[Executor, int]]:
    """Yield an executor of the Dask cluster at address `scheduler`, and the most jobs that a machine of it runs.

    Raises: ImportError that says what to install; ValueError if the scheduler does not answer or has no workers.
    """
    try:
        from distributed import Client
    except ImportError:
        raise ImportError("Dask's distributed is not installed; run: pip install 'fastdarts[dask]'") from None
    try:
        client = Client(scheduler, timeout=20)
    except OSError as error:
        raise ValueError(f"scheduler: nothing answers as a Dask scheduler at {scheduler} ({error})") from None
    with client:
        slots: dict[str, int] = {}
        for worker in client.scheduler_info(n_workers=-1)["workers"].values():
            slots[worker["host"]] = slots.get(worker["host"], 0) + worker["nthreads"]
        if not slots:
            raise ValueError(f"scheduler: the Dask scheduler at {scheduler} has no workers")
        yield client.get_executor(pure=False), max(slots.values())
