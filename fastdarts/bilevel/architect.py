"""Update the alphas as DARTS does (Liu et al., arXiv:1806.09055): differentiate through one virtual weight step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Adam, Optimizer

from fastdarts.bilevel.clipping import VirtualClip
from fastdarts.bilevel.flat import FlatSGD, FlatWeights, as_scalar
from fastdarts.bilevel.ranks import Ranks
from fastdarts.bilevel.statistics import kept_statistics
from fastdarts.mixed import fused
from fastdarts.mixed.statistics import updating_once
from fastdarts.mixed.walk import modules_of
from fastdarts.ops import flat_ops
from fastdarts.tasks.classification import Classification, Loss
from fastdarts.tasks.task import Batch, Task


def nothing(loss: Tensor) -> None:
    """Return None: the default penalty, which adds nothing to the loss of the alpha step."""


class SearchableNetwork(Protocol):
    """Declare what the bilevel step requires of a network: an `nn.Module` with `arch_parameters()`."""

    def arch_parameters(self) -> list[Tensor]:
        """Return the architecture parameters: leaf tensors that require gradients. They may be among the network's
        parameters; the weights are the others."""
        ...


class Architect:
    """Update the alphas: compute their gradient through one virtual weight step, then take a step of Adam.

    Works on any `nn.Module` with `arch_parameters()`. The weights are the module's parameters that require
    gradients and are not alphas; they become views of one buffer (`FlatWeights`). If the network has a context manager
    `frozen_statistics()`, the passes run inside it; otherwise its buffers are saved before and restored after.

    Args:
        network: the search network, already on its device.
        lr, betas, weight_decay: settings of Adam on the alphas.
        w_momentum, w_weight_decay: settings of the weights' SGD, used in the virtual step.
        hvp: "finite-difference" uses the paper's central difference (eq. 8). "exact" computes the product by double
            backward and needs a network that can be differentiated twice. The two differ where a ReLU or max-pool
            switches within the step of the difference.
        r: numerator of the central difference's step, epsilon = r / ||v||.
        loss: loss(outputs, targets) -> scalar.
        amp_dtype: autocast the network's passes to this dtype; None keeps the weights' own.
        penalty: penalty(loss) -> scalar (or None), added to the loss of the alpha step. Apart from the loss it must
            depend on the alphas only, because the virtual step and the Hessian-vector product leave it out.
        grad_clip: largest global norm of the alphas' gradient; None for no clipping.
        optimizer: optimizer of the alphas, in place of Adam with lr, betas and weight_decay.
        ranks: the processes that train this network together, each with its rows of the batches; alphas and weights
            become those of the first. None means all of torch's default process group, if there is one; ALONE from
            `fastdarts.bilevel.ranks` keeps this process by itself.
        task: computes losses in place of `loss`, for batches of more than inputs and targets.
        clip: clips the gradients of the weights inside the second order; None for no clipping.
        train_weight: weight of the training loss beside the validation loss in a gradient of order 1 (MiLeNAS: He et
            al., CVPR 2020, equation 4).
        keep_weight_gradients: with order 1, compute the gradients of the weights, too, and keep them in
            `weight_gradients` (OLES).

    Raises:
        ValueError: unknown `hvp`, `r` not positive, no alphas, or alphas that are not leaves.
    """

    valid_loss: Tensor
    """Validation loss of this rank's rows at the latest alpha gradients (order 2: at the virtual weights); a scalar on
    the device."""
    weight_gradients: list[Tensor]
    """With `keep_weight_gradients`, the gradients of the latest validation loss for each of `flat.weights`."""

    def __init__(
        self,
        network: nn.Module,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        weight_decay: float = 1e-3,
        w_momentum: float = 0.9,
        w_weight_decay: float = 3e-4,
        hvp: Literal["finite-difference", "exact"] = "finite-difference",
        r: float = 0.01,
        *,
        loss: Loss = cross_entropy,
        amp_dtype: torch.dtype | None = None,
        penalty: Callable[[Tensor], Tensor | None] = nothing,
        grad_clip: float | None = None,
        optimizer: Optimizer | None = None,
        ranks: Ranks | None = None,
        task: Task | None = None,
        clip: VirtualClip | None = None,
        train_weight: float = 0.0,
        keep_weight_gradients: bool = False,
    ) -> None:
        if hvp not in ("finite-difference", "exact"):
            raise ValueError(f'hvp must be "finite-difference" or "exact"; got {hvp!r}')
        if not (math.isfinite(r) and r > 0):
            raise ValueError(f"r must be a positive number; got {r!r}")
        self.network = network
        self.w_momentum = w_momentum
        self.w_weight_decay = w_weight_decay
        self.hvp = hvp
        self.r = r
        self.loss = loss
        self.clip = clip
        self.train_weight = train_weight
        self.keep_weight_gradients = keep_weight_gradients
        self._task = task
        self._advances = False  # True if the pass over the validation batch moves its stream on
        self.amp_dtype = amp_dtype
        self.penalty = penalty
        self.grad_clip = grad_clip
        self.ranks = Ranks.of_process_group() if ranks is None else ranks
        self.alphas = list(cast(SearchableNetwork, network).arch_parameters())
        self._check_alphas()
        alphas = set(map(id, self.alphas))
        self.flat = FlatWeights(p for p in network.parameters() if p.requires_grad and id(p) not in alphas)
        # capturable=True keeps Adam's step counts on the GPU, so that a step can be captured as a CUDA graph.
        self.optimizer: Optimizer = optimizer or Adam(
            self.alphas, lr=lr, betas=betas, weight_decay=weight_decay, capturable=self.alphas[0].is_cuda
        )
        self.ranks.spread([*self.alphas, self.flat.buffer])

    @property
    def task(self) -> Task:
        """Return the task of the passes: that given, or classification with `loss`."""
        return Classification(self.loss) if self._task is None else self._task

    def alpha_gradients(
        self, train: Batch, valid: Batch, xi: float | Tensor, w_optimizer: Optimizer, order: int = 2
    ) -> list[Tensor]:
        """Return the architecture gradient, one tensor per tensor of `arch_parameters()`; change nothing.

        Order 1 is d/dalpha (L_valid(w, alpha) + train_weight L_train(w, alpha)).
        Order 2 (eq. 7 and 8) takes the virtual step
        w' = w - xi (momentum * buffer + g + weight_decay * w) with g = d/dw L_train and the optimizer's momentum
        buffer, and returns d/dalpha L_valid(w', alpha) - xi * H, where H is the product of L_train's mixed second
        derivative at w with v = d/dw' L_valid(w', alpha). A weight that a pass does not use has gradient zero; v = 0
        makes H = 0.

        Args:
            train, valid: (inputs, targets), of equal length within each pair, on the network's device.
            xi: learning rate of the virtual step: a number or a scalar tensor.
            w_optimizer: the weights' optimizer; only its momentum buffers are read (zero if there are none yet).
            order: 1 or 2.

        Raises:
            ValueError: wrong order, xi, batch or optimizer.
        """
        self._check_call(train, valid, xi, w_optimizer, order)
        with frozen_buffers(self.network), fused.reading_once():
            if order == 1:
                return self.ranks.sum(self._first_order(train, valid))
            return self._second_order(
                train, valid, as_scalar(xi, self.flat.buffer.device), momentum_of(w_optimizer, self.flat)
            )

    def step(
        self, train: Batch, valid: Batch, xi: float | Tensor, w_optimizer: Optimizer, order: int = 2
    ) -> list[Tensor]:
        """Compute `alpha_gradients`, take one step of Adam on the alphas and return the gradients.

        The alphas' `.grad` is None afterwards.
        """
        self._advances = valid is not train
        try:
            gradients = self.alpha_gradients(train, valid, xi, w_optimizer, order)
        finally:
            self._advances = False
        self.apply(gradients)
        return gradients

    def apply(self, gradients: Sequence[Tensor]) -> None:
        """Take one optimizer step on the alphas with `gradients`, clipped by global norm if `grad_clip` is set."""
        for alpha, gradient in zip(self.alphas, gradients, strict=True):
            alpha.grad = gradient if self.grad_clip is None else gradient.clone()
        if self.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.alphas, self.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def forward(self, batch: Batch) -> tuple[Tensor, Any]:
        """Return the loss (a scalar) and the network's outputs on `batch`, under autocast if `amp_dtype` is set.

        With several ranks the loss is that of this rank's rows, weighted so that the mean over ranks is the mean over
        the global batch (for a loss that is a mean over its rows).
        """
        with updating_once(), self.ranks.computing(batch) as share:
            loss, outputs = self.task.forward(self.network, batch, self.amp_dtype)
        return loss if share.weight == 1 else loss * share.weight, outputs

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state dict. The alphas are saved with the network, not here."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a `state_dict`, which may come from another kind of device."""
        here = {"capturable": self.alphas[0].is_cuda}
        groups = [group | here if "capturable" in group else group for group in state["param_groups"]]
        self.optimizer.load_state_dict(state | {"param_groups": groups})

    def _first_order(self, train: Batch, valid: Batch) -> list[Tensor]:
        if self.keep_weight_gradients:
            both = self._validation_gradients(valid, [*self.alphas, *self.flat.weights])
            gradients = dense(both[: len(self.alphas)])
            self.weight_gradients = self.ranks.sum(both[len(self.alphas) :])
        else:
            with without_gradients(self.flat.weights):
                gradients = dense(self._validation_gradients(valid, self.alphas))
        if self.train_weight:
            with without_gradients(self.flat.weights):
                more = self._gradients(train, self.alphas)
            gradients = [a + self.train_weight * b for a, b in zip(gradients, more, strict=True)]
        return gradients

    def _second_order(self, train: Batch, valid: Batch, xi: Tensor, momentum: Tensor | None) -> list[Tensor]:
        flat, clip = self.flat, self.clip
        buffer = flat.attach()
        saved = torch.empty_like(buffer)
        gradient = self.ranks.sum_(flat.gather(self._gradients(train, flat.weights)))
        factor = xi if clip is None else xi * clip.clip(gradient)
        flat_ops.virtual_step(buffer, saved, gradient, momentum, xi, self.w_momentum, self.w_weight_decay)
        try:
            if clip is not None:
                clip.restore_held(flat, saved)
            both = self._validation_gradients(valid, [*self.alphas, *flat.weights])
            direct = dense(both[: len(self.alphas)])
            v = self.ranks.sum_(flat.gather(both[len(self.alphas) :], out=gradient))
            if clip is not None:
                clip.clip(v)
            if self.hvp == "exact":
                buffer.copy_(saved)
                implicit = self._exact_product(train, flat.views(v))
                return self.ranks.sum([a - factor * h for a, h in zip(direct, implicit, strict=True)])
            norm = flat_ops.norm(v)
            ends = []
            with without_gradients(flat.weights):
                for r in (self.r, -self.r):
                    flat_ops.perturb(buffer, saved, v, norm, r)
                    ends.append(dense(self._gradients(train, self.alphas)))
            # Linear in the three, so ranks sum the result instead of each.
            return self.ranks.sum(
                [flat_ops.combine(a, p, m, norm, factor, self.r) for a, p, m in zip(direct, *ends, strict=True)]
            )
        finally:
            buffer.copy_(saved)

    def _exact_product(self, train: Batch, v: Sequence[Tensor]) -> list[Tensor]:
        """Compute d/dalpha <d/dw L_train, v> by double backward."""
        loss, _ = self.forward(train)
        g = torch.autograd.grad(self.ranks.part(loss), self.flat.weights, create_graph=True, materialize_grads=True)
        product = torch.stack([torch.sum(a * b) for a, b in zip(g, v, strict=True)]).sum()
        return list(torch.autograd.grad(product, self.alphas, materialize_grads=True))

    def _validation_gradients(self, batch: Batch, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return this rank's part of the gradients of loss plus penalty on `batch`; keep the loss."""
        loss, outputs = self.forward(batch)
        extra = self.penalty(loss)
        total = loss if extra is None else loss + extra
        self.valid_loss = loss.detach()
        gradients = torch.autograd.grad(self.ranks.part(total), inputs, materialize_grads=True)
        if self._advances:
            self.task.advance(batch, outputs)
        return list(gradients)

    def _gradients(self, batch: Batch, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return this rank's part of the gradients of the loss on `batch` with respect to `inputs`."""
        loss, _ = self.forward(batch)
        return list(torch.autograd.grad(self.ranks.part(loss), inputs, materialize_grads=True))

    def _check_alphas(self) -> None:
        if not self.alphas:
            raise ValueError("network.arch_parameters() is empty; an Architect needs at least one alpha tensor")
        for index, alpha in enumerate(self.alphas):
            if not (alpha.is_leaf and alpha.requires_grad):
                raise ValueError(f"network.arch_parameters()[{index}] must be a leaf tensor that requires gradients")
            if alpha.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"network.arch_parameters()[{index}] must be float32 or float64; got {alpha.dtype}")
            if any(alpha is other for other in self.alphas[:index]):
                raise ValueError(f"network.arch_parameters()[{index}] comes a second time")

    def _check_call(self, train: Batch, valid: Batch, xi: float | Tensor, w_optimizer: Optimizer, order: int) -> None:
        if order not in (1, 2):
            raise ValueError(f"order must be 1 or 2; got {order!r}")
        if isinstance(xi, Tensor):
            if xi.numel() != 1:
                raise ValueError(f"xi must be a number or a tensor of one element; got shape {tuple(xi.shape)}")
        elif not (math.isfinite(xi) and xi >= 0):
            raise ValueError(f"xi must be finite and not negative; got {xi!r}")
        now = cast(SearchableNetwork, self.network).arch_parameters()
        if len(now) != len(self.alphas) or any(a is not b for a, b in zip(now, self.alphas, strict=True)):
            raise ValueError(
                "network.arch_parameters() are not the tensors this Architect was made with; make a new one"
            )
        held = {id(p) for group in w_optimizer.param_groups for p in group["params"]}
        holders = (module._parameters for module in modules_of(self.network) if module._parameters)
        weights = self.flat.weights
        alphas = set(map(id, self.alphas))
        if {id(p) for own in holders for p in own.values() if p is not None and p.requires_grad} - alphas != {
            id(w) for w in weights
        }:
            raise ValueError("the network's parameters are not those this Architect was made with; make a new one")
        if any(id(w) not in held for w in weights):
            missing = [
                name for name, w in self.network.named_parameters() if w.requires_grad and id(w) not in held | alphas
            ]
            raise ValueError(
                f"w_optimizer does not hold {len(missing)} of the network's weights (the first is {missing[0]!r}); "
                "build it from network.parameters()"
            )
        if held & alphas:
            warnings.warn(
                "w_optimizer holds alphas, too, and moves them with the weights; build it from the parameters that are "
                "not among network.arch_parameters(): SGD(architect.flat.weights, ...)",
                UserWarning,
                stacklevel=4,
            )
        device = weights[0].device
        for name, batch in (("train", train), ("valid", valid)):
            check_batch(name, batch, device)


def dense(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return contiguous gradients, because autograd may return expanded or transposed views."""
    return [gradient.contiguous() for gradient in gradients]


def check_batch(name: str, batch: Batch, device: torch.device) -> None:
    """Raise ValueError unless `batch` is (inputs, targets, ...), these two of equal, positive length on `device`."""
    if not (isinstance(batch, tuple | list) and len(batch) >= 2 and all(isinstance(t, Tensor) for t in batch)):
        raise ValueError(f"{name} must be a pair (inputs, targets) of tensors; got {type(batch).__name__}")
    inputs, targets = batch[:2]
    if inputs.dim() == 0 or targets.dim() == 0 or len(inputs) != len(targets) or len(inputs) == 0:
        raise ValueError(
            f"{name} must hold as many targets as inputs, at least one; "
            f"got inputs {tuple(inputs.shape)} and targets {tuple(targets.shape)}"
        )
    for what, tensor in (("inputs", inputs), ("targets", targets)):
        if tensor.device != device:
            raise ValueError(f"{name} {what} are on {tensor.device}, the network's weights on {device}")


@contextmanager
def frozen_buffers(network: nn.Module) -> Iterator[None]:
    """Keep the network's buffers unchanged by passes inside: they use batch statistics and do not update running ones.

    Uses `network.frozen_statistics()` if there is one; otherwise saves the buffers and restores them.
    """
    frozen_statistics = getattr(network, "frozen_statistics", None)
    if frozen_statistics is not None:
        with frozen_statistics():
            yield
        return
    with kept_statistics(network):
        yield


@contextmanager
def without_gradients(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Temporarily clear `requires_grad` of `tensors`, so that kernels skip these gradients."""
    for tensor in tensors:
        tensor.requires_grad_(False)
    try:
        yield
    finally:
        for tensor in tensors:
            tensor.requires_grad_(True)


def momentum_of(optimizer: Optimizer, flat: FlatWeights) -> Tensor | None:
    """Return the optimizer's momentum buffers as one flat tensor [numel]; None, meaning zero, if it has none yet."""
    if isinstance(optimizer, FlatSGD):
        optimizer.attach()
        if list(map(id, optimizer.flat.weights)) == list(map(id, flat.weights)):
            return optimizer.momentum
    flat.attach()
    held = [optimizer.state[w].get("momentum_buffer") if w in optimizer.state else None for w in flat.weights]
    if all(m is None for m in held):
        return None
    return flat.gather(held)
