"""Join the processes that torchrun has started for one run.

Where processes meet is theirs to say who starts them: addresses, ports and ranks come from torchrun's environment.
"""

import logging
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, rendezvous  # type: ignore[attr-defined]

from fastdarts.bilevel.ranks import ALONE, RankLostError, Ranks, RanksError
from fastdarts.runs.console import LOGGER
from fastdarts.runs.device import choose_device
from fastdarts.runs.interrupt import Interrupted, stop_requests
from fastdarts.runs.lock import started, this_process

_SECONDS = 10.0  # in which the ranks of a machine find one of theirs gone
_calls = count()


def rank_of_process() -> int:
    """Return this process's rank as torchrun numbers it; 0 for a process that torchrun has not started."""
    return int(os.environ.get("RANK") or 0) if launched() else 0


def launched() -> bool:
    """Return True if torchrun, or a launcher that sets the same variables, has started this process."""
    return bool(os.environ.get("WORLD_SIZE") and os.environ.get("MASTER_ADDR"))


def process_count() -> int:
    """Return the number of processes that a launcher has started with this one, itself included."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def restarted() -> bool:
    """Return True if torchrun has started this process in place of one that failed (--max-restarts)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0) > 0


@dataclass(frozen=True)
class Team:
    """Hold what a run knows of its processes.

    Attributes:
        ranks: exchange numbers.
        device: of this process.
        board: the notes that processes leave each other; None without torchrun.
    """

    ranks: Ranks
    device: torch.device
    board: "Board | None" = None


class Board:
    """Keep notes in torch's store, which outlives the processes if torchrun holds it.

    Args:
        lasting: the store of this run.
        attempt: that of the present start of its processes.
        ranks: the processes.
    """

    def __init__(self, lasting: Store, attempt: Store, ranks: Ranks) -> None:
        self._lasting = lasting
        self._attempt = attempt
        self._ranks = ranks
        self._processes: list[dict[str, Any]] = ranks.gather(this_process())

    def keep(self, key: str, value: str) -> None:
        """Keep a note beyond a restart."""
        self._lasting.set(key, value)

    def kept(self, key: str) -> str | None:
        """Return a note of this attempt or an earlier one."""
        return self._lasting.get(key).decode() if self._lasting.check([key]) else None

    def report(self, error: BaseException) -> None:
        """Tell the other ranks why this one ends."""
        words = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if not isinstance(error, ValueError | TypeError | OSError | MemoryError | ArithmeticError | RanksError):
            words += "\n" + "".join(traceback.format_exception(error)).rstrip()
        with suppress(RuntimeError):  # the store may have gone with rank 0
            self._attempt.set("failed", f"rank {self._ranks.rank} failed: {words}")
            if self._ranks.first:  # which prints its errors itself
                self._attempt.set("told", "0")

    def explain(self) -> RankLostError:
        """Return the error of a rank whose exchange with the others has failed: it names the one that is gone."""
        try:
            reason = self._reason()
            if not self._ranks.first:
                time.sleep(1)  # the first rank prints, if it lives
            teller = str(self._ranks.rank)
            told = self._attempt.compare_set("told", "", teller).decode() != teller
        except RuntimeError:  # the store was in a process that is gone
            return RankLostError("rank 0, or the launcher that held torch's store, is gone", told=self._ranks.rank != 1)
        return RankLostError(f"{reason}; the run can go on from its last checkpoint", told=told)

    def _reason(self) -> str:
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end:
            if self._attempt.check(["failed"]):
                return self._attempt.get("failed").decode()
            if gone := self._gone():
                self._attempt.set("failed", gone)
                return gone
            time.sleep(0.1)
        others = {process["host"] for process in self._processes} - {this_process()["host"]}
        return f"a rank on {' or '.join(sorted(others)) or 'this machine'} does not answer"

    def _gone(self) -> str | None:
        """Name the ranks of this machine whose processes have ended."""
        here = this_process()["host"]
        gone = [
            f"rank {rank} (process {process['pid']} on {here})"
            for rank, process in enumerate(self._processes)
            if process["host"] == here and started(process["pid"]) != process["started"]
        ]
        return f"{' and '.join(gone)} died" if gone else None


@contextmanager
def joined(device_name: str) -> Iterator[Team]:
    """Inside, this process and the others of its launch are the ranks of one run; without a launch it is alone.

    A process group that the caller has made is used as it is. Ranks but the first log nothing.

    Args:
        device_name: a config's device; "auto" and "cuda" are each process's own GPU.

    Raises:
        ValueError: a device that all processes would share.
        RankLostError: another rank has died or raised, names it.
    """
    if dist.is_available() and dist.is_initialized():
        ranks = Ranks.of_process_group()
        with _silent(not ranks.first):
            yield Team(ranks, choose_device(device_name))
        return
    if not launched():
        yield Team(ALONE, choose_device(device_name))
        return
    device = _own_device(device_name)
    store, rank, size = _meeting()
    lasting = PrefixStore(f"fastdarts/run-{next(_calls)}", store)
    # Processes that are started again would read the addresses of those before them.
    attempt = PrefixStore(f"of-{size}/attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT') or 0}", lasting)
    ranks = ALONE
    if size > 1:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=attempt, rank=rank, world_size=size)
        ranks = Ranks.of_process_group()
    board = Board(lasting, attempt, ranks)
    with _silent(not ranks.first):
        try:
            yield Team(ranks, device, board)
        except RankLostError as error:  # its process group may wait for the lost rank without end
            with stop_requests():  # torchrun, too, has seen it and sends SIGTERM
                explained = board.explain()
            raise explained from error
        except Interrupted:
            _leave(ranks)
            raise
        except BaseException as error:
            board.report(error)
            _leave(ranks)
            raise
        _leave(ranks)


def _leave(ranks: Ranks) -> None:
    if not ranks.alone:
        dist.destroy_process_group()


@cache
def _meeting() -> tuple[Store, int, int]:
    """Return the store of torchrun's environment, this process's rank and the number of ranks."""
    store, rank, size = next(rendezvous("env://"))
    while isinstance(store, PrefixStore):  # a prefix of torchrun's has the number of the attempt
        store = store.underlying_store
    return store, rank, size


def _own_device(name: str) -> torch.device:
    device = choose_device(name)
    if device.type != "cuda":
        return device
    local, size = int(os.environ.get("LOCAL_RANK") or 0), int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    if device.index is not None and size > 1:
        raise ValueError(f"device {name!r} would be shared by the {size} processes on this machine; use cuda or auto")
    return choose_device(f"cuda:{local}") if device.index is None else device


@contextmanager
def _silent(wanted: bool) -> Iterator[None]:
    before = LOGGER.level
    if wanted:
        LOGGER.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        LOGGER.setLevel(before)
