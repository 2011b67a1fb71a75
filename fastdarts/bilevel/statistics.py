"""Recompute the running statistics of batch norms, for architectures that share the weights of a search network."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fastdarts.mixed.walk import modules_of
from fastdarts.tasks.task import Batch


@torch.no_grad()
def average_statistics(network: nn.Module, forward: Callable[[Batch], object], batches: Iterable[Batch]) -> None:
    """Replace the running statistics of all batch norms that a pass reaches by plain averages over `batches`.

    Variances are averages of the unbiased ones, as torch's running variances are. The network is left in train mode.

    Args:
        network: the network.
        forward: runs it on a batch.
        batches: the batches, each counted alike.
    """
    norms = [module for module in modules_of(network) if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    network.train()
    try:
        for index, batch in enumerate(batches, start=1):
            for norm in norms:
                norm.momentum = 1 / index  # the first batch replaces what was there
            forward(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@contextmanager
def kept_statistics(network: nn.Module) -> Iterator[None]:
    """Restore the network's buffers at the end."""
    saved = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        for buffer, value in saved:
            buffer.copy_(value)
