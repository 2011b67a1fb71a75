"""Run steps of ordinary training: one pass, clipping and SGD, without waiting for the device."""

import math
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastdarts.bilevel.architect import check_batch
from fastdarts.bilevel.flat import FlatSGD, as_scalar
from fastdarts.bilevel.graphs import Replay
from fastdarts.bilevel.ranks import ALONE, Ranks
from fastdarts.data.share import weight_of
from fastdarts.mixed.statistics import updating_once
from fastdarts.tasks.classification import Loss, count_correct
from fastdarts.tasks.task import Batch


class TrainResult(NamedTuple):
    """Hold the measurements of a step as float64 scalars on the network's device; nothing is read back.

    With several ranks, loss and `correct` are those of this rank's rows, the norm is that of the batch's gradient.
    """

    loss: Tensor
    """Loss of the network's output, without the auxiliary one."""
    correct: Tensor
    """Number of inputs classified correctly; see `StepResult`."""
    gradient_norm: Tensor
    """Euclidean norm of the gradient before clipping."""


class TrainStep:
    """Train a network of one or two outputs: logits, or logits and those of an auxiliary classifier.

    On CUDA a step is captured as a CUDA graph after a few eager ones, as `SearchStep` is: learning rate and batch are
    copied in. What else changes from step to step, such as a drop-path probability, must be a tensor on the device.

    Args:
        network: the network.
        optimizer: holds its weights.
        loss: loss(logits, targets) -> scalar.
        auxiliary_weight: weight of the auxiliary logits' loss.
        grad_clip: largest global norm of the gradient; None for no clipping.
        amp_dtype: autocast the pass to this dtype; None keeps the weights' own.
        cuda_graphs: False runs every step eagerly.
        ranks: processes that share each batch.
        second: a share of the loss, and another pass, images -> outputs, whose loss it is (fault training).
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: FlatSGD,
        loss: Loss,
        *,
        auxiliary_weight: float = 0.0,
        grad_clip: float | None = None,
        amp_dtype: torch.dtype | None = None,
        cuda_graphs: bool = True,
        ranks: Ranks = ALONE,
        second: tuple[float, Callable[[Tensor], Any]] | None = None,
    ) -> None:
        self.network = network
        self.second = second
        self.optimizer = optimizer
        self.loss = loss
        self.auxiliary_weight = auxiliary_weight
        self.grad_clip = math.inf if grad_clip is None else grad_clip
        self.amp_dtype = amp_dtype
        self.cuda_graphs = cuda_graphs
        self.ranks = ranks
        self._replay = Replay()

    def step(self, batch: Batch) -> TrainResult:
        """Run one step with the optimizer's learning rate and return its measurements.

        Args:
            batch: (inputs, targets) on the network's device.

        Raises:
            RuntimeError: the step cannot be captured as a CUDA graph.
        """
        weights = self.optimizer.attach()
        lr = as_scalar(self.optimizer.param_groups[0]["lr"], weights.device)
        inputs, work = (*batch, lr), partial(self.run, weight_of(batch))
        if self.cuda_graphs and self.on_gpu():
            check_batch("train", batch, weights.device)
            return TrainResult(*self._replay.run(work, self._kind_of(batch), inputs).unbind())
        return TrainResult(*work(*inputs).unbind())

    def on_gpu(self) -> bool:
        """Return True if the network is on a GPU."""
        return self.optimizer.flat.buffer.is_cuda

    def run(self, weight: float, images: Tensor, targets: Tensor, lr: Tensor) -> Tensor:
        """Run one step eagerly with learning rate `lr`; return the fields of its TrainResult as a tensor [3].

        `weight` is that of this rank's rows in the mean over ranks.
        """
        autocast = torch.autocast(images.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None)
        with autocast, updating_once():
            outputs = self.network(images)
            again = None if self.second is None else self.second[1](images)
        logits, loss, total = self._losses(outputs, targets)
        if self.second is not None:
            share = self.second[0]
            total = (1 - share) * total + share * self._losses(again, targets)[2]
        weights = self.optimizer.flat.weights
        part = self.ranks.part(total * weight)
        gradients = torch.autograd.grad(part, weights, allow_unused=True, materialize_grads=True)
        whole = self.ranks.sum_(self.optimizer.flat.gather(gradients))
        self.optimizer.step(gradient=whole, max_norm=self.grad_clip, lr=lr)
        measured = (loss.detach(), count_correct(logits.detach().float(), targets), self.optimizer.gradient_norm)
        return torch.stack([value.double() for value in measured])

    def _losses(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits, their loss, and that with the auxiliary one."""
        logits, *auxiliary = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = total = self.loss(logits.float(), targets)
        for more in auxiliary:
            total = total + self.auxiliary_weight * self.loss(more.float(), targets)
        return logits, loss, total

    def _kind_of(self, batch: Batch) -> Hashable:
        group = self.optimizer.param_groups[0]
        return (
            *((t.shape, t.dtype, t.stride()) for t in batch),
            weight_of(batch),
            *(t.data_ptr() for t in (self.optimizer.flat.buffer, self.optimizer.momentum)),
            *((key, value) for key, value in group.items() if key not in ("params", "lr")),
            *(self.network.training, self.grad_clip, self.auxiliary_weight, self.amp_dtype, id(self.loss)),
        )
