"""`fastdarts::mixed_sum` and its backward on GPUs: the schedule over a plan."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdarts.kernels.bank import (
    Gradients,
    Image,
    Leaving,
    Parts,
    Shared,
    backward_parts,
    banks_backward,
    banks_forward,
    flat,
)
from fastdarts.kernels.launch import channels_last, compute_dtype, dense_channels_last, new_image, padded_channels
from fastdarts.kernels.node import mix, sum_terms
from fastdarts.kernels.second import second_stream
from fastdarts.kernels.tables import Tables, tables
from fastdarts.ops.plan import decode, param_count
from fastdarts.primitives.modules import check_even


def mixed_sum(
    states: list[Tensor],
    weights: Tensor,
    params: list[Tensor],
    running: Tensor | None,
    plan: Sequence[int],
    eps: float,
    affine: Tensor | None = None,
    factors: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The nodes of an encoded plan, what the backward needs, and the statistics; see `operators.mixed_sum`."""
    x = states[0]
    n, c = x.shape[:2]
    _check(states, weights, params, plan)
    t = tables(tuple(plan), weights.shape[1])
    inputs = tuple(channels_last(state) for state in states)
    source, stride = t.entry
    height, width = (-(-size // stride) for size in states[source].shape[2:])
    out = new_image(x, len(t.nodes) * c, height, width)
    saved = x.new_empty(t.saved * n * height * width * padded_channels(c, x.dtype))
    compute = compute_dtype(x.dtype)
    stats = x.new_empty((t.norms, 2, c), dtype=compute) if running is None else running.to(compute, copy=True)
    shared = _shared(t, params, saved, stats, out, affine, factors, running is None, eps)
    if running is not None:
        shared.learn(list(range(t.norms)))
    banks_forward([bank for i in range(t.inputs) for bank in t.banks_of(i)], shared, inputs)
    for node in range(len(t.nodes)):
        mix(t.nodes[node], node, shared, inputs, out, weights.contiguous())
        banks_forward(t.banks_of(t.inputs + node), shared, (_node(out, node, c),))
    return out, saved, stats


def mixed_sum_backward(
    grad_out: Tensor,
    states: list[Tensor],
    weights: Tensor,
    params: list[Tensor],
    out: Tensor,
    saved: Tensor,
    stats: Tensor,
    plan: Sequence[int],
    training: bool,
    eps: float,
    need_states: Sequence[int],
    need_params: bool,
    need_weights: bool = True,
    affine: Tensor | None = None,
    factors: Tensor | None = None,
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    """Gradients of op weights, states, parameters and affine; empty tensors where none is needed.

    Those of op weights fall out of what batch norms need, so `need_weights` changes nothing here.
    """
    c = states[0].shape[1]
    t = tables(tuple(plan), weights.shape[1])
    s = _shared(t, params, saved, stats, out, affine, factors, training, eps)
    s.learn(list(range(t.norms)))
    inputs = tuple(channels_last(state) for state in states)
    grads = dense_channels_last(grad_out.to(out.dtype))
    has_banks = any(t.banks_of(t.inputs + node) for node in range(len(t.nodes)))
    own = new_image(out, *out.shape[1:]) if has_banks else grads
    d_weights = torch.zeros(weights.shape, dtype=stats.dtype, device=weights.device)
    g = Gradients(
        nodes=(grads, grads.shape[1]),
        own=own,
        weights=weights.contiguous(),
        d_weights=d_weights,
        coefficients=stats.new_empty((t.norms, 4, c)),
        d_affine=torch.empty_like(stats),
        need_params=need_params,
        parts=Parts(s.dw, s.pw, backward_parts(s, c) if need_params else 0, stats.dtype),
        second=second_stream(out.device) if need_params else None,
    )
    for node in reversed(range(len(t.nodes))):
        banks = t.banks_of(t.inputs + node)
        gradient, mine = _node(grads, node, c), _node(own, node, c)
        leaving = [Leaving(bank, mine if i else gradient, mine) for i, bank in enumerate(banks)]
        banks_backward(leaving, s, g, (_node(out, node, c),))
        sum_terms(t.nodes[node], node, s, g, inputs, out, own if banks else grads)
    d_states: list[Tensor] = []
    leaving = []
    for i, (state, need) in enumerate(zip(states, need_states, strict=True)):
        dx = new_image(state, *state.shape[1:]) if need else state.new_empty(0)
        before: Image | None = None
        for bank in t.banks_of(i):
            leaving.append(Leaving(bank, before, (dx, c) if need else None))
            before = (dx, c)
        if need and before is None:
            dx.zero_()
        d_states.append(dx)
    banks_backward(leaving, s, g, inputs)
    g.add_up()
    d_params = t.split(params, g.parts.total_dw, g.parts.total_pw) if need_params else [p.new_empty(0) for p in params]
    return d_weights.to(weights.dtype), d_states, d_params, affine_gradient(affine, g.d_affine, need_params)


def affine_gradient(affine: Tensor | None, gradient: Tensor, needed: bool) -> Tensor:
    """The gradient of `affine` as an operator returns it: empty unless it is needed."""
    return gradient.to(affine.dtype) if affine is not None and needed else gradient.new_empty(0)


def _check(states: list[Tensor], weights: Tensor, params: list[Tensor], plan: Sequence[int]) -> None:
    """ValueError unless everything has the size that the kernels will take it for."""
    decoded, shape = decode(list(plan)), states[0].shape
    if decoded.K != 1:
        raise ValueError(f"mixed_sum: no GPU kernel for partial channels; got a plan with K = {decoded.K}")
    if len(states) != decoded.inputs:
        raise ValueError(f"mixed_sum: plan has {decoded.inputs} inputs; got {len(states)} states")
    for state in states:
        if state.dim() != 4 or state.numel() == 0 or state.shape[:2] != shape[:2]:
            shapes = [tuple(s.shape) for s in states]
            raise ValueError(f"mixed_sum: states must be [N, C, H, W] with one N and C; got {shapes}")
    edges = [edge for edge in decoded.edges if edge.source < decoded.inputs]
    sizes = {tuple(-(-size // edge.stride) for size in states[edge.source].shape[2:]) for edge in edges}
    if len(sizes) != 1:
        raise ValueError(f"mixed_sum: edges from the inputs must end in one size; got {sorted(sizes)}")
    if weights.dim() != 2 or len(weights) != len(decoded.edges):
        raise ValueError(f"mixed_sum: weights must be [{len(decoded.edges)}, ops]; got {tuple(weights.shape)}")
    expected: list[int] = []
    for edge in decoded.edges:
        for column, c in edge.ops:
            if not 0 <= column < weights.shape[1]:
                raise ValueError(f"mixed_sum: weights have no column {column}; got {tuple(weights.shape)}")
            if c.kind == "skip" and edge.stride == 2:
                check_even(shape[1], "channels")
                expected += [shape[1] ** 2 // 2] * 2
            elif c.kind == "pointwise":
                expected.append(shape[1] ** 2)
            else:
                expected += [shape[1] * c.kernel**2, shape[1] ** 2] * (param_count(c, edge.stride) // 2)
    if [p.numel() for p in params] != expected:
        raise ValueError(f"mixed_sum: params must have {expected} elements; got {[p.numel() for p in params]}")


def _shared(
    t: Tables,
    params: list[Tensor],
    saved: Tensor,
    stats: Tensor,
    out: Tensor,
    affine: Tensor | None,
    factors: Tensor | None,
    training: bool,
    eps: float,
) -> Shared:
    n, _, height, width = out.shape
    c = stats.shape[2]
    depthwise = [p.flatten(1).t() for p, is_depthwise in zip(params, t.is_depthwise, strict=True) if is_depthwise]
    pointwise = [p.reshape(-1) for p, is_depthwise in zip(params, t.is_depthwise, strict=True) if not is_depthwise]
    dw, pw = flat(depthwise, stats.dtype, out), flat(pointwise, out.dtype, out)
    if factors is not None:  # an image's op weights one after another
        factors = factors.to(stats.dtype).repeat_interleave(t.columns, 0).t().contiguous()
    learned, norms = learned_norms(stats, affine)
    return Shared(dw, pw, saved, stats, learned, norms, factors, n, c, height, width, training, eps)


def learned_norms(stats: Tensor, affine: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """`affine` as the kernels read it, and memory for what they normalise by; without it, the statistics."""
    if affine is None:
        return None, stats
    return affine.to(stats.dtype).contiguous(), stats.new_empty((len(stats), 3, stats.shape[2]))


def _node(nodes: Tensor, node: int, channels: int) -> Image:
    return nodes[:, node * channels : (node + 1) * channels], nodes.shape[1]
