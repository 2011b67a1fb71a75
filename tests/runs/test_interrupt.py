"""Signals: which are caught, what they become, and that handlers are put back."""

import signal
import threading

import pytest

from fastdarts.runs.interrupt import REQUEUE, STOP_SIGNALS, Interrupted, stop_requests, stops_at_once


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_the_first_signal_is_noted(signum):
    before = signal.getsignal(signum)
    with stop_requests() as stop:
        signal.raise_signal(signum)
        assert stop.signum == signum
        assert signal.getsignal(signum) is before  # a second one acts as ever
    assert signal.getsignal(signum) is before


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_at_once(signum):
    before = signal.getsignal(signum)
    with (
        pytest.raises(Interrupted, match=rf"stopped by {signum.name} while painting") as caught,
        stops_at_once("while painting"),
    ):
        signal.raise_signal(signum)
    assert caught.value.exit_code == (REQUEUE if signum == signal.SIGUSR1 else 128 + signum)
    assert signal.getsignal(signum) is before


def test_nohup_keeps_its_meaning(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.signum == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_catch_nothing():
    found = []

    def run():
        with stop_requests() as stop:
            found.append((stop.signum, signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [(0, before)]
