"""Leave the running statistics of a network alone in a pass, or update those of norms that the fused operators run."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fastdarts.mixed.walk import modules_of
from fastdarts.ops import running


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Inside, batch norm in train mode normalises by the batch as always and leaves its running buffers alone.

    Buffers of other modules that the passes change are restored at the end.
    """
    holders = [module for module in modules_of(network) if module._buffers]
    tracking = [m for m in holders if isinstance(m, nn.BatchNorm2d) and m.track_running_stats]
    others = [module for module in holders if not isinstance(module, nn.BatchNorm2d)]
    saved = [
        (buffer, None if isinstance(module, _NormBase) else buffer._version, buffer.clone())
        for module in others
        for buffer in module._buffers.values()
        if buffer is not None
    ]
    # Not by nn.Module's own __setattr__, which takes 20 times as long: a network has 1,000 batch norms.
    for module in tracking:
        object.__setattr__(module, "track_running_stats", False)
    try:
        yield
    finally:
        for module in tracking:
            object.__setattr__(module, "track_running_stats", True)
        for buffer, version, value in saved:
            # A buffer that a backward will read must not be written to; norms change theirs without a new version.
            if version is None or buffer._version != version:
                buffer.copy_(value)


class Batch(NamedTuple):
    """Hold the statistics of a batch for some batch norms of equal momentum."""

    norms: Sequence[nn.BatchNorm2d]
    stats: Tensor
    """Means and biased variances, [norms, 2, C]."""
    values: int
    """Number of values per channel that they are of."""

    @property
    def kind(self) -> tuple[float | None, torch.dtype, torch.device]:
        """Return what batches have in common that one call of the operator takes."""
        mean = buffer(self.norms[0], "running_mean")
        return self.norms[0].momentum, mean.dtype, mean.device


class _Pass(threading.local):
    """Hold the batches whose statistics this thread has not used yet; None outside of `updating_once`."""

    batches: list[Batch] | None = None
    norms: set[nn.Module]


_pass = _Pass()


@contextmanager
def updating_once() -> Iterator[None]:
    """Inside, keep statistics of batches for one update at the end: on a GPU two launches instead of two a call.

    Norms that run several times are updated in order. If the pass raises, what was kept is dropped.
    """
    if _pass.batches is not None:
        yield
        return
    _pass.batches, _pass.norms = [], set()
    try:
        yield
        _use_kept()
    finally:
        _pass.batches, _pass.norms = None, set()


def update_running(norms: Sequence[nn.BatchNorm2d], stats: Tensor, values: int) -> None:
    """Update running statistics and counters of `norms` as nn.BatchNorm2d does; see `Batch` for the arguments."""
    batch = Batch(norms, stats.detach(), values)
    if torch.compiler.is_compiling() or _pass.batches is None:
        _apply([batch])
        return
    if not _pass.norms.isdisjoint(norms):
        _use_kept()
    _pass.batches.append(batch)
    _pass.norms.update(norms)


def _use_kept() -> None:
    assert _pass.batches is not None
    kept, _pass.batches, _pass.norms = _pass.batches, [], set()
    alike: dict[object, list[Batch]] = {}
    for batch in kept:
        alike.setdefault(batch.kind, []).append(batch)
    for batches in alike.values():
        _apply(batches)


def _apply(batches: Sequence[Batch]) -> None:
    """Update the norms of batches of one kind."""
    norms = [norm for batch in batches for norm in batch.norms]
    momentum = norms[0].momentum
    assert momentum is not None
    counters = [buffer(norm, "num_batches_tracked") for norm in norms]
    stats = [batch.stats.reshape(-1) for batch in batches]
    running.update_running(
        [buffer(norm, "running_mean") for norm in norms],
        [buffer(norm, "running_var") for norm in norms],
        [counter for counter in counters if counter is not None],
        torch.cat(stats) if len(stats) > 1 else stats[0],
        [batch.values for batch in batches for _ in batch.norms],
        momentum,
    )


def buffer(norm: nn.BatchNorm2d, name: str) -> Tensor:
    """Return a buffer of a batch norm, past nn.Module's own look-up: a step needs thousands."""
    return norm._buffers[name]  # type: ignore[return-value]
