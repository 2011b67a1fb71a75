"""Let several processes, the ranks, train one network: each on its rows of a batch, with gradients summed over all.

All numbers that ranks exchange go through `Ranks`. One process by itself is `ALONE`, with which nothing is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fastdarts.data.share import Share, SharedBatch


class RanksError(RuntimeError):
    """Ranks differ where they must be equal; the message names them."""


class RankLostError(RanksError):
    """A rank has died or ended; the message names it if that is known. `told`: another rank prints the message."""

    def __init__(self, message: str, told: bool = False) -> None:
        super().__init__(message)
        self.told = told


Value = TypeVar("Value")


class Ranks:
    """Exchange numbers among the ranks of a process group. Every rank must make the same calls in the same order.

    Args:
        group: process group of the tensors that are summed; None for this process alone.
        control: process group of other values, which travel through the hosts' memory (gloo); None for `group`.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, control: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.control = control or group
        self.rank = 0 if group is None else group.rank()
        self.size = 1 if group is None else group.size()
        self._share: Share | None = None

    @staticmethod
    def of_process_group() -> Ranks:
        """Return all ranks of torch's default process group, or ALONE if there is none or it has one rank."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return ALONE
        assert dist.group.WORLD is not None
        return Ranks(dist.group.WORLD, _control(dist.group.WORLD))

    @property
    def alone(self) -> bool:
        """Return True if there is one rank, which exchanges nothing."""
        return self.size == 1

    @property
    def first(self) -> bool:
        """Return True on the rank that writes and prints."""
        return self.rank == 0

    # Gradients: each rank differentiates its part of the mean, and the parts are summed.

    def part(self, loss: Tensor) -> Tensor:
        """Return this rank's part of the mean over ranks: the sum of all parts is the mean."""
        return loss if self.alone else loss / self.size

    def sum_(self, flat: Tensor) -> Tensor:
        """Replace a dense tensor by its sum over the ranks, the same bits on each; return it."""
        if not self.alone:
            with _exchanging():
                dist.all_reduce(flat, group=self.group)
        return flat

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a dense tensor over the ranks."""
        return self.sum_(self.part(values))

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return each tensor's sum over the ranks, in its memory format; all are sent as one."""
        if self.alone or not tensors:
            return list(tensors)
        flat = self.sum_(torch.cat([tensor.flatten() for tensor in tensors]))
        pieces = flat.split([tensor.numel() for tensor in tensors])
        return [
            torch.empty_like(tensor).copy_(piece.view(tensor.shape))
            for tensor, piece in zip(tensors, pieces, strict=True)
        ]

    # Rows of a global batch.

    @contextmanager
    def computing(self, batch: tuple[Tensor, ...]) -> Iterator[Share]:
        """Inside, `rows` draws for the rows of `batch`; plain tensors count as one of equal shares."""
        rows = len(batch[0])
        if isinstance(batch, SharedBatch):
            share = batch.share
        else:
            share = Share(self.rank * rows, (self.rank + 1) * rows, self.size * rows, 1.0)
        self._share = share
        try:
            yield share
        finally:
            self._share = None

    def rows(self, draw: Callable[[int], Tensor], count: int) -> Tensor:
        """Return the `count` rows of draw(rows of the global batch) that belong to this rank's inputs.

        So random numbers of single samples are those that one process would draw for the whole batch, and generators
        advance alike on all ranks.
        """
        return self.later_rows(draw, count)()

    def later_rows(self, draw: Callable[[int], Tensor], count: int) -> Callable[[], Tensor]:
        """Return a function that does what `rows` does, for other batches that are divided as this one."""
        share = self._share
        if self.alone or share is None:
            return lambda: draw(count)
        return lambda: share.of(draw(share.total))

    # Values on the host.

    def from_first(self, value: Value) -> Value:
        """Return the first rank's value on every rank; it must be picklable."""
        if self.alone:
            return value
        box = [value]
        with _exchanging():
            dist.broadcast_object_list(box, group=self.control, group_src=0)
        return box[0]

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all ranks, in their order, on every rank; they must be picklable."""
        if self.alone:
            return [value]
        values: list[Value | None] = [None] * self.size
        with _exchanging():
            dist.all_gather_object(values, value, group=self.control)
        return values  # type: ignore[return-value]

    def largest(self, value: int) -> int:
        """Return the largest of all ranks' integers on every rank; 8 bytes."""
        if self.alone:
            return value
        box = torch.tensor(value)
        with _exchanging():
            dist.all_reduce(box, dist.ReduceOp.MAX, group=self.control)
        return int(box)

    @torch.no_grad()
    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Copy the first rank's tensors into those of the others; tensors of one kind are sent as one."""
        if self.alone:
            return
        kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor.detach())
        for held in kinds.values():
            flat = torch.cat([tensor.flatten() for tensor in held])
            with _exchanging():
                dist.broadcast(flat, group=self.group, group_src=0)
            for tensor, piece in zip(held, flat.split([tensor.numel() for tensor in held]), strict=True):
                tensor.copy_(piece.view(tensor.shape))


@cache
def _control(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """Return a group of all ranks whose numbers travel through the hosts' memory: `world` itself, or a new one."""
    if "gloo" in dist.get_backend_config(world):
        return world
    return dist.new_group(backend="gloo")  # type: ignore[return-value]


@contextmanager
def _exchanging() -> Iterator[None]:
    """Turn the errors of a process group, which other ranks cause by ending, into RankLostError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = (str(error).splitlines() or [""])[0]
        raise RankLostError(f"the exchange with the other ranks has failed: {reason}") from error


ALONE = Ranks()
"""One process by itself."""
