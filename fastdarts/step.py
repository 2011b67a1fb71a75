"""One step of the search: the alphas on the validation batch, then the weights on the training batch."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastdarts.bilevel import Architect, Batch, Loss


class StepResult(NamedTuple):
    """What a step measured: scalars on the network's device, nothing read back."""

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

    Args:
        network: the search network, in the mode (train or eval) that its passes shall run in.
        architect: makes the alpha step.
        w_optimizer: holds the network's weights in one parameter group.
        loss: loss(outputs, targets) of both steps; set on the architect. None keeps the architect's.
        order: 1 or 2, of the alpha gradient.
        grad_clip: largest global norm of the weights' gradient; None for no clipping.
        amp_dtype: autocast dtype of both steps; set on the architect. None keeps the architect's.

    Raises:
        ValueError: wrong order or grad_clip, an architect of another network, several learning rates.
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

    def step(self, train: Batch, valid: Batch) -> StepResult:
        """Make one search step. `train` and `valid` are (inputs, targets) on the network's device.

        Raises:
            ValueError: as `Architect.alpha_gradients`.
        """
        xi = self.w_optimizer.param_groups[0]["lr"]
        gradients = self.architect.step(train, valid, xi, self.w_optimizer, self.order)
        weights = self.architect.weights
        self.w_optimizer.zero_grad(set_to_none=True)
        loss, outputs = self.architect.forward(train)
        loss.backward(inputs=weights)
        limit = math.inf if self.grad_clip is None else self.grad_clip
        norm = nn.utils.clip_grad_norm_(weights, limit)
        self.w_optimizer.step()
        return StepResult(
            train_loss=loss.detach(),
            valid_loss=self.architect.valid_loss,
            correct=count_correct(outputs.detach(), train[1]),
            gradient_norm=norm,
            alpha_gradient_norm=torch.cat([g.flatten() for g in gradients]).norm(),
        )


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
