"""A second stream for weights' gradients: what it waits for, what waits for it, and memory that lives long enough."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from kernel_cases import fused, make_case
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

pytest.importorskip("triton", reason="the kernels need Triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("launches kernels in Triton's interpreter", allow_module_level=True)

from benchmarks.traffic import launches_to, telling
from fastdarts.kernels import bank, second, tiles

OPS = ("skip_connect", "sep_conv_3x3")
Launch = tuple[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]]


class Late:
    """Stand for a GPU that starts launches of the second stream as late as it may: when the first one waits."""

    def __init__(self) -> None:
        self.started = bank.launch
        self.on_second = False
        self.waiting: list[Launch] = []
        self.late = 0

    def launch(self, kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
        if self.on_second:
            self.keep((kernel, grid, args, constants))
        else:
            self.started(kernel, grid, *args, **constants)

    def keep(self, launch: Launch) -> None:
        self.waiting.append(launch)

    def begin(self) -> None:
        pass

    @contextmanager
    def beside(self) -> Iterator[None]:
        self.on_second = True
        yield
        self.on_second = False

    def join(self) -> None:
        for kernel, grid, args, constants in self.waiting:
            self.started(kernel, grid, *args, **constants)
            self.late += 1
        self.waiting.clear()


class Lifetimes(Late):
    """Start no launch, but check that tensors of the second stream have not been freed when it might run."""

    # The first stream's gradient, to which a launch for weights' gradients only has a pointer, and its own scratch.
    NOT_SHARED = ("dx_ptr", "dd_ptr")

    def __init__(self) -> None:
        super().__init__()
        self.started = lambda *_, **__: None
        self.alive: list[tuple[str, StorageWeakRef]] = []

    def keep(self, launch: Launch) -> None:
        kernel, _, args, _ = launch
        for name, given in zip(kernel.arg_names, args, strict=False):
            for t in given if isinstance(given, tuple) else (given,):
                if isinstance(t, Tensor) and name not in self.NOT_SHARED:
                    self.alive.append((name, StorageWeakRef(t.untyped_storage())))

    def join(self) -> None:
        assert [name for name, storage in self.alive if storage.expired()] == []
        self.late += len(self.alive)
        self.alive.clear()


def run(streams: Late | None) -> dict[str, Tensor]:
    """A cell's results, with launches of the second stream as `streams` has them, or at once."""
    torch.manual_seed(0)
    case = make_case(OPS, inputs=1, nodes=2, C=4, size=(2, 4, 4)).to(torch.float64)
    if streams is None:
        return fused(case)
    with launches_to(streams.launch), telling(streams):
        return fused(case)


@pytest.fixture(autouse=True)
def two_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDARTS_STREAMS", "2")
    monkeypatch.setattr(tiles, "tile", lambda channels, *_: tiles.Tile(32, tiles.channel_block(channels), 4))  # quicker


def test_launches_as_late_as_possible_make_the_same_bits_and_one_stream_the_same_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late = Late()
    ours, at_once = run(late), run(None)
    assert late.late == 3  # of the first node's edges, of the input's, and the last sums
    monkeypatch.setenv("FASTDARTS_STREAMS", "1")
    for name, t in run(None).items():
        assert torch.equal(ours[name], at_once[name]), name
        torch.testing.assert_close(ours[name], t, msg=name)


def test_memory_that_the_second_stream_reads_lives_until_it_has_been_waited_for() -> None:
    lifetimes = Lifetimes()
    run(lifetimes)
    assert lifetimes.late > 10


def test_lifetimes_notice_what_nobody_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second.Second, "begin", lambda self, *kept: None)
    with pytest.raises(AssertionError, match="dz_ptr"):
        run(Lifetimes())


class FakeStream:
    """Notes what it is told instead of a GPU."""

    device_index = 0

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes, self.cuda_stream = name, notes, id(self)

    def record_event(self) -> str:
        self.notes.append(f"event on {self.name}")
        return f"event of {self.name}"

    def wait_event(self, event: str) -> None:
        self.notes.append(f"{self.name} waits for {event}")

    def wait_stream(self, other: "FakeStream") -> None:
        self.notes.append(f"{self.name} waits for {other.name}")


def test_streams_fork_and_join_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    first, other = FakeStream("first", notes), FakeStream("second", notes)

    @contextmanager
    def entered(stream: FakeStream) -> Iterator[None]:
        notes.append(f"on {stream.name}")
        yield
        notes.append("back")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: first)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(second, "_beside", lambda device, stream: other)
    streams = second.second_stream(torch.device("cuda"))
    assert streams is not None
    streams.begin()
    streams.join()  # a stream that has not waited is not part of a capture
    assert notes == ["event on first"]
    streams.begin()
    notes.append("launch")
    with streams.beside():
        notes.append("launch beside")
    streams.join()
    assert notes[2:] == [
        "launch", "second waits for event of first", "on second", "launch beside", "back", "first waits for second",
    ]  # fmt: skip


def test_a_number_of_streams_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDARTS_STREAMS", "3")
    with pytest.raises(ValueError, match="FASTDARTS_STREAMS must be 1 or 2; got 3"):
        second.second_stream(torch.device("cpu"))
