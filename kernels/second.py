"""A second stream for launches whose results nothing in an operator waits for: weights' gradients."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

CHOICES = "1", "2"


class Second:
    """Two streams of one operator: `begin` on the first, launches `beside` it on the second, then `join`.

    The allocator gives memory of a tensor that has ended to the next one of the same stream, and knows nothing of other
    streams' launches. So what launches beside read or write exists at `begin` and is kept until `join`; what is
    made inside `beside` belongs to the second stream and is used by nothing else. Captured in a CUDA graph the two
    become branches. On a CPU both are one.
    """

    def __init__(self, device: torch.device) -> None:
        self._streams: tuple[torch.cuda.Stream, torch.cuda.Stream] | None = None
        self._begun: torch.cuda.Event | None = None
        self._used = False
        self._kept: list[Tensor] = []
        if device.type == "cuda":
            first = torch.cuda.current_stream(device)
            self._streams = first, _beside(first.device_index, first.cuda_stream)

    def begin(self, *kept: Tensor) -> None:
        """Let the next launches beside start now; keep what they use and nothing else keeps."""
        self._kept += kept
        if self._streams is not None:
            self._begun = self._streams[0].record_event()

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Send launches to the second stream, where they wait for all that the first had been given at `begin`."""
        if self._streams is None or self._begun is None:
            yield
            return
        self._used = True
        second = self._streams[1]
        second.wait_event(self._begun)
        with torch.cuda.stream(second):
            yield

    def join(self) -> None:
        """Have the first stream wait for the second, and let go what was kept."""
        if self._streams is not None and self._used:  # a capture knows only streams that have waited for its own
            first, second = self._streams
            first.wait_stream(second)
        self._kept.clear()


def second_stream(device: torch.device) -> Second | None:
    """Return a second stream beside the one at hand if FASTDARTS_STREAMS asks for two, or None.

    Raises: ValueError for another value than 1 or 2.
    """
    choice = os.environ.get("FASTDARTS_STREAMS", CHOICES[0])
    if choice not in CHOICES:
        raise ValueError(f"FASTDARTS_STREAMS must be {' or '.join(CHOICES)}; got {choice}")
    return Second(device) if choice == "2" else None


@lru_cache
def _beside(device: int, stream: int) -> torch.cuda.Stream:
    """Return the stream beside the one with this handle: always the same, so that tables are copied to it once."""
    return torch.cuda.Stream(device)
