"""Declare what the bilevel step and the runs require of a task."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, ...]
"""Inputs and targets of equal length, then whatever else the task's passes read: dropout masks, a state that is carried
from batch to batch. All on the network's device."""


class Task(Protocol):
    """Turn passes over batches into losses."""

    def forward(self, network: nn.Module, batch: Batch, amp_dtype: torch.dtype | None) -> tuple[Tensor, Any]:
        """Return the loss, a scalar, and the outputs of a pass, in which the network autocasts to `amp_dtype`."""
        ...

    def regulariser(self, outputs: Any) -> Tensor | None:
        """Return a scalar that the weight step alone adds to the loss, or None."""
        ...

    def advance(self, batch: Batch, outputs: Any) -> None:
        """Copy into `batch`, in place, the state with which the next batch of its stream begins."""
        ...

    def correct(self, outputs: Any, batch: Batch) -> Tensor:
        """Return the number of inputs that were answered right, a float scalar; NaN if that has no meaning."""
        ...


def autocast(inputs: Tensor, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Return the context of a network's pass: autocast to `dtype`, or nothing for None.

    The weights change between the passes of one step, so their casts must not be cached.
    """
    if dtype is None:
        return nullcontext()
    return torch.autocast(inputs.device.type, dtype=dtype, cache_enabled=False)
