"""Iterate over endless batches of one half of the images, in a seeded order that can be resumed exactly."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdarts.data.images import ImageData
from fastdarts.data.share import Share, share_of


class BatchStream:
    """Yield batches without end; each pass over the data is a new permutation, so no image comes twice in a pass.

    The order depends only on `seed` and the number of the pass (not on the device or on global random states). Use
    different seeds for the two halves of a search. A search takes the next batch of each half in every step; halves of
    different lengths wrap around independently. (The original restarts a shuffled loader for every alpha step, which
    samples its batches with replacement.)

    Args:
        data: the images; batches are made on their device.
        batch_size: images in a batch; the last batch of a pass holds the images that are left.
        rank, ranks: return only the rows of process `rank` of `ranks`, which together make the same batches.
        seed: seed of the order, at least 0.
        drop_last: leave out a last batch that is shorter.

    Raises: ValueError for a batch size below 1, a negative seed, or drop_last with less than one batch of data.
    """

    share: Share
    """The rows of the latest batch that `next` returned."""

    def __init__(
        self,
        data: ImageData,
        batch_size: int,
        seed: int,
        drop_last: bool = False,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        if seed < 0:
            raise ValueError(f"seed must be at least 0; got {seed}")
        if drop_last and len(data) < batch_size:
            raise ValueError(f"batch_size {batch_size} with drop_last needs as many images; the data have {len(data)}")
        self.data = data
        self.batch_size = batch_size
        self.drop_last = drop_last
        self._rank, self._ranks = rank, ranks
        self._begin(seed, 0)

    def _begin(self, seed: int, index: int) -> None:
        self._seed, self._pass, self._position = seed, index, 0
        order = np.random.default_rng((seed, index)).permutation(len(self.data))
        self._order = torch.from_numpy(order).to(self.data.images.device)

    @property
    def batches_per_epoch(self) -> int:
        """Return the number of batches in one pass."""
        whole, rest = divmod(len(self.data), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def next(self) -> tuple[Tensor, Tensor]:
        """Return the next images [B, C, H, W] and targets [B, ...] on the data's device, without synchronising.

        With several ranks these are the rows in `share`.
        """
        left = len(self.data) - self._position
        if left < (self.batch_size if self.drop_last else 1):
            self._begin(self._seed, self._pass + 1)
        indices = self._order[self._position : self._position + self.batch_size]
        self._position += len(indices)
        self.share = share_of(len(indices), self._rank, self._ranks)
        indices = self.share.of(indices)
        return self.data.images.index_select(0, indices), self.data.targets.index_select(0, indices)

    def state_dict(self) -> dict[str, int]:
        return {"seed": self._seed, "pass": self._pass, "position": self._position, "size": len(self.data)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken: the next batches are those that would have followed there.

        Raises: ValueError if `state` was taken with another number of images.
        """
        if state["size"] != len(self.data):
            raise ValueError(f"the state is of a stream of {state['size']} images; this one has {len(self.data)}")
        self._begin(state["seed"], state["pass"])
        self._position = state["position"]
