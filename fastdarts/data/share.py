"""Divide a global batch among the ranks (processes) that train one network together."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Share(NamedTuple):
    """Hold which rows of a global batch a rank computes."""

    start: int
    stop: int
    total: int
    """Rows of the global batch."""
    weight: float
    """Factor of the rank's mean loss in the mean over ranks; 1 if all ranks hold equally many rows."""

    def of(self, rows: Tensor) -> Tensor:
        """Return the share's rows of a tensor [total, ...]."""
        return rows[self.start : self.stop]


def share_of(total: int, rank: int, ranks: int) -> Share:
    """Return the rows of rank `rank` of `ranks` in a batch of `total` rows: consecutive ones, as evenly as possible."""
    start, stop = total * rank // ranks, total * (rank + 1) // ranks
    return Share(start, stop, total, (stop - start) * ranks / total)


class SharedBatch(tuple[Tensor, Tensor]):
    """Hold a rank's rows (inputs, targets) of a global batch, and which rows they are."""

    share: Share

    def __new__(cls, inputs: Tensor, targets: Tensor, share: Share) -> "SharedBatch":
        batch = super().__new__(cls, (inputs, targets))
        batch.share = share
        return batch


def weight_of(batch: tuple[Tensor, ...]) -> float:
    """Return the weight of a batch's share; 1 for plain tensors."""
    return batch.share.weight if isinstance(batch, SharedBatch) else 1.0


def like(batch: tuple[Tensor, ...], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return a batch of these tensors that has the share of `batch`, if that is a rank's."""
    return SharedBatch(tensors[0], tensors[1], batch.share) if isinstance(batch, SharedBatch) else tuple(tensors)
