"""Iterate over endless batches of one half of the images, in a seeded order that can be resumed exactly."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdarts.data.images import Batch, ImageSet
from fastdarts.data.share import Share, share_of


class BatchStream:
    """Yield batches without end; each pass over the data is a new permutation, so no image comes twice in a pass.

    The order depends only on `seed` and the number of the pass (not on the device or on global random states). Use
    different seeds for the two halves of a search. A search takes the next batch of each half in every step; halves of
    different lengths wrap around independently. (The original restarts a shuffled loader for every alpha step, which
    samples its batches with replacement.)

    Images that are not in memory are decoded ahead of `next`; the state counts those that `next` has returned.

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
        data: ImageSet,
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
        self._begin(seed, 0, 0)

    def _begin(self, seed: int, index: int, position: int) -> None:
        self._seed, self._pass, self._position = seed, index, position
        self._batches: Iterator[Batch] | None = None  # begun by `next`: it may start processes

    @property
    def batches_per_epoch(self) -> int:
        """Return the number of batches in one pass."""
        whole, rest = divmod(len(self.data), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    @property
    def _images_per_pass(self) -> int:
        return min(len(self.data), self.batches_per_epoch * self.batch_size)

    def next(self) -> Batch:
        """Return the next images [B, C, H, W] and targets [B, ...] on the data's device, without synchronising.

        With several ranks these are the rows in `share`.

        Raises: ValueError that names an image that cannot be decoded.
        """
        if self._batches is None:
            orders = _orders(len(self.data), self._images_per_pass, self.batch_size, self._start())
            rank, ranks = self._rank, self._ranks
            self._batches = self.data.fetch(share_of(len(order), rank, ranks).of(order) for order in orders)
        batch = next(self._batches)
        if self._position >= self._images_per_pass:
            self._pass, self._position = self._pass + 1, 0
        total = min(self.batch_size, self._images_per_pass - self._position)
        self._position += total
        self.share = share_of(total, self._rank, self._ranks)
        return batch

    def _start(self) -> tuple[int, int, int]:
        return self._seed, self._pass, self._position

    def state_dict(self) -> dict[str, int]:
        return {"seed": self._seed, "pass": self._pass, "position": self._position, "size": len(self.data)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken: the next batches are those that would have followed there.

        Raises: ValueError if `state` was taken with another number of images.
        """
        if state["size"] != len(self.data):
            raise ValueError(f"the state is of a stream of {state['size']} images; this one has {len(self.data)}")
        self._begin(state["seed"], state["pass"], state["position"])


def _orders(count: int, used: int, batch_size: int, start: tuple[int, int, int]) -> Iterator[Tensor]:
    """Yield the indices of each batch without end.

    It is no method: a stream that refers to itself would keep its processes until the next garbage collection.

    Args:
        count: images of the data.
        used: images of a pass, the first of its order.
        batch_size: images of a batch.
        start: the seed, the number of the pass and the position in it.
    """
    seed, index, position = start
    while True:
        order = torch.from_numpy(np.random.default_rng((seed, index)).permutation(count))
        for first in range(position, used, batch_size):
            yield order[first : min(first + batch_size, used)]
        index, position = index + 1, 0
