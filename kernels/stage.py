"""Forward of all stages that read one state: relu, depthwise, pointwise, moments; and the state's pools."""

import triton
import triton.language as tl

from fastdarts.kernels.parts import (
    column,
    load_tile,
    mask_of,
    neighbour,
    pixels_of,
    pointwise_weight,
    pooled,
    share,
    state_of,
    statistics,
    store_tile,
)
from fastdarts.kernels.tables import AVG, CONV_3, DW, GATHER, GEOMETRY, MAX, PIXEL, PW, X_NORM, X, Y
from fastdarts.kernels.windows import depthwise


@triton.jit(do_not_specialize=["pixels"])
def stage_forward_kernel(
    states, saved_ptr, d_ptr, dw_ptr, pw_ptr, norms_ptr, moments_ptr, rows_ptr, groups_ptr, pixels,
    C_IN: tl.constexpr, C_OUT: tl.constexpr, X_PITCH: tl.constexpr, PITCH: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr,
    GEOMETRIES: tl.constexpr, NORMALISED: tl.constexpr, TRAINING: tl.constexpr,
    EPS: tl.constexpr, IMAGES: tl.constexpr, BLOCK_P: tl.constexpr, BLOCKS: tl.constexpr, BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """One program makes BLOCK_O channels of a group's stages' y for IMAGES images, and their moments.

    A stage reads one of the states, or with NORMALISED a first stage's y in `saved`, normalised here.
    saved: [tensors, pixels, PITCH].
    A convolution first leaves its depthwise output d where y will stand; where several programs share the channels of
    y, each in scratch of its own, d [blocks of channels, groups, pixels, PITCH].
    moments: [rows, tiles of all programs, 2 (mean, sum of squares about it), C_OUT].
    """
    TILES: tl.constexpr = (IMAGES * HO * WO + BLOCK_P - 1) // BLOCK_P
    part = tl.program_id(0)
    begin, count = share(pixels, IMAGES, HO, WO)
    plane = pixels.to(tl.int64) * PITCH
    out_ptr = saved_ptr + begin * PITCH
    d_ptr += ((tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)) * pixels.to(tl.int64) + begin) * PITCH
    o = tl.program_id(2) * BLOCK_O + tl.arange(0, BLOCK_O)
    group = groups_ptr + tl.program_id(1) * 2
    for row in tl.range(tl.load(group), tl.load(group + 1), disable_licm=CONV_3 <= GEOMETRIES):
        if NORMALISED:
            in_ptr = out_ptr + column(rows_ptr, row, X) * plane
        else:
            in_ptr = state_of(states, rows_ptr, row) + part.to(tl.int64) * (IMAGES * H * W * X_PITCH)
        geometry = column(rows_ptr, row, GEOMETRY)
        y_ptr = out_ptr + column(rows_ptr, row, Y) * plane
        here_ptr = y_ptr
        if C_OUT > BLOCK_O:
            here_ptr = d_ptr
        if CONV_3 <= GEOMETRIES:
            if geometry >= CONV_3:
                for first in range(0, C_IN, BLOCK_I):
                    depthwise(geometry, in_ptr, here_ptr, dw_ptr + column(rows_ptr, row, DW) * C_IN, norms_ptr,
                              column(rows_ptr, row, X_NORM), count // (HO * WO), first, C_IN, H, W, HO, WO, STRIDE,
                              X_PITCH, PITCH, GEOMETRIES, NORMALISED, False, EPS, BLOCKS, BLOCK_I, ACC)  # fmt: skip
                tl.debug_barrier()
        for step in tl.range(TILES, disable_licm=CONV_3 <= GEOMETRIES):
            p, exists, q, h, w = pixels_of(step, count, H, W, HO, WO, STRIDE, BLOCK_P)
            y = stage_output(in_ptr, here_ptr, pw_ptr, rows_ptr, row, geometry, p, q, h, w, exists, o,
                             C_IN, C_OUT, X_PITCH, PITCH, H, W, STRIDE, GEOMETRIES, BLOCK_I, BLOCK_O, ACC,
                             DOT, saved_ptr.dtype.element_ty)  # fmt: skip
            if (geometry != MAX) & (geometry != AVG):
                if CONV_3 <= GEOMETRIES:
                    tl.debug_barrier()  # y overwrites d, which all threads have read by now
                store_tile(y_ptr, p * PITCH, o, y, mask_of(exists, o, C_OUT, BLOCK_O))
            if TRAINING:
                values = tl.maximum(tl.minimum(count - step * BLOCK_P, BLOCK_P), 1).to(ACC)
                mean = tl.sum(y, 0) / values  # of pixels that do not exist y is 0
                centred = tl.where(exists[:, None], y - mean[None, :], 0.0)
                mean += tl.sum(centred, 0) / values  # equal values now have themselves for a mean
                tile = row * (tl.num_programs(0) * TILES) + part * TILES + step
                at = moments_ptr + tile.to(tl.int64) * (2 * C_OUT) + o
                tl.store(at, mean, mask=o < C_OUT)
                tl.store(at + C_OUT, tl.sum(centred * centred, 0), mask=o < C_OUT)


