"""Run steps of the search: the alphas on the validation batch, then the weights on the training batch."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastdarts.bilevel.architect import Architect, check_batch
from fastdarts.bilevel.flat import FlatSGD, as_scalar
from fastdarts.bilevel.graphs import Replay
from fastdarts.data.share import SharedBatch, like
from fastdarts.tasks.classification import Loss
from fastdarts.tasks.task import Batch, Task


class StepResult(NamedTuple):
    """Hold the measurements of a step as float64 scalars on the network's device; nothing is read back.

    With several ranks, losses and `correct` are those of this rank's rows; their mean and sum over ranks are those of
    the batch. Norms are of the gradients after their sum over the ranks.
    """

    train_loss: Tensor
    """Loss of the weight step, with the new alphas."""
    valid_loss: Tensor
    """Loss of the alpha step (order 2: at the virtual weights)."""
    correct: Tensor
    """Number of training inputs classified correctly (dense targets: each counts by its share of correct positions);
    NaN if the targets are not class indices."""
    gradient_norm: Tensor
    """Euclidean norm of the weights' gradient before clipping."""
    alpha_gradient_norm: Tensor
    """Euclidean norm of the alphas' gradient."""


class TrainPass(NamedTuple):
    """Hold the results of the weight step's pass forward and backward."""

    loss: Tensor
    outputs: Any
    gradients: list[Tensor | None]
    """This rank's part of the gradients of the weights; None for a weight that keeps its value if the rules are
    sparse."""


Level = Literal["bilevel", "single", "coordinate", "weights"]
"""The loss that the alpha step minimises. "bilevel": the validation loss; "single": the training loss, in one pass with
the weights; "coordinate": the training loss, in a separate pass; "weights": none, only the weights are updated."""


class StepRules:
    """Define what a search method may change in a step; the defaults are the rules of DARTS."""

    weights_first: bool = False
    """True if the weight step comes before the alpha step."""
    sparse: bool = False
    """True if a pass may use only some of the weights; the others get no gradient and are neither moved nor decayed."""
    capturable: bool = True
    """True if every step launches the same work, so that a CUDA graph can replay it: the host decides nothing, and the
    values that it computes or samples go through `fastdarts.bilevel.host_values.from_host`."""

    def graph_key(self) -> Hashable:
        """Return the host values that a capture fixes; two steps may share a CUDA graph only if these are equal."""
        return None

    def weight_pass(self, step: SearchStep, train: Batch) -> AbstractContextManager[None]:
        """Return the context manager in which the forward pass of the weight step runs."""
        return nullcontext()

    def weight_gradients(self, step: SearchStep, train: Batch) -> TrainPass:
        """Return the pass whose gradients move the weights; a method may change them or add passes of its own."""
        return step.train_pass(train)

    def weight_penalty(self, outputs: Any) -> Tensor | None:
        """Return what a method adds to the loss of the weights, given the network's outputs; None for nothing."""
        return None

    def level_now(self) -> Level:
        """Return the level of this step: the loss that its alpha step minimises."""
        return "bilevel"

    def before_alpha_step(self, step: SearchStep) -> None:
        """Prepare the alpha step; called before the alphas' gradient is computed."""

    def alpha_step(self, step: SearchStep, train: Batch, valid: Batch, lr: Tensor) -> Sequence[Tensor]:
        """Move the alphas and return their gradients; sets the architect's `valid_loss`."""
        return step.architect.step(train, valid, lr, step.w_optimizer, step.order)

    def after_alpha_step(self, step: SearchStep) -> None:
        """Finish the alpha step; called after the alphas have been updated."""


