"""Classification of images, or any loss of outputs and targets."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastdarts.tasks.task import Batch, autocast

Loss = Callable[[Tensor, Tensor], Tensor]
"""loss(outputs, targets) -> scalar."""


class Classification:
    """Measure a network's outputs against targets with a loss; nothing is carried from batch to batch."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def forward(self, network: nn.Module, batch: Batch, amp_dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
        inputs, targets = batch
        with autocast(inputs, amp_dtype):
            outputs = network(inputs)
        if amp_dtype is not None:
            outputs = outputs.float()
        return self.loss(outputs, targets), outputs

    def regulariser(self, outputs: Tensor) -> None:
        return None

    def advance(self, batch: Batch, outputs: Tensor) -> None:
        """Do nothing: images are independent."""

    def correct(self, outputs: Tensor, batch: Batch) -> Tensor:
        return count_correct(outputs, batch[1])


def count_correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """Count the inputs whose largest output is the target; a float scalar, NaN if targets are not class indices.

    Args:
        outputs: [N, classes, ...].
        targets: [N, ...] integers; with further axes, an input counts by its share of correct positions.
    """
    if outputs.dim() < 2 or targets.is_floating_point() or targets.shape != outputs.shape[:1] + outputs.shape[2:]:
        return outputs.new_full((), math.nan)
    hits = outputs.argmax(1) == targets
    return hits.reshape(len(hits), -1).float().mean(1).sum()
