"""Forward of all stages that read one state: relu, depthwise, pointwise, moments; and the state's pools."""

import triton
import triton.language as tl

from fastdarts.kernels.parts import (
    column,
    depthwise,
    mask_of,
    neighbour,
    pointwise_weight,
    pooled,
    statistics,
    store_tile,
)
from fastdarts.kernels.tables import AVG, CONV_3, DW, GATHER, GEOMETRY, MAX, PW, X_NORM, X, Y


@triton.jit
def stage_forward_kernel(
    x_ptr, saved_ptr, dw_ptr, pw_ptr, stats_ptr, moments_ptr, rows_ptr, groups_ptr, pixels, tiles,
    C_IN: tl.constexpr, C_OUT: tl.constexpr, X_PITCH: tl.constexpr, PITCH: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr,
    GEOMETRIES: tl.constexpr, NORMALISED: tl.constexpr, TRAINING: tl.constexpr, EPS: tl.constexpr,
    TILES: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_O: tl.constexpr, ACC: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """One program makes TILES tiles of BLOCK_P pixels x BLOCK_O channels of a group's stages' y, and their moments.

    x: the state, or with NORMALISED the first stages' y in `saved`, normalised here. saved: [tensors, pixels, PITCH].
    moments: [rows, tiles, 2 (mean, sum of squares about it), C_OUT].
    """
    group = groups_ptr + tl.program_id(1) * 2
    for row in range(tl.load(group), tl.load(group + 1)):
        for step in range(TILES):
            stage_tile(x_ptr, saved_ptr, dw_ptr, pw_ptr, stats_ptr, moments_ptr, rows_ptr, pixels, tiles, row,
                       tl.program_id(0) * TILES + step, tl.program_id(2), C_IN, C_OUT, X_PITCH, PITCH, H, W, HO, WO,
                       STRIDE, GEOMETRIES, NORMALISED, TRAINING, EPS, BLOCK_P, BLOCK_I, BLOCK_O, ACC, DOT)  # fmt: skip


@triton.jit
def stage_tile(
    x_ptr, saved_ptr, dw_ptr, pw_ptr, stats_ptr, moments_ptr, rows_ptr, pixels, tiles, row, tile, block,
    C_IN: tl.constexpr, C_OUT: tl.constexpr, X_PITCH: tl.constexpr, PITCH: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr,
    GEOMETRIES: tl.constexpr, NORMALISED: tl.constexpr, TRAINING: tl.constexpr, EPS: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_O: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """A tile of a stage."""
    geometry = column(rows_ptr, row, GEOMETRY)
    p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    exists = p < pixels
    h, w = (p // WO) % HO * STRIDE, p % WO * STRIDE
    q = ((p // (HO * WO) * H + h) * W + w).to(tl.int64)
    o = block * BLOCK_O + tl.arange(0, BLOCK_O)
    T = saved_ptr.dtype.element_ty
    y = tl.zeros((BLOCK_P, BLOCK_O), ACC)
    plane = pixels.to(tl.int64) * PITCH
    if (MAX | AVG) & GEOMETRIES:
        if (geometry == MAX) | (geometry == AVG):
            y = pooled(x_ptr, q, h, w, exists, o, geometry, C_IN, H, W, X_PITCH, BLOCK_O, ACC)
    in_ptr = x_ptr
    if NORMALISED:
        in_ptr = saved_ptr + column(rows_ptr, row, X) * plane
    pw = pw_ptr + column(rows_ptr, row, PW)
    if GATHER & GEOMETRIES:
        if geometry == GATHER:
            for i0 in range(0, C_IN, BLOCK_I):
                i = i0 + tl.arange(0, BLOCK_I)
                for part in tl.static_range(STRIDE):
                    v = neighbour(in_ptr, q, h, w, part, part, exists, i, 0.0, 1.0,
                                  C_IN, H, W, X_PITCH, False, BLOCK_I, ACC)  # fmt: skip
                    weight = pointwise_weight(pw, o, i, part, C_IN, C_OUT, STRIDE, T, DOT)
                    y += tl.dot(v.to(T).to(DOT), weight, input_precision="ieee", out_dtype=ACC)
    if CONV_3 <= GEOMETRIES:
        if geometry >= CONV_3:
            for i0 in range(0, C_IN, BLOCK_I):
                i = i0 + tl.arange(0, BLOCK_I)
                mean, rstd = 0.0, 1.0
                if NORMALISED:
                    mean, rstd = statistics(stats_ptr, column(rows_ptr, row, X_NORM), i, C_IN, EPS)
                d = depthwise(geometry, in_ptr, q, h, w, exists, i, mean, rstd, dw_ptr + column(rows_ptr, row, DW),
                              C_IN, H, W, X_PITCH, NORMALISED, BLOCK_I, ACC)  # fmt: skip
                weight = pointwise_weight(pw, o, i, 0, C_IN, C_OUT, 1, T, DOT)
                y += tl.dot(d.to(T).to(DOT), weight, input_precision="ieee", out_dtype=ACC)
    if (geometry != MAX) & (geometry != AVG):
        mask = mask_of(exists, o, C_OUT, BLOCK_O)
        store_tile(saved_ptr + column(rows_ptr, row, Y) * plane, p.to(tl.int64) * PITCH, o, y, mask)
    if TRAINING:
        count = tl.maximum(tl.minimum(pixels - tile * BLOCK_P, BLOCK_P), 1).to(ACC)
        mean = tl.sum(y, 0) / count  # of pixels that do not exist y is 0
        centred = tl.where(exists[:, None], y - mean[None, :], 0.0)
        at = moments_ptr + (row * tiles + tile).to(tl.int64) * (2 * C_OUT) + o
        tl.store(at, mean, mask=(o < C_OUT) & (tile < tiles))
        tl.store(at + C_OUT, tl.sum(centred * centred, 0), mask=(o < C_OUT) & (tile < tiles))


@triton.jit
def join_moments_kernel(moments_ptr, stats_ptr, pairs_ptr, pixels, tiles, C: tl.constexpr, BLOCK_P: tl.constexpr,
                        BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """One program joins the tiles' moments of one batch norm (Chan et al.): pairs (row of moments, batch norm)."""
    row = tl.load(pairs_ptr + tl.program_id(0) * 2)
    norm = tl.load(pairs_ptr + tl.program_id(0) * 2 + 1)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    at = moments_ptr + (row * tiles).to(tl.int64) * (2 * C)
    values = pixels.to(ACC)
    mean = tl.zeros((BLOCK_C,), ACC)
    for t0 in range(0, tiles, BLOCK_T):
        t = t0 + tl.arange(0, BLOCK_T)
        mask = (t < tiles)[:, None] & (c < C)[None, :]
        share = tl.minimum(pixels - t * BLOCK_P, BLOCK_P).to(ACC) / values
        mean += tl.sum(share[:, None] * tl.load(at + t[:, None] * (2 * C) + c[None, :], mask=mask, other=0.0), 0)
    variance = tl.zeros((BLOCK_C,), ACC)
    for t0 in range(0, tiles, BLOCK_T):
        t = t0 + tl.arange(0, BLOCK_T)
        mask = (t < tiles)[:, None] & (c < C)[None, :]
        share = tl.minimum(pixels - t * BLOCK_P, BLOCK_P).to(ACC) / values
        here = at + t[:, None] * (2 * C) + c[None, :]
        delta = tl.load(here, mask=mask, other=0.0) - mean[None, :]
        squares = tl.load(here + C, mask=mask, other=0.0) / values
        variance += tl.sum(tl.where(mask, squares + share[:, None] * delta * delta, 0.0), 0)
    tl.store(stats_ptr + norm * (2 * C) + c, mean, mask=c < C)
    tl.store(stats_ptr + norm * (2 * C) + C + c, variance, mask=c < C)