@triton.jit
def stage_output(
    in_ptr, d_ptr, pw_ptr, rows_ptr, row, geometry, p, q, h, w, exists, o,
    C_IN: tl.constexpr, C_OUT: tl.constexpr, X_PITCH: tl.constexpr, PITCH: tl.constexpr, H: tl.constexpr,
    W: tl.constexpr, STRIDE: tl.constexpr, GEOMETRIES: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_O: tl.constexpr,
    ACC: tl.constexpr, DOT: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """A tile of a stage's y, rounded as stored, so that its statistics are those of what will be normalised; 0 where
    there is no pixel.
    """
    y = tl.zeros((q.shape[0], BLOCK_O), ACC)
    if (MAX | AVG) & GEOMETRIES:
        if (geometry == MAX) | (geometry == AVG):
            y = pooled(in_ptr, q, h, w, exists, o, geometry, C_IN, H, W, X_PITCH, BLOCK_O, ACC)
    pw_ptr += column(rows_ptr, row, PW) * (C_IN * C_OUT)
    if (PIXEL | GATHER) & GEOMETRIES:
        if (geometry == PIXEL) | (geometry == GATHER):
            PARTS: tl.constexpr = STRIDE if GATHER & GEOMETRIES else 1
            for i0 in range(0, C_IN, BLOCK_I):
                i = i0 + tl.arange(0, BLOCK_I)
                for part in tl.static_range(PARTS):
                    here = exists & ((part == 0) | (geometry == GATHER))  # else the pixel that a reduction sees too
                    v = neighbour(in_ptr, q, h, w, part, part, here, i, 1.0, 0.0,
                                  C_IN, H, W, X_PITCH, False, True, BLOCK_I, ACC)  # fmt: skip
                    weight = pointwise_weight(pw_ptr, o, i, part, geometry == PIXEL, C_IN, C_OUT, PARTS, T, DOT)
                    y += tl.dot(v.to(T).to(DOT), weight, input_precision="ieee", out_dtype=ACC)
            y = y.to(T).to(ACC)
    if CONV_3 <= GEOMETRIES:
        if geometry >= CONV_3:
            for i0 in range(0, C_IN, BLOCK_I):
                i = i0 + tl.arange(0, BLOCK_I)
                d = load_tile(d_ptr, p * PITCH, i, mask_of(exists, i, C_IN, BLOCK_I), ACC)
                weight = pointwise_weight(pw_ptr, o, i, 0, True, C_IN, C_OUT, 1, T, DOT)
                y += tl.dot(d.to(T).to(DOT), weight, input_precision="ieee", out_dtype=ACC)
            y = y.to(T).to(ACC)
    return y


@triton.jit(do_not_specialize=["pixels", "tiles"])
def join_moments_kernel(moments_ptr, stats_ptr, pairs_ptr, pixels, tiles, C: tl.constexpr, CHUNK: tl.constexpr,
                        BLOCK_P: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
                        ACC: tl.constexpr):  # fmt: skip
    """One program joins the tiles' moments of one batch norm (Chan et al.): pairs (row of moments, batch norm).

    CHUNK: pixels of the programs that made them, each in tiles of BLOCK_P.
    """
    row = tl.load(pairs_ptr + tl.program_id(0) * 2)
    norm = tl.load(pairs_ptr + tl.program_id(0) * 2 + 1)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    at = moments_ptr + (row * tiles).to(tl.int64) * (2 * C)
    first = tl.load(at + c, mask=c < C, other=0.0)
    more = tl.zeros((BLOCK_C,), ACC)  # than the first tile's: shares of equal means need not add up to one
    for t0 in range(0, tiles, BLOCK_T):
        t = t0 + tl.arange(0, BLOCK_T)
        mask = (t < tiles)[:, None] & (c < C)[None, :]
        share = tile_share(t, pixels, CHUNK, BLOCK_P, ACC)
        delta = tl.load(at + t[:, None] * (2 * C) + c[None, :], mask=mask, other=0.0) - first[None, :]
        more += tl.sum(share[:, None] * delta, 0)
    mean = first + more
    variance = tl.zeros((BLOCK_C,), ACC)
    for t0 in range(0, tiles, BLOCK_T):
        t = t0 + tl.arange(0, BLOCK_T)
        mask = (t < tiles)[:, None] & (c < C)[None, :]
        share = tile_share(t, pixels, CHUNK, BLOCK_P, ACC)
        here = at + t[:, None] * (2 * C) + c[None, :]
        delta = tl.load(here, mask=mask, other=0.0) - mean[None, :]
        squares = tl.load(here + C, mask=mask, other=0.0) / pixels.to(ACC)
        variance += tl.sum(tl.where(mask, squares + share[:, None] * delta * delta, 0.0), 0)
    tl.store(stats_ptr + norm * (2 * C) + c, mean, mask=c < C)
    tl.store(stats_ptr + norm * (2 * C) + C + c, variance, mask=c < C)


@triton.jit
def learned_norms_kernel(stats_ptr, affine_ptr, norms_ptr, pairs_ptr, C: tl.constexpr, EPS: tl.constexpr,
                         BLOCK_C: tl.constexpr):  # fmt: skip
    """One program makes mean, scale and shift [norms, 3, C] of one batch norm from its statistics, weight and bias."""
    norm = tl.load(pairs_ptr + tl.program_id(0) * 2 + 1)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mean, rstd = statistics(stats_ptr, norm, c, C, EPS)
    at, to = affine_ptr + norm * (2 * C) + c, norms_ptr + norm * (3 * C) + c
    tl.store(to, mean, mask=c < C)
    tl.store(to + C, rstd * tl.load(at, mask=c < C, other=0.0), mask=c < C)
    tl.store(to + 2 * C, tl.load(at + C, mask=c < C, other=0.0), mask=c < C)


@triton.jit
def tile_share(t, pixels, CHUNK: tl.constexpr, BLOCK_P: tl.constexpr, ACC: tl.constexpr):
    """A tile's share of all pixels."""
    TILES: tl.constexpr = (CHUNK + BLOCK_P - 1) // BLOCK_P
    before = t % TILES * BLOCK_P
    values = tl.minimum(tl.minimum(pixels - t // TILES * CHUNK, CHUNK) - before, BLOCK_P)
    return tl.maximum(values, 0).to(ACC) / pixels.to(ACC)
