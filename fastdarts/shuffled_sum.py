"""The operator behind a node of PC-DARTS: what its edges' ops give, what passes them by, and the shuffle of both."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdarts import extension

_library = torch.library.Library("fastdarts", "FRAGMENT")
_library.define("shuffled_sum(Tensor[] mixed, Tensor[] passing, Tensor factors) -> Tensor")
_library.define(
    "shuffled_sum_backward(Tensor grad, Tensor[] passing, Tensor factors, bool need_passing, bool need_factors) "
    "-> (Tensor mixed, Tensor[] passing, Tensor factors)"
)


def shuffled_sum(mixed: Sequence[Tensor], passing: Sequence[Tensor], factors: Tensor) -> Tensor:
    """The sum of `mixed` and, weighted with `factors`, that of `passing`, as K groups of channels that are shuffled.

    Channel j of group g becomes channel j * K + g; group 0 is the sum of `mixed`, the others are that of `passing`.

    Args:
        mixed: [N, C/K, H, W] each.
        passing: [N, C - C/K, H, W] each.
        factors: [len(passing)].
    Returns:
        [N, C, H, W] in the dtype of `mixed`, channels-last.
    """
    if mixed[0].device.type == "cpu" and extension.UNAVAILABLE is None:
        return torch.ops.fastdarts.shuffled_sum(mixed, passing, factors)
    return plain(mixed, passing, factors)


def plain(mixed: Sequence[Tensor], passing: Sequence[Tensor], factors: Tensor) -> Tensor:
    """The same in plain torch functions."""
    own = _sum(mixed).permute(0, 2, 3, 1)
    others = _sum(f * x for f, x in zip(factors.to(own.dtype), passing, strict=True)).permute(0, 2, 3, 1)
    N, H, W, size = own.shape
    groups = others.reshape(N, H, W, -1, size).transpose(3, 4)
    return torch.cat([own[..., None], groups], dim=-1).reshape(N, H, W, -1).permute(0, 3, 1, 2)


def _sum(terms: Iterable[Tensor]) -> Tensor:
    first, *others = terms
    return sum(others, first)


@torch.library.register_fake("fastdarts::shuffled_sum", lib=_library)
def _(mixed: list[Tensor], passing: list[Tensor], factors: Tensor) -> Tensor:
    return _image(mixed[0], mixed[0].shape[1] + passing[0].shape[1])


@torch.library.register_fake("fastdarts::shuffled_sum_backward", lib=_library)
def _(
    grad: Tensor, passing: list[Tensor], factors: Tensor, need_passing: bool, need_factors: bool
) -> tuple[Tensor, list[Tensor], Tensor]:
    d_passing = [_image(x, x.shape[1]) if need_passing else x.new_empty((0,)) for x in passing]
    d_factors = factors.new_empty((len(passing) if need_factors else 0,))
    return _image(grad, grad.shape[1] - passing[0].shape[1]), d_passing, d_factors


def _image(x: Tensor, C: int) -> Tensor:
    N, _, H, W = x.shape
    return x.new_empty((N, H, W, C)).permute(0, 3, 1, 2)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    mixed, passing, factors = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(factors, *passing)
    ctx.terms = len(mixed)


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
    factors, *passing = ctx.saved_tensors
    need_mixed, need_passing, need_factors = ctx.needs_input_grad
    if grad is None:
        return [None] * ctx.terms, [None] * len(passing), None
    if torch.is_grad_enabled():  # somebody wants derivatives of the gradients
        d_mixed, d_passing, d_factors = _differentiable_backward(grad, passing, factors)
    else:
        d_mixed, d_passing, d_factors = torch.ops.fastdarts.shuffled_sum_backward(
            grad.to(passing[0].dtype), passing, factors, any(need_passing), need_factors
        )
    return (
        [d_mixed if need else None for need in need_mixed],
        [d if need else None for d, need in zip(d_passing, need_passing, strict=True)],
        d_factors if need_factors else None,
    )


def _differentiable_backward(
    grad: Tensor, passing: list[Tensor], factors: Tensor
) -> tuple[Tensor, list[Tensor], Tensor]:
    size = grad.shape[1] - passing[0].shape[1]
    groups = grad.unflatten(1, (size, -1)).transpose(1, 2).flatten(1, 2)
    d_mixed, d = groups[:, :size], groups[:, size:]
    d_factors = torch.stack([(d * x).sum() for x in passing])
    return d_mixed, [f.to(d.dtype) * d for f in factors], d_factors.to(factors.dtype)


torch.library.register_autograd("fastdarts::shuffled_sum", _backward, setup_context=_setup_context, lib=_library)
