"""Define the operators on flat buffers, `fastdarts::flat_*`.

Each makes one pass; scalars that change between steps are tensors on the device. Kernels are in csrc/flat.cpp (CPU) and
csrc/cuda/flat.cu; other devices use the plain implementations in this file.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import fastdarts.ops.extension  # noqa: F401 - registers the kernels

_lib = torch.library.Library("fastdarts", "FRAGMENT")


def gather(tensors: Sequence[Tensor], out: Tensor) -> Tensor:
    """Write the elements of all `tensors`, each in its logical order, one after the other into out [n]; return out."""
    _check(out)
    if sum(t.numel() for t in tensors) != out.numel() or any(t.dtype != out.dtype for t in tensors):
        raise ValueError(f"tensors must be {out.dtype} and have {out.numel()} elements together, as out")
    torch.ops.fastdarts.flat_gather.default(tensors, out)
    return out


def virtual_step(
    weights: Tensor,
    saved: Tensor,
    gradient: Tensor,
    buffer: Tensor | None,
    xi: Tensor,
    momentum: float,
    weight_decay: float,
) -> None:
    """Set saved <- w, then w <- w - xi (momentum * buffer + gradient + weight_decay * w) (DARTS, eq. 7, with momentum).

    Args:
        weights, saved, gradient, buffer: [n], of one dtype; buffer None counts as zero.
        xi: float64 scalar on the device.
    """
    _check(weights, xi=xi, saved=saved, gradient=gradient, buffer=weights if buffer is None else buffer)
    torch.ops.fastdarts.flat_virtual_step.default(weights, saved, gradient, buffer, xi, momentum, weight_decay)


def norm(v: Tensor) -> Tensor:
    """Return the Euclidean norm of v [n] as a float64 scalar, summed in float64 in an order that depends on n only."""
    _check(v)
    return torch.ops.fastdarts.flat_norm.default(v)


def perturb(weights: Tensor, saved: Tensor, direction: Tensor, norm: Tensor, r: float) -> None:
    """Set w <- saved + (r / norm) direction (DARTS, eq. 8), or w <- saved if the norm is 0.

    Args:
        weights, saved, direction: [n], of one dtype.
        norm: norm of `direction`, a float64 scalar on the device.
        r: positive or negative, for the two ends of the central difference.
    """
    _check(weights, norm=norm, saved=saved, direction=direction)
    torch.ops.fastdarts.flat_perturb.default(weights, saved, direction, norm, r)


def combine(direct: Tensor, plus: Tensor, minus: Tensor, norm: Tensor, xi: Tensor, r: float) -> Tensor:
    """Return direct - xi (plus - minus) / (2 r / norm) (DARTS, eq. 7 and 8), or `direct` if the norm is 0.

    Args:
        direct, plus, minus: alpha gradients of one shape and dtype.
        norm, xi: float64 scalars on the device.
    """
    _check(direct, norm=norm, xi=xi, plus=plus, minus=minus)
    return torch.ops.fastdarts.flat_combine.default(direct, plus, minus, norm, xi, r)


def clipped_sgd(
    weights: Tensor,
    buffer: Tensor | None,
    gradient: Tensor,
    norm: Tensor,
    lr: Tensor,
    momentum: float,
    weight_decay: float,
    max_norm: float,
) -> None:
    """Clip the gradient and take an SGD step, as `torch.nn.utils.clip_grad_norm_` and `torch.optim.SGD` do together.

    buffer <- momentum * buffer + c * gradient + weight_decay * w and w <- w - lr * buffer, with
    c = min(1, max_norm / (norm + 1e-6)). `gradient` is not changed.

    Args:
        weights, buffer, gradient: [n], of one dtype; buffer None counts as zero, and is not kept.
        norm, lr: the gradient's norm and the learning rate, float64 scalars on the device.
        max_norm: largest norm of the gradient; infinity for no clipping.
    """
    _check(weights, norm=norm, lr=lr, buffer=weights if buffer is None else buffer, gradient=gradient)
    torch.ops.fastdarts.flat_clipped_sgd.default(weights, buffer, gradient, norm, lr, momentum, weight_decay, max_norm)


def _check(first: Tensor, **others: Tensor) -> None:
    if first.dtype not in (torch.float32, torch.float64) or not first.is_contiguous():
        raise ValueError(f"flat buffers must be contiguous float32 or float64; got {first.dtype} {first.stride()}")
    for name, tensor in others.items():
        if name in ("xi", "lr", "norm"):
            shape, dtype = torch.Size(()), torch.float64
        else:
            shape, dtype = first.shape, first.dtype
        if (
            tensor.shape != shape
            or tensor.dtype != dtype
            or tensor.device != first.device
            or not tensor.is_contiguous()
        ):
            raise ValueError(
                f"{name} must be contiguous {dtype} {tuple(shape)} on {first.device}; "
                f"got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            )


def _gather(tensors: Sequence[Tensor], out: Tensor) -> None:
    torch.cat([t.reshape(-1) for t in tensors], out=out)


def _virtual_step(
    weights: Tensor,
    saved: Tensor,
    gradient: Tensor,
    buffer: Tensor | None,
    xi: Tensor,
    momentum: float,
    weight_decay: float,
) -> None:
    saved.copy_(weights)
    direction = gradient.add(weights, alpha=weight_decay)
    if buffer is not None:
        direction.add_(buffer, alpha=momentum)
    weights.sub_(direction.mul_(xi))


def _norm(v: Tensor) -> Tensor:
    return torch.linalg.vector_norm(v, dtype=torch.float64)


def _perturb(weights: Tensor, saved: Tensor, direction: Tensor, norm: Tensor, r: float) -> None:
    epsilon = torch.where(norm == 0, torch.zeros_like(norm), r / norm)
    torch.add(saved, direction * epsilon, out=weights)


def _combine(direct: Tensor, plus: Tensor, minus: Tensor, norm: Tensor, xi: Tensor, r: float) -> Tensor:
    return direct - xi * ((plus - minus) * (norm / (2 * r)))


def _clipped_sgd(
    weights: Tensor,
    buffer: Tensor | None,
    gradient: Tensor,
    norm: Tensor,
    lr: Tensor,
    momentum: float,
    weight_decay: float,
    max_norm: float,
) -> None:
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    if buffer is None:
        buffer = torch.zeros_like(weights)
    buffer.mul_(momentum).add_(gradient * factor).add_(weights, alpha=weight_decay)
    weights.sub_(buffer * lr)


_OPERATORS = {
    "flat_gather(Tensor[] tensors, Tensor(a!) out) -> ()": (_gather, lambda *_: None),
    "flat_virtual_step(Tensor(a!) weights, Tensor(b!) saved, Tensor gradient, Tensor? buffer, Tensor xi, "
    "float momentum, float weight_decay) -> ()": (_virtual_step, lambda *_: None),
    "flat_norm(Tensor v) -> Tensor": (_norm, lambda v: v.new_empty((), dtype=torch.float64)),
    "flat_perturb(Tensor(a!) weights, Tensor saved, Tensor direction, Tensor norm, float r) -> ()": (
        _perturb,
        lambda *_: None,
    ),
    "flat_combine(Tensor direct, Tensor plus, Tensor minus, Tensor norm, Tensor xi, float r) -> Tensor": (
        _combine,
        lambda direct, *_: torch.empty_like(direct),
    ),
    "flat_clipped_sgd(Tensor(a!) weights, Tensor(b!)? buffer, Tensor gradient, Tensor norm, Tensor lr, "
    "float momentum, float weight_decay, float max_norm) -> ()": (_clipped_sgd, lambda *_: None),
}
for _schema, (_plain, _fake) in _OPERATORS.items():
    _name = _schema.partition("(")[0]
    _lib.define(_schema)
    _lib.impl(_name, _plain, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastdarts::{_name}", _fake, lib=_lib)