class SearchStep:
    """Run a search step: the alpha step, then the weight step on the same training batch with clipped gradient.

    xi of the virtual step is the current learning rate of `w_optimizer`.

    A step reads nothing back from the device. On CUDA with `FlatSGD` it is captured as a CUDA graph after a few eager
    steps with the same shapes; later steps copy the batches and the learning rate in and replay the graph. A batch of
    another shape, such as an epoch's last, runs eagerly. A changed mode or hyper-parameter or a replaced tensor causes
    a new capture.

    Args:
        network: the search network, in the mode (train or eval) in which its passes are to run.
        architect: computes and applies the alpha step.
        w_optimizer: holds the network's weights in one parameter group. `FlatSGD` clips and updates in one pass.
        loss: loss(outputs, targets) of both steps; set on the architect. None keeps the architect's.
        order: order of the alpha gradient, 1 or 2.
        grad_clip: largest global norm of the weights' gradient; None for no clipping.
        amp_dtype: autocast dtype of both steps; set on the architect. None keeps the architect's.
        cuda_graphs: False runs every step eagerly.
        rules: differences from DARTS; None for DARTS.
        kinds: number of kinds of batches, such as the lengths of a text's windows, that keep a CUDA graph.

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
        rules: StepRules | None = None,
        kinds: int = 1,
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
        self.rules = rules or StepRules()
        self._replay = Replay(kinds)

    def step(self, train: Batch, valid: Batch) -> StepResult:
        """Run one search step and return its measurements.

        Args:
            train, valid: (inputs, targets) on the network's device; `valid` is used at level "bilevel" only.

        Raises:
            ValueError: as `Architect.alpha_gradients`.
            RuntimeError: the step cannot be captured as a CUDA graph.
        """
        lr = self.w_optimizer.param_groups[0]["lr"]
        if not self._capturable():
            return StepResult(*self.run(train, valid, lr).unbind())
        for name, batch in (("train", train), ("valid", valid)):
            check_batch(name, batch, self.architect.flat.buffer.device)
        count, inputs = len(train), (*train, *valid, as_scalar(lr, train[0].device))

        def work(*tensors: Tensor) -> Tensor:
            return self.run(like(train, tensors[:count]), like(valid, tensors[count:-1]), tensors[-1])

        carried = [*range(2, count), *range(count + 2, len(inputs) - 1)]  # what a step changes in place
        return StepResult(*self._replay.run(work, self._kind_of(train, valid), inputs, carried).unbind())

    def run(self, train: Batch, valid: Batch, lr: float | Tensor) -> Tensor:
        """Run one step eagerly with learning rate `lr`; return the fields of its StepResult as a tensor [5]."""
        lr = as_scalar(lr, self.architect.flat.buffer.device)
        level = self.rules.level_now()
        if level == "single":
            return self._both(train, lr)
        none = torch.full_like(lr, math.nan)
        valid_loss, alpha_norm = none, none
        if level == "coordinate":
            valid = train
        if level != "weights" and not self.rules.weights_first:
            valid_loss, alpha_norm = self._alpha_step(train, valid, lr)
        loss, outputs, gradients = self.rules.weight_gradients(self, train)
        norm = self._move_weights(gradients, lr)
        self.architect.task.advance(train, outputs)
        if level != "weights" and self.rules.weights_first:
            valid_loss, alpha_norm = self._alpha_step(train, valid, lr)
        return _measured(self.architect.task, loss, valid_loss, outputs, train, norm, alpha_norm)

    def train_pass(self, train: Batch, further: Sequence[Tensor] = ()) -> TrainPass:
        """Run the training batch forward and backward, as the weight step does.

        Args:
            train: the batch.
            further: tensors whose gradients are to follow those of the weights.
        """
        with self.rules.weight_pass(self, train):
            loss, outputs = self.architect.forward(train)
        inputs = [*self.architect.flat.weights, *further]
        return TrainPass(loss, outputs, self._gradients(self._regularised(loss, outputs), inputs))

    def _alpha_step(self, train: Batch, valid: Batch, lr: Tensor) -> tuple[Tensor, Tensor]:
        """Run the alpha step with xi = `lr`; return its loss and the norm of the alphas' gradient."""
        self.rules.before_alpha_step(self)
        gradients = self.rules.alpha_step(self, train, valid, lr)
        self.rules.after_alpha_step(self)
        return self.architect.valid_loss, _norm(gradients)

    def _both(self, train: Batch, lr: Tensor) -> Tensor:
        """Update alphas and weights from one backward pass; return the fields of the StepResult as a tensor [5]."""
        architect = self.architect
        self.rules.before_alpha_step(self)
        loss, outputs = architect.forward(train)
        extra, total = architect.penalty(loss), self._regularised(loss, outputs)
        total = total if extra is None else total + extra
        gradients = self._gradients(total, [*architect.alphas, *architect.flat.weights])
        of_alphas = [
            torch.zeros_like(alpha) if g is None else g for alpha, g in zip(architect.alphas, gradients, strict=False)
        ]
        norm = self._move_weights(gradients[len(of_alphas) :], lr)
        of_alphas = architect.ranks.sum(of_alphas)
        architect.apply(of_alphas)
        architect.task.advance(train, outputs)
        self.rules.after_alpha_step(self)
        return _measured(architect.task, loss, loss.detach(), outputs, train, norm, _norm(of_alphas))

    def _regularised(self, loss: Tensor, outputs: Any) -> Tensor:
        """Return the loss of the weight step: with what the task and the rules add to it there."""
        for extra in (self.architect.task.regulariser(outputs), self.rules.weight_penalty(outputs)):
            loss = loss if extra is None else loss + extra
        return loss

    def _gradients(self, loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor | None]:
        """Return this rank's part of d loss / d inputs; for inputs that the pass did not use, None if the rules are
        sparse, else zeros."""
        sparse, part = self.rules.sparse, self.architect.ranks.part(loss)
        return list(torch.autograd.grad(part, inputs, allow_unused=True, materialize_grads=not sparse))

    def _move_weights(self, gradients: Sequence[Tensor | None], lr: Tensor) -> Tensor:
        """Sum the gradients over the ranks, clip, step the weights' optimizer; return the norm before clipping."""
        optimizer, flat, ranks = self.w_optimizer, self.architect.flat, self.architect.ranks
        max_norm = math.inf if self.grad_clip is None else self.grad_clip
        if isinstance(optimizer, FlatSGD):
            optimizer.attach()  # its weights may have another order than the architect's, or a new memory format
            if len(optimizer.flat.weights) != len(flat.weights):
                raise ValueError(
                    f"w_optimizer holds {len(optimizer.flat.weights)} weights, of which {len(flat.weights)} require "
                    "gradients; build FlatSGD from these alone"
                )
            known = {id(weight): gradient for weight, gradient in zip(flat.weights, gradients, strict=True)}
            whole = ranks.sum_(optimizer.flat.gather([known[id(weight)] for weight in optimizer.flat.weights]))
            optimizer.step(gradient=whole, max_norm=max_norm, lr=lr)
            return optimizer.gradient_norm
        summed = iter(ranks.sum([gradient for gradient in gradients if gradient is not None]))
        for weight, gradient in zip(flat.weights, gradients, strict=True):
            weight.grad = None if gradient is None else next(summed)
        norm = nn.utils.clip_grad_norm_(flat.weights, max_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def _capturable(self) -> bool:
        wanted = self.cuda_graphs and self.rules.capturable
        return wanted and isinstance(self.w_optimizer, FlatSGD) and self.architect.flat.buffer.is_cuda

    def _kind_of(self, train: Batch, valid: Batch) -> Hashable:
        """Return all that a capture fixes and a caller may change; steps with equal kinds can share one graph."""
        architect, optimizer = self.architect, self.w_optimizer
        assert isinstance(optimizer, FlatSGD)
        optimizer.attach()
        adam = architect.optimizer
        states = [value for alpha in architect.alphas for value in adam.state[alpha].values()]
        tensors = [*architect.alphas, architect.flat.attach(), optimizer.momentum, *states]
        options = [
            tuple((key, value) for key, value in group.items() if key not in ("params", "lr"))
            for group in (*adam.param_groups, optimizer.param_groups[0])
        ]
        return (
            *((t.shape, t.dtype, t.stride()) for t in (*train, *valid)),
            *(batch.share if isinstance(batch, SharedBatch) else None for batch in (train, valid)),
            *(t.data_ptr() for t in tensors),
            *options,
            *(group["lr"] for group in adam.param_groups),
            *(self.rules.level_now(), self.rules.weights_first, self.rules.graph_key()),
            *(self.network.training, self.order, self.grad_clip, architect.amp_dtype, id(architect.loss)),
            *(architect.hvp, architect.r, architect.w_momentum, architect.w_weight_decay),
        )


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradients]).norm()


def _measured(
    task: Task, loss: Tensor, valid_loss: Tensor, outputs: Any, train: Batch, norm: Tensor, alpha_norm: Tensor
) -> Tensor:
    with torch.no_grad():
        correct = task.correct(outputs, train)
    return torch.stack([value.double() for value in (loss.detach(), valid_loss, correct, norm, alpha_norm)])
