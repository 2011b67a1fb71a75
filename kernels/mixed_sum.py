"""`fastdarts::mixed_sum` and its backward on GPUs: the schedule over a plan's states. Schema and autograd: fastdarts/ops.py."""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from fastdarts.kernels import tiles
from fastdarts.kernels.bank import (
    Gradients,
    Image,
    Parts,
    Shared,
    bank_backward,
    bank_forward,
    finish_sums,
    flat,
    stage_backward_parts,
)
from fastdarts.kernels.launch import channels_last, compute_dtype, launch, new_image, padded_channels
from fastdarts.kernels.mix import mix_forward_kernel, term_sums_kernel
from fastdarts.kernels.tables import Tables, constant, tables


def mixed_sum(
    states: list[Tensor], weights: Tensor, params: list[Tensor], running: Tensor | None, plan: Sequence[int], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The nodes of an encoded plan, what the backward needs, and the statistics; see `fastdarts.ops.mixed_sum`."""
    x = states[0]
    n, c = x.shape[:2]
    t = tables(tuple(plan), c, weights.shape[1])
    inputs = [channels_last(state) for state in states]
    source, stride = t.entry
    height, width = (-(-size // stride) for size in states[source].shape[2:])
    out = new_image(x, len(t.nodes) * c, height, width)
    saved = x.new_empty(t.saved * n * height * width * padded_channels(c, x.dtype))
    compute = compute_dtype(x.dtype)
    stats = x.new_empty((t.norms, 2, c), dtype=compute) if running is None else running.to(compute, copy=True)
    shared = _shared(t, params, saved, stats, out, running is None, eps)
    for i, state in enumerate(inputs):
        for bank in t.banks_of(i):
            bank_forward(bank, shared, state)
    for node in range(len(t.nodes)):
        _mix(t, node, shared, inputs, out, weights.contiguous())
        for bank in t.banks_of(t.inputs + node):
            bank_forward(bank, shared, _node(out, node, c))
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
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Gradients of op weights, states and parameters; empty tensors where none is needed."""
    c = states[0].shape[1]
    t = tables(tuple(plan), c, weights.shape[1])
    s = _shared(t, params, saved, stats, out, training, eps)
    inputs = [channels_last(state) for state in states]
    grads, pitch = channels_last(grad_out.to(out.dtype))
    has_banks = any(t.banks_of(t.inputs + node) for node in range(len(t.nodes)))
    own = torch.empty_strided(grads.shape, grads.stride(), dtype=grads.dtype, device=grads.device) if has_banks else grads
    d_weights = torch.zeros(weights.shape, dtype=stats.dtype, device=weights.device)
    sources = [state.shape[0] * state.shape[2] * state.shape[3] for state in states]
    g = Gradients(
        nodes=(grads, pitch),
        own=own,
        weights=weights.contiguous(),
        d_weights=d_weights,
        coefficients=stats.new_empty((t.norms, 3, c)),
        need_params=need_params,
        dw_parts=Parts(s.dw, _depthwise_parts(s, sources) if need_params else 0),
        pw_parts=Parts(s.pw, stage_backward_parts(s) if need_params else 0),
    )
    for node in reversed(range(len(t.nodes))):
        gradient = _node(grads, node, c)
        for bank in t.banks_of(t.inputs + node):
            mine = _node(own, node, c)
            bank_backward(bank, s, g, _node(out, node, c), gradient, mine)
            gradient = mine
        _sum_terms(t, node, s, g, inputs, out, own if t.banks_of(t.inputs + node) else grads)
    d_states: list[Tensor] = []
    for i, (state, need) in enumerate(zip(states, need_states, strict=True)):
        dx = new_image(state, *state.shape[1:]) if need else state.new_empty(0)
        before: Image | None = None
        for bank in t.banks_of(i):
            bank_backward(bank, s, g, inputs[i], before, (dx, c) if need else None)
            before = (dx, c)
        if need and before is None:
            dx.zero_()
        d_states.append(dx)
    d_params = t.split(params, g.dw_parts.total(), g.pw_parts.total()) if need_params else [p.new_empty(0) for p in params]
    return d_weights.to(weights.dtype), d_states, d_params


def _shared(
    t: Tables, params: list[Tensor], saved: Tensor, stats: Tensor, out: Tensor, training: bool, eps: float
) -> Shared:
    n, _, height, width = out.shape
    c = stats.shape[2]
    dw = flat([p for p, is_depthwise in zip(params, t.is_depthwise, strict=True) if is_depthwise], out)
    pw = flat([p for p, is_depthwise in zip(params, t.is_depthwise, strict=True) if not is_depthwise], out)
    return Shared(dw, pw, saved, stats, n, c, height, width, training, eps)


def _depthwise_parts(s: Shared, sources: list[int]) -> int:
    """The most parts of depthwise weights' gradients that any launch leaves."""
    tile = tiles.tile(s.channels, tiles.STATE_BACKWARD)
    middle = tiles.tile(s.channels, tiles.MIDDLE_BACKWARD)
    return max(triton.cdiv(max(*sources, s.pixels), tile.pixels), triton.cdiv(s.pixels, middle.pixels))


def _node(nodes: Tensor, node: int, channels: int) -> Image:
    return nodes[:, node * channels : (node + 1) * channels], nodes.shape[1]


def _mix(t: Tables, node: int, s: Shared, inputs: list[Image], out: Tensor, weights: Tensor) -> None:
    tile = tiles.tile(s.channels, tiles.MIX)
    terms = t.nodes[node]
    launch(
        mix_forward_kernel,
        (triton.cdiv(s.pixels, tile.pixels), triton.cdiv(s.channels, tile.channels)),
        tuple(x for x, _ in inputs),
        *(out, s.saved, s.stats, weights, constant(tuple(terms), out.device), node, len(terms), s.pixels),
        **s.constants,
        C=s.channels,
        PITCH=s.pitch,
        OUT_PITCH=out.shape[1],
        STATE_PITCHES=tuple(pitch for _, pitch in inputs),
        BLOCK_P=tile.pixels,
        BLOCK_C=tile.channels,
        num_warps=tile.warps,
    )


def _sum_terms(t: Tables, node: int, s: Shared, g: Gradients, inputs: list[Image], out: Tensor, gradient: Tensor) -> None:
    """Gradients of a node's op weights, and the coefficients of the batch norms that enter it."""
    tile = tiles.tile(s.channels, tiles.MIX)
    terms = t.nodes[node]
    if not terms:
        return
    count = triton.cdiv(s.pixels, tile.pixels)
    sums = s.stats.new_empty((count, 1 + len(terms), s.channels))
    launch(
        term_sums_kernel,
        (count, triton.cdiv(s.channels, tile.channels)),
        tuple(x for x, _ in inputs),
        *(out, s.saved, s.stats, gradient, constant(tuple(terms), out.device), sums, node, len(terms), s.pixels),
        **s.constants,
        C=s.channels,
        PITCH=s.pitch,
        OUT_PITCH=out.shape[1],
        STATE_PITCHES=tuple(pitch for _, pitch in inputs),
        BLOCK_P=tile.pixels,
        BLOCK_C=tile.channels,
        num_warps=tile.warps,
    )
    finish_sums(s, g, sums, [(0, 1 + i, norm, weight) for i, (_, _, norm, weight) in enumerate(terms)])
