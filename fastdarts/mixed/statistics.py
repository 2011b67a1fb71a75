"""Passes in train mode that leave the running statistics of a network alone."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from fastdarts.mixed.walk import modules_of


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
