"""Run steps of ordinary training on any task: one pass, clipping and an update, without waiting for the device."""

import math
from collections.abc import Hashable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastdarts.bilevel.architect import check_batch
from fastdarts.bilevel.averaging import FlatASGD
from fastdarts.bilevel.flat import FlatSGD
from fastdarts.bilevel.graphs import Replay
from fastdarts.tasks.task import Batch, Task


class TaskResult(NamedTuple):
    """Hold the measurements of a step as float64 scalars on the network's device; nothing is read back."""

    loss: Tensor
    """Loss of the task, without its regulariser."""
    gradient_norm: Tensor
    """Euclidean norm of the gradient before clipping."""


class TaskStep:
    """Train a network by a task whose batches may carry a state.

    On CUDA the gradient's computation is captured as a CUDA graph after a few eager ones, for each kind of batch. The
    update follows it, so that the optimizer may be another one from step to step.

    Args:
        network: the network.
        optimizer: holds its weights; may be replaced by another one of the same weights.
        task: its loss, and what it carries from batch to batch.
        grad_clip: largest global norm of the gradient; None for no clipping.
        amp_dtype: autocast the pass to this dtype; None keeps the weights' own.
        cuda_graphs: False runs every step eagerly.
        kinds: number of kinds of batches that keep a CUDA graph.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: FlatSGD | FlatASGD,
        task: Task,
        *,
        grad_clip: float | None = None,
        amp_dtype: torch.dtype | None = None,
        cuda_graphs: bool = True,
        kinds: int = 1,
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.task = task
        self.grad_clip = math.inf if grad_clip is None else grad_clip
        self.amp_dtype = amp_dtype
        self.cuda_graphs = cuda_graphs
        self._gradient = torch.empty_like(optimizer.flat.buffer)
        self._replay = Replay(kinds)

    def step(self, batch: Batch) -> TaskResult:
        """Run one step with the optimizer's learning rate, move the batch's state on, and return its measurements.

        Raises: RuntimeError if the step cannot be captured as a CUDA graph.
        """
        weights = self.optimizer.flat.attach()
        if self.cuda_graphs and self.on_gpu():
            check_batch("train", batch, weights.device)
            loss = self._replay.run(self.run, self._kind_of(batch), batch, range(2, len(batch)))
        else:
            loss = self.run(*batch)
        self.optimizer.step(gradient=self._gradient, max_norm=self.grad_clip)
        return TaskResult(loss, self.optimizer.gradient_norm)

    def on_gpu(self) -> bool:
        """Return True if the network is on a GPU."""
        return self.optimizer.flat.buffer.is_cuda

    def run(self, *batch: Tensor) -> Tensor:
        """Compute the gradient of a batch eagerly, move its state on, and return the loss."""
        loss, outputs = self.task.forward(self.network, batch, self.amp_dtype)
        extra = self.task.regulariser(outputs)
        flat = self.optimizer.flat
        flat.gather(torch.autograd.grad(loss if extra is None else loss + extra, flat.weights), self._gradient)
        self.task.advance(batch, outputs)
        return loss.detach().double()

    def _kind_of(self, batch: Batch) -> Hashable:
        return (
            *((t.shape, t.dtype, t.stride()) for t in batch),
            *(self.optimizer.flat.buffer.data_ptr(), self.network.training, self.amp_dtype, id(self.task)),
        )
