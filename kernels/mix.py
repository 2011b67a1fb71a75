"""Nodes: the weighted sum of everything that enters one, and in the backward its sums against the node's gradient."""

import triton
import triton.language as tl

from fastdarts.kernels.parts import load_tile, mask_of, pooled, statistics, store_tile
from fastdarts.kernels.tables import (
    NARROW,
    POOL,
    SLOT,
    SOURCE,
    SUM_G,
    SUM_GT,
    SUM_NORM,
    SUM_WEIGHT,
    TERM,
    TERM_NORM,
    WEIGHT,
)


@triton.jit
def op_weight(weights_ptr, index, ACC: tl.constexpr):
    """An op's weight; 1 where there is none."""
    return tl.load(weights_ptr + index, mask=index >= 0, other=1.0).to(ACC)


@triton.jit
def state_term(ptr, pool, p, exists, c, C: tl.constexpr, PITCH: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr,
               H: tl.constexpr, W: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """A state of H x W, or a pool of it that makes HO x WO, at output pixels p."""
    v = tl.zeros((p.shape[0], BLOCK_C), ACC)
    if pool != 0:
        stride: tl.constexpr = 1 if H == HO and W == WO else 2
        h, w = (p // WO) % HO * stride, p % WO * stride
        q = ((p // (HO * WO) * H + h) * W + w).to(tl.int64)
        v = pooled(ptr, q, h, w, exists, c, pool, C, H, W, PITCH, BLOCK_C, ACC)
    else:
        v = load_tile(ptr, p.to(tl.int64) * PITCH, c, mask_of(exists, c, C, BLOCK_C), ACC)
    return v


@triton.jit
def term(states, out_ptr, saved_ptr, terms_ptr, t, p, c, pixels, C: tl.constexpr, PITCH: tl.constexpr,
         OUT_PITCH: tl.constexpr, STATES: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, BLOCK_C: tl.constexpr,
         ACC: tl.constexpr):  # fmt: skip
    """The tensor of term t at pixels p: a saved one, a state, or a pool of a state. STATES: pitch, height, width."""
    exists = p < pixels
    source = tl.load(terms_ptr + t * TERM + SOURCE)
    slot = tl.load(terms_ptr + t * TERM + SLOT)
    pool = tl.load(terms_ptr + t * TERM + POOL)
    v = tl.zeros((p.shape[0], BLOCK_C), ACC)
    if source == 0:
        at = saved_ptr + slot * (pixels.to(tl.int64) * PITCH)
        v = load_tile(at, p.to(tl.int64) * PITCH, c, mask_of(exists, c, C, BLOCK_C), ACC)
    elif source == 1:
        v = state_term(out_ptr + slot * C, pool, p, exists, c, C, OUT_PITCH, HO, WO, HO, WO, BLOCK_C, ACC)
    else:
        for s in tl.static_range(len(STATES)):
            if source == s + 2:
                v = state_term(states[s], pool, p, exists, c, C, STATES[s][0], HO, WO, STATES[s][1], STATES[s][2],
                               BLOCK_C, ACC)  # fmt: skip
    return v


@triton.jit(do_not_specialize=["node", "terms", "pixels"])
def mix_forward_kernel(
    states, out_ptr, saved_ptr, stats_ptr, weights_ptr, terms_ptr, node, terms, pixels,
    C: tl.constexpr, PITCH: tl.constexpr, OUT_PITCH: tl.constexpr, STATES: tl.constexpr, HO: tl.constexpr,
    WO: tl.constexpr, EPS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program makes BLOCK_P pixels x BLOCK_C channels of node = sum of weight * batch norm (t) over its terms."""
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = mask_of(p < pixels, c, C, BLOCK_C)
    total = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    for t in range(terms):
        weight = op_weight(weights_ptr, tl.load(terms_ptr + t * TERM + WEIGHT), ACC)
        norm = tl.load(terms_ptr + t * TERM + TERM_NORM)
        v = term(
            states, out_ptr, saved_ptr, terms_ptr, t, p, c, pixels, C, PITCH, OUT_PITCH, STATES, HO, WO, BLOCK_C, ACC
        )
        if norm >= 0:
            mean, rstd = statistics(stats_ptr, norm, c, C, EPS)
            total += (v - mean[None, :]) * (weight * rstd)[None, :]
        else:
            total += v * weight
    store_tile(out_ptr + node * C, p.to(tl.int64) * OUT_PITCH, c, total, mask)


@triton.jit(do_not_specialize=["node", "terms", "pixels"])
def term_sums_kernel(
    states, out_ptr, saved_ptr, stats_ptr, g_ptr, terms_ptr, sums_ptr, node, terms, pixels,
    C: tl.constexpr, PITCH: tl.constexpr, OUT_PITCH: tl.constexpr, STATES: tl.constexpr, HO: tl.constexpr,
    WO: tl.constexpr, EPS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program sums a tile's g, and g * (t - mean) for every term of the node: sums [tiles, 1 + terms, C]."""
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = mask_of(p < pixels, c, C, BLOCK_C)
    g = load_tile(g_ptr + node * C, p.to(tl.int64) * OUT_PITCH, c, mask, ACC)
    at = sums_ptr + tl.program_id(0).to(tl.int64) * ((1 + terms) * C) + c
    tl.store(at, tl.sum(g, 0), mask=c < C)
    for t in range(terms):
        norm = tl.load(terms_ptr + t * TERM + TERM_NORM)
        v = term(
            states, out_ptr, saved_ptr, terms_ptr, t, p, c, pixels, C, PITCH, OUT_PITCH, STATES, HO, WO, BLOCK_C, ACC
        )
        if norm >= 0:
            mean, _ = statistics(stats_ptr, norm, c, C, EPS)
            v -= mean[None, :]
        at += C
        tl.store(at, tl.sum(g * v, 0), mask=c < C)


@triton.jit(do_not_specialize=["tiles", "sums", "pixels"])
def finish_sums_kernel(
    sums_ptr, stats_ptr, weights_ptr, coefficients_ptr, d_weights_ptr, list_ptr, tiles, sums, pixels,
    C: tl.constexpr, TRAINING: tl.constexpr, EPS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """One program joins a term's sums: the op weight's gradient and the batch norm's coefficients [norms, 3, C].

    dy = c0 * g + c1 * (y - mean) + c2, which is weight * rstd * (g - mean(g) - z * mean(g z)) for normalised y = z.
    """
    at = list_ptr + tl.program_id(0) * NARROW
    g_sum, gt_sum, norm, index = (
        tl.load(at + SUM_G),
        tl.load(at + SUM_GT),
        tl.load(at + SUM_NORM),
        tl.load(at + SUM_WEIGHT),
    )
    weight = op_weight(weights_ptr, index, ACC)
    d_weight = tl.zeros((BLOCK_C,), ACC)
    for c0 in range(0, C, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        sum_g, sum_gt = tl.zeros((BLOCK_C,), ACC), tl.zeros((BLOCK_C,), ACC)
        for t0 in range(0, tiles, BLOCK_T):
            t = t0 + tl.arange(0, BLOCK_T)
            mask = (t < tiles)[:, None] & (c < C)[None, :]
            here = sums_ptr + (t.to(tl.int64) * (sums * C))[:, None] + c[None, :]
            sum_g += tl.sum(tl.load(here + g_sum * C, mask=mask, other=0.0), 0)
            sum_gt += tl.sum(tl.load(here + gt_sum * C, mask=mask, other=0.0), 0)
        if norm >= 0:
            _, rstd = statistics(stats_ptr, norm, c, C, EPS)
            d_weight += sum_gt * rstd
            to = coefficients_ptr + norm * (3 * C) + c
            scale = weight * rstd
            share = scale / pixels.to(ACC)
            tl.store(to, scale, mask=c < C)
            if TRAINING:
                tl.store(to + C, -share * rstd * rstd * sum_gt, mask=c < C)
                tl.store(to + 2 * C, -share * sum_g, mask=c < C)
            else:
                tl.store(to + C, tl.zeros((BLOCK_C,), ACC), mask=c < C)
                tl.store(to + 2 * C, tl.zeros((BLOCK_C,), ACC), mask=c < C)
        else:
            d_weight += sum_gt
    tl.store(d_weights_ptr + index, tl.sum(d_weight, 0), mask=index >= 0)
