"""One step of the search: the alphas on the validation batch, then the weights on the training batch."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastdarts.bilevel import Architect, Batch, Loss, check_batch
from fastdarts.flat import FlatSGD, as_scalar

_EAGER_STEPS = 3  # of one kind, before it is captured: libraries choose their algorithms, optimizers make their state


class StepResult(NamedTuple):
    """What a step measured: float64 scalars on the network's device, nothing read back."""

    train_loss: Tensor
    """Loss of the weight step, with the new alphas."""
    valid_loss: Tensor
    """Loss of the alpha step (order 2: at the virtual weights)."""
    correct: Tensor
    """Training inputs classified right (maps: by their share of positions); NaN if targets are no classes."""
    gradient_norm: Tensor
    """Euclidean norm of the weights' gradient before clipping."""
    alpha_gradient_norm: Tensor
    """Euclidean norm of the alphas' gradient."""


class SearchStep:
    """Alpha step first, then the weight step on the same training batch, with the gradient clipped by its global norm.

    xi of the virtual step is the learning rate that `w_optimizer` has at that moment.

    A step reads nothing back from the device. On CUDA with `FlatSGD` it becomes one CUDA graph after a few eager steps
    with the same shapes: later steps copy the batches and the learning rate in and replay it. Other shapes in between,
    like an epoch's last batch, run eagerly; a changed mode, hyper-parameter or replaced tensor makes a new graph.

    Args:
        network: the search network, in the mode (train or eval) that its passes shall run in.
        architect: makes the alpha step.
        w_optimizer: holds the network's weights in one parameter group. `FlatSGD` makes clipping and update one pass.
        loss: loss(outputs, targets) of both steps; set on the architect. None keeps the architect's.
        order: 1 or 2, of the alpha gradient.
        grad_clip: largest global norm of the weights' gradient; None for no clipping.
        amp_dtype: autocast dtype of both steps; set on the architect. None keeps the architect's.
        cuda_graphs: False runs every step eagerly.

    Raises:
        ValueError: wrong order or grad_clip, an architect of another network, several parameter groups.
    """

    def __init__(
        self,
        network: nn.Module,
        architect: Architect,
        w_optimizer: Optimizer,
        *,
        loss: Loss | None = None,
        order: int = 2,
        grad_clip: float | None = 5.0,
        amp_dtype: torch.dtype | None = None,
        cuda_graphs: bool = True,
    ) -> None:
        if architect.network is not network:
            raise ValueError("architect was made for another network; give Architect and SearchStep the same one")
        if order not in (1, 2):
            raise ValueError(f"order must be 1 or 2; got {order!r}")
        if grad_clip is not None and not (math.isfinite(grad_clip) and grad_clip > 0):
            raise ValueError(f"grad_clip must be a positive number or None; got {grad_clip!r}")
        if len(w_optimizer.param_groups) != 1:
            raise ValueError(f"w_optimizer must have one parameter group; got {len(w_optimizer.param_groups)}")
        if loss is not None:
            architect.loss = loss
        if amp_dtype is not None:
            architect.amp_dtype = amp_dtype
        self.network = network
        self.architect = architect
        self.w_optimizer = w_optimizer
        self.order = order
        self.grad_clip = grad_clip
        self.cuda_graphs = cuda_graphs
        self._captured: _CapturedStep | None = None
        self._kind: Hashable = None
        self._seen = 0

    def step(self, train: Batch, valid: Batch) -> StepResult:
        """Make one search step. `train` and `valid` are (inputs, targets) on the network's device.

        Raises:
            ValueError: as `Architect.alpha_gradients`.
            RuntimeError: the step cannot be captured as a CUDA graph.
        """
        lr = self.w_optimizer.param_groups[0]["lr"]
        if not self._capturable():
            return StepResult(*self.run(train, valid, lr).unbind())
        for name, batch in (("train", train), ("valid", valid)):
            check_batch(name, batch, self.architect.flat.buffer.device)
        kind = self._kind_of(train, valid)
        seen = self._seen + 1 if kind == self._kind else 1  # in a row
        self._kind, self._seen = kind, seen
        if self._captured is None or self._captured.kind != kind:
            if seen <= _EAGER_STEPS:
                with _side_stream(train[0].device):
                    measured = self.run(train, valid, lr)
                return StepResult(*measured.unbind())
            self._captured = None  # frees its memory for the next
            self._captured = _CapturedStep(self, kind, train, valid)
        return StepResult(*self._captured.replay(train, valid, lr).unbind())

    def run(self, train: Batch, valid: Batch, lr: float | Tensor) -> Tensor:
        """The step itself, launched operation by operation. Returns the fields of its StepResult, [5]."""
        architect, optimizer = self.architect, self.w_optimizer
        flat = architect.flat
        lr = as_scalar(lr, flat.buffer.device)
        alpha_gradients = architect.step(train, valid, lr, optimizer, self.order)
        loss, outputs = architect.forward(train)
        gradients = torch.autograd.grad(loss, flat.weights, materialize_grads=True)
        max_norm = math.inf if self.grad_clip is None else self.grad_clip
        if isinstance(optimizer, FlatSGD):
            optimizer.step(gradient=flat.gather(gradients), max_norm=max_norm, lr=lr)
            norm = optimizer.gradient_norm
        else:
            for weight, gradient in zip(flat.weights, gradients, strict=True):
                weight.grad = gradient
            norm = nn.utils.clip_grad_norm_(flat.weights, max_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        alpha_norm = torch.cat([g.flatten() for g in alpha_gradients]).norm()
        correct = count_correct(outputs.detach(), train[1])
        measured = (loss.detach(), architect.valid_loss, correct, norm, alpha_norm)
        return torch.stack([value.double() for value in measured])

    def _capturable(self) -> bool:
        return self.cuda_graphs and isinstance(self.w_optimizer, FlatSGD) and self.architect.flat.buffer.is_cuda

    def _kind_of(self, train: Batch, valid: Batch) -> Hashable:
        """Equal for two steps if one graph can serve both: all that a capture fixes and a caller may change."""
        architect, optimizer = self.architect, self.w_optimizer
        assert isinstance(optimizer, FlatSGD)
        optimizer.attach()
        adam = architect.optimizer
        states = [value for alpha in architect.alphas for value in adam.state[alpha].values()]
        tensors = [*architect.alphas, architect.flat.attach(), optimizer.momentum, *states]
        options = [
            tuple((key, value) for key, value in group.items() if key not in ("params", "lr"))
            for group in (adam.param_groups[0], optimizer.param_groups[0])
        ]
        return (
            *((t.shape, t.dtype, t.stride()) for t in (*train, *valid)),
            *(t.data_ptr() for t in tensors),
            *options,
            adam.param_groups[0]["lr"],
            *(self.network.training, self.order, self.grad_clip, architect.amp_dtype, id(architect.loss)),
            *(architect.hvp, architect.r, architect.w_momentum, architect.w_weight_decay),
        )


class _CapturedStep:
    """A search step as a CUDA graph, with places of its own for what changes between replays."""

    def __init__(self, step: SearchStep, kind: Hashable, train: Batch, valid: Batch) -> None:
        self.kind = kind
        self.inputs = [t.clone() for t in (*train, *valid)]
        self.lr = torch.zeros((), dtype=torch.float64, device=self.inputs[0].device)
        self.graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self.graph):
                self.measured = step.run((self.inputs[0], self.inputs[1]), (self.inputs[2], self.inputs[3]), self.lr)
        except RuntimeError as error:
            raise RuntimeError(
                "the search step could not be captured as a CUDA graph (something in the network or the loss waits for "
                "the device?); cuda_graphs=False runs it without"
            ) from error

    def replay(self, train: Batch, valid: Batch, lr: float | Tensor) -> Tensor:
        for place, tensor in zip(self.inputs, (*train, *valid), strict=True):
            place.copy_(tensor)
        self.lr.copy_(as_scalar(lr, self.lr.device))
        self.graph.replay()
        return self.measured.clone()


@contextmanager
def _side_stream(device: torch.device) -> Iterator[None]:
    """Work beside the default stream, which no capture may touch: autograd goes back to a parameter's first stream."""
    side, main = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    side.wait_stream(main)
    with torch.cuda.stream(side):
        yield
    main.wait_stream(side)


def count_correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """Number of inputs whose largest output is the target; a float scalar, NaN where targets are no class indices.

    Args:
        outputs: [N, classes, ...].
        targets: [N, ...] integers; with further axes an input counts by its share of right positions.
    """
    if outputs.dim() < 2 or targets.is_floating_point() or targets.shape != outputs.shape[:1] + outputs.shape[2:]:
        return outputs.new_full((), math.nan)
    hits = outputs.argmax(1) == targets
    return hits.reshape(len(hits), -1).float().mean(1).sum()
