"""Image classification: what a batch of outputs is worth."""

from __future__ import annotations

import math

from torch import Tensor


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
