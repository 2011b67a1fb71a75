"""`fastdarts::project` and its backward on GPUs: a cell's preprocessing. Schema and autograd: `ops/operators.py`.

Relu, 1x1 convolution (one weight) or factorised reduction (two), batch norm: a bank of one stage, a node of one term.
"""

import torch
from torch import Tensor

from fastdarts.kernels.bank import (
    Gradients,
    Leaving,
    Parts,
    Shared,
    backward_parts,
    banks_backward,
    banks_forward,
    flat,
)
from fastdarts.kernels.launch import channels_last, compute_dtype, dense_channels_last, new_image, padded_channels
from fastdarts.kernels.mixed_sum import affine_gradient, learned_norms
from fastdarts.kernels.node import mix, sum_terms
from fastdarts.kernels.second import second_stream
from fastdarts.kernels.tables import projection

_TERMS = [(0, 0, 0, -1, 0)]  # the batch norm's output, with no op weight


def project(
    x: Tensor, params: list[Tensor], running: Tensor | None, eps: float, affine: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """[N, C, H', W'] from [N, C_in, H, W], what the backward needs, and statistics [1, 2, C]."""
    stride = len(params)
    image = channels_last(x)
    channels = stride * params[0].shape[0]
    out = new_image(x, channels, *(-(-size // stride) for size in x.shape[2:]))
    pixels = out.numel() // channels
    saved = x.new_empty(pixels * padded_channels(channels, x.dtype))
    compute = compute_dtype(x.dtype)
    stats = x.new_empty((1, 2, channels), dtype=compute) if running is None else running.to(compute, copy=True)
    s = _shared(params, saved, stats, out, affine, running is None, eps)
    if running is not None:
        s.learn([0])
    banks_forward([projection(stride)], s, (image,))
    mix(_TERMS, 0, s, (image,), out, s.pw)
    return out, saved, stats


def project_backward(
    grad_out: Tensor,
    x: Tensor,
    params: list[Tensor],
    saved: Tensor,
    stats: Tensor,
    training: bool,
    eps: float,
    need_x: bool,
    need_params: bool,
    affine: Tensor | None = None,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Gradients of x, of the parameters and of affine; empty tensors where none is needed."""
    stride, channels_in = len(params), x.shape[1]
    image = channels_last(x)
    grads = dense_channels_last(grad_out.to(x.dtype))
    s = _shared(params, saved, stats, grad_out, affine, training, eps)
    s.learn([0])
    g = Gradients(
        nodes=(grads, grads.shape[1]),
        own=grads,
        weights=s.pw,
        d_weights=stats.new_empty(0),
        coefficients=stats.new_empty((1, 4, s.channels)),
        d_affine=torch.empty_like(stats),
        need_params=need_params,
        parts=Parts(s.dw, s.pw, backward_parts(s, channels_in) if need_params else 0, stats.dtype),
        second=second_stream(x.device) if need_params else None,
    )
    sum_terms(_TERMS, 0, s, g, (image,), grads, grads)
    dx = new_image(x, *x.shape[1:]) if need_x else x.new_empty(0)
    banks_backward([Leaving(projection(stride), None, (dx, channels_in) if need_x else None)], s, g, (image,))
    g.add_up()
    d_affine = affine_gradient(affine, g.d_affine, need_params)
    if not need_params:
        return dx, [p.new_empty(0) for p in params], d_affine
    parts = g.parts.total_pw.view(stride, *params[0].shape)
    return dx, [part.to(p.dtype) for part, p in zip(parts, params, strict=True)], d_affine


def _shared(
    params: list[Tensor],
    saved: Tensor,
    stats: Tensor,
    out: Tensor,
    affine: Tensor | None,
    training: bool,
    eps: float,
) -> Shared:
    n, channels, height, width = out.shape
    pw = flat([p.reshape(-1) for p in params], out.dtype, out)
    norms = learned_norms(stats, affine)
    return Shared(flat([], stats.dtype, out), pw, saved, stats, *norms, None, n, channels, height, width, training, eps)
