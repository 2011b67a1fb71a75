"""Compute means over the images of an epoch."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastdarts.bilevel.ranks import ALONE, Ranks


class EpochSums:
    """Accumulate means over the images of an epoch. The results of steps stay on the device until `read`.

    Args:
        parts: names of a step's measurements, which are means over its images, in the order of their computation. Each
            is mapped to its name in the error message for a value that is not finite, or None if that is no error.
        ranks: the processes over which measurements are averaged.
    """

    def __init__(self, parts: Mapping[str, str | None], ranks: Ranks = ALONE) -> None:
        self.images = 0
        self._parts = parts
        self._ranks = ranks
        self._sums = dict.fromkeys(parts, 0.0)
        self._waiting: list[tuple[int, Tensor]] = []

    def add(self, images: int, measured: Mapping[str, Tensor]) -> None:
        """Add a step's scalars, one for each part, over the `images` images of all ranks; does not read the device."""
        self._waiting.append((images, torch.stack([measured[part].detach().float() for part in self._parts])))

    def read(self, epoch: int, step: int) -> None:
        """Fetch the results of all steps since the last call in one transfer and add them up.

        Args:
            epoch, step: the run's position, used to name a step in an error.

        Raises: FloatingPointError at the first part that must be finite and is not.
        """
        if not self._waiting:
            return
        rows = self._ranks.mean(torch.stack([row for _, row in self._waiting])).cpu().tolist()
        counts = [images for images, _ in self._waiting]
        self._waiting.clear()
        for at, (images, row) in enumerate(zip(counts, rows, strict=True), start=step - len(rows) + 1):
            for (part, words), value in zip(self._parts.items(), row, strict=True):  # the first one is the cause
                if words is not None and not math.isfinite(value):
                    raise FloatingPointError(f"{words} is {value} in epoch {epoch + 1}, step {at}")
                self._sums[part] += images * value
            self.images += images

    def means(self) -> dict[str, float]:
        """Return the mean of each part over the images."""
        return {part: value / max(self.images, 1) for part, value in self._sums.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.images, "sums": dict(self._sums)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._waiting.clear()
        self.images = state["images"]
        self._sums = dict(state["sums"])
