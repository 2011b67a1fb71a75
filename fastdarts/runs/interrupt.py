"""Ending a run cleanly when the system asks for it."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Ctrl-C; kill; a terminal that closes; Slurm's --signal=USR1@SECONDS, some time before a job's limit."""

REQUEUE = os.EX_TEMPFAIL
"""Exit code after SIGUSR1, 75 ("temporary failure, try again"): a job that ends with it should be queued again."""


class Interrupted(KeyboardInterrupt):
    """One of STOP_SIGNALS came and the run's state is saved; the message says how to go on."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """REQUEUE after SIGUSR1; 128 + the signal's number, as shells count, after the others."""
        return REQUEUE if self.signum == signal.SIGUSR1 else 128 + self.signum


class StopRequest:
    """`signum` is the signal that came, or 0."""

    signum = 0


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Inside, note the first of STOP_SIGNALS instead of acting on it; a second one acts as ever.

    Outside the main thread, where Python allows no handlers, nothing is caught.
    """
    request = StopRequest()

    def note(signum: int) -> None:
        request.signum = signum

    with _handled(note):
        yield request


@contextmanager
def stops_at_once(message: str) -> Iterator[None]:
    """Inside, each of STOP_SIGNALS raises Interrupted with this message: for work that can be done again."""

    def stop(signum: int) -> None:
        raise Interrupted(signum, f"stopped by {signal.Signals(signum).name} {message}")

    with _handled(stop):
        yield


@contextmanager
def _handled(act: Callable[[int], None]) -> Iterator[None]:
    """Call `act` for the first of STOP_SIGNALS; SIGHUP stays ignored in a process that nohup started."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    if before[signal.SIGHUP] == signal.SIG_IGN:
        del before[signal.SIGHUP]

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(signum: int, frame: FrameType | None) -> None:
        restore()
        act(signum)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
