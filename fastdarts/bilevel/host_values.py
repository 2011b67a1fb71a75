"""Give a step values that the host computes, such as random numbers; each replay of its CUDA graph gets new ones."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

Make = Callable[[], Tensor]
"""Computes a value on the CPU; called for each step in the order in which the step asked for its values."""


class HostValue(NamedTuple):
    """Hold the tensor that a captured step reads, and what computes its contents."""

    place: Tensor
    make: Make
    first: Tensor
    """The value that was computed when the step was captured."""

    def renew(self) -> None:
        """Compute the value of the next step and copy it to its place."""
        self.write(_made(self.make))

    def write(self, value: Tensor) -> None:
        """Copy `value` to its place without waiting for the device."""
        value = value.to(self.place.dtype)
        self.place.copy_(value.pin_memory() if self.place.is_cuda else value, non_blocking=True)


_recorded: list[HostValue] | None = None  # the values of the step that is being captured


def from_host(make: Make, like: Tensor) -> Tensor:
    """Return make() with the device and dtype of `like`.

    In a step that is captured as a CUDA graph, `make` is called again before each replay. It must read nothing from the
    device and return the same shape each time.
    """
    value = _made(make)
    if _recorded is None:
        return value.to(like)
    place = torch.empty(value.shape, dtype=like.dtype, device=like.device)
    _recorded.append(HostValue(place, make, value))
    return place


def _made(make: Make) -> Tensor:
    with torch.device("cpu"):  # another device may be the default
        return make()


@contextmanager
def recording() -> Iterator[list[HostValue]]:
    """Inside, `from_host` returns tensors whose contents the caller fills afterwards; yields the list of them."""
    global _recorded
    recorded: list[HostValue] = []
    _recorded = recorded
    try:
        yield recorded
    finally:
        _recorded = None
