"""Nodes: the weighted sum of everything that enters one, and in the backward its sums against the node's gradient."""

import triton
import triton.language as tl

from fastdarts.kernels.blocks import blocks, pointers, times, within
from fastdarts.kernels.gradients import edge_factor
from fastdarts.kernels.parts import batch_norm, mask_of, statistics
from fastdarts.kernels.strips import STRIP, converted, load_strip, pooled_strip, stored_strip
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

TOGETHER = tl.constexpr(4)  # saved tensors that are loaded before one is used: with one, latencies would show


@triton.jit
def op_weight(weights_ptr, index, ACC: tl.constexpr):
    """An op's weight; 1 where there is none."""
    return tl.load(weights_ptr + index, mask=index >= 0, other=1.0).to(ACC)


@triton.jit
def state_term(ptr, pool, q, h, w, exists, c, C: tl.constexpr, PITCH: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr,
               H: tl.constexpr, W: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """A state of H x W, or a pool of it that makes HO x WO, at strips of output pixels."""
    v = times(tl.zeros((q.shape[0], BLOCK_C), ACC), STRIP)
    if pool != 0:
        stride: tl.constexpr = 1 if H == HO and W == WO else 2
        corner = ((q // (HO * WO)).to(tl.int64) * H + h * stride) * W + w * stride
        v = pooled_strip(ptr, pool, corner, h, w, exists, c, stride, C, H, W, PITCH, HO, BLOCK_C, ACC)
    else:
        v = load_strip(ptr, q, h, exists, c, C, PITCH, HO, WO, BLOCK_C, ACC)
    return v


@triton.jit
def term(states, out_ptr, saved_ptr, terms_ptr, t, q, h, w, exists, c, pixels, C: tl.constexpr, PITCH: tl.constexpr,
         OUT_PITCH: tl.constexpr, STATES: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, BLOCK_C: tl.constexpr,
         ACC: tl.constexpr):  # fmt: skip
    """The tensor of term t at strips: a saved one, a state, or a pool of a state. STATES: pitch, height, width."""
    source = tl.load(terms_ptr + t * TERM + SOURCE)
    slot = tl.load(terms_ptr + t * TERM + SLOT)
    pool = tl.load(terms_ptr + t * TERM + POOL)
    v = times(tl.zeros((q.shape[0], BLOCK_C), ACC), STRIP)
    if source == 0:
        at = saved_ptr + slot * (pixels.to(tl.int64) * PITCH)
        v = load_strip(at, q, h, exists, c, C, PITCH, HO, WO, BLOCK_C, ACC)
    elif source == 1:
        v = state_term(out_ptr + slot * C, pool, q, h, w, exists, c, C, OUT_PITCH, HO, WO, HO, WO, BLOCK_C, ACC)
    else:
        for s in tl.static_range(len(STATES)):
            if source == s + 2:
                v = state_term(states[s], pool, q, h, w, exists, c, C, STATES[s][0], HO, WO, STATES[s][1], STATES[s][2],
                               BLOCK_C, ACC)  # fmt: skip
    return v


@triton.jit(do_not_specialize=["node", "terms", "together", "pixels"])
def mix_forward_kernel(
    states, out_ptr, saved_ptr, norms_ptr, weights_ptr, factors_ptr, terms_ptr, node, terms, together, pixels,
    C: tl.constexpr, PITCH: tl.constexpr, OUT_PITCH: tl.constexpr, STATES: tl.constexpr, HO: tl.constexpr,
    WO: tl.constexpr, FACTORS: tl.constexpr, EPS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """One program makes BLOCK_P pixels x BLOCK_C channels of node = sum of weight * batch norm (t) over its terms.

    The first `together` of the terms, a multiple of TOGETHER, are saved tensors.
    With FACTORS, the number of op weights, a term also has a factor for each image: factors [images, FACTORS].
    """
    q, h, w, exists = blocks(tl.program_id(0), pixels // (HO * WO), STRIP, 1, 1, HO, WO, BLOCK_P // STRIP)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = times(tl.zeros((BLOCK_P // STRIP, BLOCK_C), ACC), STRIP)
    for t in range(0, together, TOGETHER):
        v = saved_terms(saved_ptr, terms_ptr, t, q, h, exists, c, pixels, C, PITCH, HO, WO, BLOCK_C)
        for k in tl.static_range(TOGETHER):
            total = mixed(total, converted(v[k], ACC), norms_ptr, weights_ptr, factors_ptr, terms_ptr, t + k, q, exists,
                          c, True, C, HO, WO, FACTORS, EPS, BLOCK_C, ACC)  # fmt: skip
    for t in range(together, terms):
        v = term(states, out_ptr, saved_ptr, terms_ptr, t, q, h, w, exists, c, pixels, C, PITCH, OUT_PITCH, STATES,
                 HO, WO, BLOCK_C, ACC)  # fmt: skip
        total = mixed(total, v, norms_ptr, weights_ptr, factors_ptr, terms_ptr, t, q, exists, c, False,
                      C, HO, WO, FACTORS, EPS, BLOCK_C, ACC)  # fmt: skip
    at, rows = pointers(out_ptr + node * C, q.to(tl.int64), c, OUT_PITCH), within(h, exists, STRIP, 0, 1, HO)
    for j in tl.static_range(STRIP):
        mask = mask_of(rows[j], c, C, BLOCK_C)
        tl.store(at + j * (WO * OUT_PITCH), total[j].to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def saved_terms(saved_ptr, terms_ptr, t, q, h, exists, c, pixels, C: tl.constexpr, PITCH: tl.constexpr,
                HO: tl.constexpr, WO: tl.constexpr, BLOCK_C: tl.constexpr):  # fmt: skip
    """Strips of TOGETHER terms, as they are saved: all are under way before one is used, in half the registers."""
    v = ()
    for k in tl.static_range(TOGETHER):
        slot = tl.load(terms_ptr + (t + k) * TERM + SLOT)
        at = saved_ptr + slot * (pixels.to(tl.int64) * PITCH)
        v = v + (stored_strip(at, q, h, exists, c, C, PITCH, HO, WO, BLOCK_C),)
    return v


@triton.jit
def mixed(total, v, norms_ptr, weights_ptr, factors_ptr, terms_ptr, t, q, exists, c, NORMALISED: tl.constexpr,
          C: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, FACTORS: tl.constexpr, EPS: tl.constexpr,
          BLOCK_C: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """Strips of a node with those of term t: weighted, and normalised if it has a batch norm."""
    index = tl.load(terms_ptr + t * TERM + WEIGHT)
    weight = op_weight(weights_ptr, index, ACC)
    norm = tl.load(terms_ptr + t * TERM + TERM_NORM)
    mean, scale, shift = norm_of(norms_ptr, norm, c, NORMALISED, C, EPS, BLOCK_C, ACC)
    factor = tl.zeros((q.shape[0],), ACC)
    if FACTORS:
        factor = edge_factor(factors_ptr, index, q, exists, HO * WO, FACTORS, ACC)
    return add_term(total, v, mean, weight * scale, weight * shift, factor, EPS is None, FACTORS)


@triton.jit
def norm_of(norms_ptr, norm, c, NORMALISED: tl.constexpr, C: tl.constexpr, EPS: tl.constexpr, BLOCK_C: tl.constexpr,
            ACC: tl.constexpr):  # fmt: skip
    """Mean, scale and shift of a term; of one without batch norm, as there may be unless NORMALISED, 0, 1 and 0."""
    if NORMALISED:  # no branch, which loads would have to wait for
        mean, scale, shift = batch_norm(norms_ptr, norm, c, C, EPS)
        return mean, scale, tl.zeros((BLOCK_C,), ACC) + shift
    else:
        mean, scale, shift = tl.zeros((BLOCK_C,), ACC), tl.full((BLOCK_C,), 1.0, ACC), tl.zeros((BLOCK_C,), ACC)
        if norm >= 0:
            if EPS is None:
                mean, scale, shift = batch_norm(norms_ptr, norm, c, C, EPS)
            else:
                mean, scale = statistics(norms_ptr, norm, c, C, EPS)
        return mean, scale, shift


@triton.jit
def add_term(total, v, mean, scale, shift, factor, SHIFTED: tl.constexpr, FACTORS: tl.constexpr):
    """Strips of a node with those of a term: (v - mean) * scale + shift, times its images' factors."""
    more = ()
    for j in tl.static_range(STRIP):
        if SHIFTED:
            normalised = (v[j] - mean[None, :]) * scale[None, :] + shift[None, :]
        else:
            normalised = (v[j] - mean[None, :]) * scale[None, :]
        if FACTORS:
            normalised = normalised * factor[:, None]
        more = more + (total[j] + normalised,)
    return more


@triton.jit(do_not_specialize=["node", "terms", "together", "pixels"])
def term_sums_kernel(
    states, out_ptr, saved_ptr, norms_ptr, g_ptr, factors_ptr, terms_ptr, sums_ptr, node, terms, together,
    pixels,
    C: tl.constexpr, PITCH: tl.constexpr, OUT_PITCH: tl.constexpr, STATES: tl.constexpr, HO: tl.constexpr,
    WO: tl.constexpr, FACTORS: tl.constexpr, EPS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """One program sums a tile's g, and g * (t - mean) for every term of the node: sums [tiles, 1 + terms, C].

    The first `together` of the terms, a multiple of TOGETHER, are saved tensors.
    With FACTORS each term has sums of its own, of g times the factors of its edge: sums [tiles, 2 * terms, C].
    """
    q, h, w, exists = blocks(tl.program_id(0), pixels // (HO * WO), STRIP, 1, 1, HO, WO, BLOCK_P // STRIP)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    g = load_strip(g_ptr + node * C, q, h, exists, c, C, OUT_PITCH, HO, WO, BLOCK_C, ACC)
    sums = 2 * terms if FACTORS else 1 + terms
    at = sums_ptr + tl.program_id(0).to(tl.int64) * (sums * C) + c
    zero, none = tl.zeros((BLOCK_P // STRIP, BLOCK_C), ACC), tl.zeros((BLOCK_C,), ACC)
    if FACTORS == 0:
        tl.store(at, tl.sum(products(g, times(zero + 1, STRIP), none), 0), mask=c < C)
    for t in range(0, together, TOGETHER):
        v = saved_terms(saved_ptr, terms_ptr, t, q, h, exists, c, pixels, C, PITCH, HO, WO, BLOCK_C)
        for k in tl.static_range(TOGETHER):
            sum_term(g, converted(v[k], ACC), at, norms_ptr, factors_ptr, terms_ptr, t + k, q, exists, c, True,
                     C, HO, WO, FACTORS, EPS, BLOCK_C, ACC)  # fmt: skip
    for t in range(together, terms):
        v = term(states, out_ptr, saved_ptr, terms_ptr, t, q, h, w, exists, c, pixels, C, PITCH, OUT_PITCH, STATES,
                 HO, WO, BLOCK_C, ACC)  # fmt: skip
        sum_term(g, v, at, norms_ptr, factors_ptr, terms_ptr, t, q, exists, c, False,
                 C, HO, WO, FACTORS, EPS, BLOCK_C, ACC)  # fmt: skip


@triton.jit
def sum_term(g, v, at, norms_ptr, factors_ptr, terms_ptr, t, q, exists, c, NORMALISED: tl.constexpr,
             C: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, FACTORS: tl.constexpr, EPS: tl.constexpr,
             BLOCK_C: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """Sum strips of g * (t - mean) for term t, with FACTORS also of its g, into a tile's sums `at`."""
    g_term, to = g, at + (1 + t) * C
    if FACTORS:
        factor = edge_factor(factors_ptr, tl.load(terms_ptr + t * TERM + WEIGHT), q, exists, HO * WO, FACTORS, ACC)
        g_term = ()
        for j in tl.static_range(STRIP):
            g_term = g_term + (g[j] * factor[:, None],)
        to = at + (2 * t + 1) * C
        one, none = tl.full((q.shape[0], BLOCK_C), 1.0, ACC), tl.zeros((BLOCK_C,), ACC)
        tl.store(to - C, tl.sum(products(g_term, times(one, STRIP), none), 0), mask=c < C)
    mean, _, _ = norm_of(norms_ptr, tl.load(terms_ptr + t * TERM + TERM_NORM), c, NORMALISED, C, EPS, BLOCK_C, ACC)
    tl.store(to, tl.sum(products(g_term, v, mean), 0), mask=c < C)


@triton.jit
def products(g, v, mean):
    """Strips of g * (v - mean), added up."""
    total = g[0] * (v[0] - mean[None, :])
    for j in tl.static_range(1, STRIP):
        total += g[j] * (v[j] - mean[None, :])
    return total


@triton.jit(do_not_specialize=["tiles", "sums", "pixels"])
def finish_sums_kernel(
    sums_ptr, stats_ptr, norms_ptr, weights_ptr, coefficients_ptr, d_weights_ptr, d_affine_ptr, list_ptr, tiles, sums,
    pixels,
    C: tl.constexpr, TRAINING: tl.constexpr, EPS: tl.constexpr, STATS_EPS: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program joins a term's sums: the op weight's gradient and the batch norm's coefficients [norms, 4, C].

    dy = c0 * g + c1 * (y - mean) + c2, which is weight * scale * (g - mean(g) - z * mean(g z)) for normalised y = z;
    the fourth is the mean. Where batch norms learn (EPS is None), also their gradients d_affine [norms, 2, C].
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
            mean, rstd = statistics(stats_ptr, norm, c, C, STATS_EPS)
            if EPS is None:
                _, scale, shift = batch_norm(norms_ptr, norm, c, C, EPS)
                d_weight += sum_gt * scale + sum_g * shift
                learned = d_affine_ptr + norm * (2 * C) + c
                tl.store(learned, weight * rstd * sum_gt, mask=c < C)
                tl.store(learned + C, weight * sum_g, mask=c < C)
                scale = weight * scale
            else:
                d_weight += sum_gt * rstd
                scale = weight * rstd
            to = coefficients_ptr + norm * (4 * C) + c
            share = scale / pixels.to(ACC)
            tl.store(to, scale, mask=c < C)
            tl.store(to + 3 * C, mean, mask=c < C)
            if TRAINING:
                tl.store(to + C, -share * rstd * rstd * sum_gt, mask=c < C)
                tl.store(to + 2 * C, -share * sum_g, mask=c < C)
            else:
                tl.store(to + C, tl.zeros((BLOCK_C,), ACC), mask=c < C)
                tl.store(to + 2 * C, tl.zeros((BLOCK_C,), ACC), mask=c < C)
        else:
            d_weight += sum_gt
    tl.store(d_weights_ptr + index, tl.sum(d_weight, 0), mask=index >= 0)
