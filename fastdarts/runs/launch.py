"""Join the processes that torchrun has started for one run.

Where processes meet is theirs to say who starts them: addresses, ports and ranks come from torchrun's environment.
"""

import json
import logging
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, rendezvous  # type: ignore[attr-defined]
from torch.distributed.constants import default_pg_nccl_timeout, default_pg_timeout

from fastdarts.bilevel.ranks import ALONE, RankLostError, Ranks, RanksError
from fastdarts.runs.console import LOGGER
from fastdarts.runs.device import choose_device
from fastdarts.runs.interrupt import Interrupted, stop_requests
from fastdarts.runs.lock import started, this_process

_SECONDS = 10.0  # in which the ranks of a machine find one of theirs gone
_PATIENCE = default_pg_timeout.total_seconds()  # for processes that have not started yet
_CONNECTING = timedelta(seconds=30)
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
        rank, size: number of this process, and of all of them.
    """

    def __init__(self, lasting: Store, attempt: Store, rank: int, size: int) -> None:
        self._lasting = lasting
        self._attempt = attempt
        self._rank = rank
        self._size = size
        self._processes: dict[int, dict[str, Any]] = {}  # by their ranks

    def meet(self) -> None:
        """Return when all ranks have written down which process they are.

        Raises:
            RankLostError: a rank of this machine has died since it did, or no news of one came in half an hour.
        """
        try:
            self._attempt.set(f"process-{self._rank}", json.dumps(this_process()))
            end = time.monotonic() + _PATIENCE
            while len(self._processes) < self._size:
                for rank in set(range(self._size)) - set(self._processes):
                    if self._attempt.check([f"process-{rank}"]):
                        self._processes[rank] = json.loads(self._attempt.get(f"process-{rank}"))
                if self._gone() or time.monotonic() > end:
                    raise self.explain()
                time.sleep(0.05)
        except RankLostError:
            raise
        except RuntimeError as error:
            raise self.explain() from error

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
            self._attempt.set("failed", f"rank {self._rank} failed: {words}")
            if self._rank == 0:  # which prints its errors itself
                self._attempt.set("told", "0")

    def explain(self) -> RankLostError:
        """Return the error of a rank whose exchange with the others has failed: it names the one that is gone."""
        try:
            reason = self._reason()
            if self._rank > 0:
                time.sleep(1)  # the first rank prints, if it lives
            teller = str(self._rank)
            told = self._attempt.compare_set("told", "", teller).decode() != teller
        except RuntimeError:  # the store was in a process that is gone
            return RankLostError("rank 0, or the launcher that held torch's store, is gone", told=self._rank != 1)
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
        if missing := sorted(set(range(self._size)) - set(self._processes)):
            return f"rank {' and '.join(map(str, missing))} of {self._size} did not start"
        others = {process["host"] for process in self._processes.values()} - {this_process()["host"]}
        return f"a rank on {' or '.join(sorted(others)) or 'this machine'} does not answer"

    def _gone(self) -> str | None:
        """Name the ranks of this machine whose processes have ended."""
        here = this_process()["host"]
        gone = [
            f"rank {rank} (process {process['pid']} on {here})"
            for rank, process in sorted(self._processes.items())
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
    board = Board(lasting, attempt, rank, size)
    ranks = _connected(board, attempt, rank, size, device) if size > 1 else ALONE
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


def _connected(board: Board, store: Store, rank: int, size: int, device: torch.device) -> Ranks:
    """Connect this process to the others and return the ranks; raise a RankLostError if one dies meanwhile."""
    board.meet()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend, later = ("nccl", default_pg_nccl_timeout) if device.type == "cuda" else ("gloo", default_pg_timeout)
    try:  # all are there, so that connecting takes no time; later a rank may wait long for another's reports
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_CONNECTING)
    except RuntimeError as error:
        raise board.explain() from error
    set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout  # torch before 2.14
    set_timeout(later or default_pg_timeout)
    return Ranks.of_process_group()


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
