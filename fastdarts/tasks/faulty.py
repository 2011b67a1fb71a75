"""Classification by a network that also has to answer under faults."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from fastdarts.tasks.classification import Classification, Loss
from fastdarts.tasks.faults import Faults
from fastdarts.tasks.task import Batch


class FaultyClassification(Classification):
    """Mix the loss with that of a second pass under faults; in eval mode there are none unless `only` asks for them.

    Args:
        loss: loss(outputs, targets) -> scalar.
        faults: the faults.
        share: of the loss under faults in training.
    """

    def __init__(self, loss: Loss, faults: Faults, share: float) -> None:
        super().__init__(loss)
        self.faults = faults
        self.share = share
        self._only: tuple[float, Faults] | None = None

    @contextmanager
    def only(self, share: float, faults: Faults | None = None) -> Iterator[None]:
        """Inside, `share` of the loss, 0 or 1 for a single pass, is that under `faults`; None for the task's own."""
        before = self._only
        self._only = share, self.faults if faults is None else faults
        try:
            yield
        finally:
            self._only = before

    def forward(self, network: nn.Module, batch: Batch, amp_dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
        """Return the loss and the outputs without faults; under faults where these are all of the loss."""
        share, faults = self._only or (self.share if network.training else 0.0, self.faults)
        if share == 0:
            return super().forward(network, batch, amp_dtype)
        if share == 1:
            return super().forward(cast(nn.Module, partial(faults.run, network)), batch, amp_dtype)
        faulty, _ = super().forward(cast(nn.Module, partial(faults.run_beside, network)), batch, amp_dtype)
        loss, outputs = super().forward(network, batch, amp_dtype)
        return (1 - share) * loss + share * faulty, outputs
