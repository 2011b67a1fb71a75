"""Backward of stages: through batch norm and the pointwise product (dd, dW), then through the depthwise convolution."""

import triton
import triton.language as tl

from fastdarts.kernels.mix import op_weight
from fastdarts.kernels.parts import (
    column,
    depthwise,
    load_tile,
    mask_of,
    neighbour,
    pointwise_weight,
    pooled,
    relu,
    statistics,
    store_tile,
    window,
)
from fastdarts.kernels.tables import (
    AVG,
    CONV_3,
    DD,
    DW,
    DZ,
    EDGE_NODE,
    EDGE_NORM,
    EDGE_OWN,
    EDGE_WEIGHT,
    EDGES,
    FIRST_EDGE,
    GATHER,
    GEOMETRY,
    MAX,
    NARROW,
    NODE,
    NORM,
    OWN,
    PW,
    X_NORM,
    X,
    Y,
)


@triton.jit
def node_gradient(grad_ptr, own_ptr, node, own, p, c, mask, C: tl.constexpr, PITCH: tl.constexpr, ACC: tl.constexpr):
    """A node's gradient: as it came, or what its own banks have added to that."""
    at = p * PITCH + node * C
    if own != 0:
        g = load_tile(own_ptr, at, c, mask, ACC)
    else:
        g = load_tile(grad_ptr, at, c, mask, ACC)
    return g


@triton.jit
def norm_backward(g, y, coefficients_ptr, stats_ptr, norm, c, mask, C: tl.constexpr, ACC: tl.constexpr):
    """The gradient before a batch norm from the one behind it."""
    at = coefficients_ptr + norm * (3 * C) + c
    from_g = tl.load(at, mask=c < C, other=0.0)
    from_y = tl.load(at + C, mask=c < C, other=0.0)
    offset = tl.load(at + 2 * C, mask=c < C, other=0.0)
    mean = tl.load(stats_ptr + norm * (2 * C) + c, mask=c < C, other=0.0)
    dy = from_g[None, :] * g + (from_y[None, :] * (y - mean[None, :]) + offset[None, :])
    return tl.where(mask, dy, 0.0)


@triton.jit
def incoming(rows_ptr, row, grad_ptr, own_ptr, dz_ptr, p, o, mask, plane, C: tl.constexpr, PITCH: tl.constexpr,
             G_PITCH: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """The gradient behind a stage: its node's, or for the first stage of a separable convolution dz."""
    node = column(rows_ptr, row, NODE)
    if node >= 0:
        g = node_gradient(grad_ptr, own_ptr, node, column(rows_ptr, row, OWN), p, o, mask, C, G_PITCH, ACC)
    else:
        g = load_tile(dz_ptr + column(rows_ptr, row, DZ) * plane, p * PITCH, o, mask, ACC)
    return g


@triton.jit
def stage_gradient(rows_ptr, row, grad_ptr, own_ptr, dz_ptr, saved_ptr, coefficients_ptr, stats_ptr, p, exists, o,
                   pixels, C: tl.constexpr, PITCH: tl.constexpr, G_PITCH: tl.constexpr, BLOCK: tl.constexpr,
                   ACC: tl.constexpr):  # fmt: skip
    """dy of a stage, from the y that was saved."""
    mask = mask_of(exists, o, C, BLOCK)
    plane = pixels.to(tl.int64) * PITCH
    g = incoming(rows_ptr, row, grad_ptr, own_ptr, dz_ptr, p, o, mask, plane, C, PITCH, G_PITCH, ACC)
    y = load_tile(saved_ptr + column(rows_ptr, row, Y) * plane, p * PITCH, o, mask, ACC)
    return norm_backward(g, y, coefficients_ptr, stats_ptr, column(rows_ptr, row, NORM), o, mask, C, ACC)


@triton.jit
def stage_backward_kernel(
    x_ptr, grad_ptr, own_ptr, saved_ptr, dz_ptr, dd_ptr, largest_ptr, dw_ptr, pw_ptr, stats_ptr, coefficients_ptr,
    d_pw_ptr, rows_ptr, groups_ptr, edges_ptr, pixels, pw_size,
    C_IN: tl.constexpr, C_OUT: tl.constexpr, X_PITCH: tl.constexpr, PITCH: tl.constexpr, DD_PITCH: tl.constexpr,
    G_PITCH: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr,
    GEOMETRIES: tl.constexpr, NORMALISED: tl.constexpr, NEED_PARAMS: tl.constexpr, EPS: tl.constexpr,
    TILES: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_O: tl.constexpr, ACC: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """One program takes BLOCK_I inputs x BLOCK_O outputs of a group's stages over TILES tiles:
    dd = dy W and its share of dW.

    dW = dy' d, with d computed again. Only programs of the first outputs write dd. d_pw: [parts, pw_size]. Pools: dd is
    the gradient of the pooled values (of a mean's pixels), largest the place of the maximum in its window, 0 to 8.
    """
    part = tl.program_id(0)
    group = groups_ptr + tl.program_id(1) * 2
    blocks_o: tl.constexpr = (C_OUT + BLOCK_O - 1) // BLOCK_O
    i = tl.program_id(2) // blocks_o * BLOCK_I + tl.arange(0, BLOCK_I)
    o_block = tl.program_id(2) % blocks_o
    o = o_block * BLOCK_O + tl.arange(0, BLOCK_O)
    T = saved_ptr.dtype.element_ty
    plane = pixels.to(tl.int64) * PITCH
    dd_plane = pixels.to(tl.int64) * DD_PITCH
    for row in range(tl.load(group), tl.load(group + 1)):
        geometry = column(rows_ptr, row, GEOMETRY)
        in_ptr = x_ptr
        if NORMALISED:
            in_ptr = saved_ptr + column(rows_ptr, row, X) * plane
        pw = pw_ptr + column(rows_ptr, row, PW)
        dd_out = dd_ptr + column(rows_ptr, row, DD) * dd_plane
        d_pw = tl.zeros((BLOCK_O, BLOCK_I), ACC)
        if (MAX | AVG) & GEOMETRIES:  # a loop over tiles for each kind: one for all takes more registers
            if ((geometry == MAX) | (geometry == AVG)) & (o_block == 0):
                for step in range(TILES):
                    p, exists, q, h, w = pixels_of(part * TILES + step, pixels, H, W, HO, WO, STRIDE, BLOCK_P)
                    pool_gradient(x_ptr, grad_ptr, own_ptr, dd_out, largest_ptr, stats_ptr, coefficients_ptr, rows_ptr,
                                  edges_ptr, row, geometry, p, q, h, w, exists, i,
                                  C_IN, H, W, X_PITCH, PITCH, G_PITCH, BLOCK_I, ACC)  # fmt: skip
        if GATHER & GEOMETRIES:
            if geometry == GATHER:
                for step in range(TILES):
                    p, exists, q, h, w = pixels_of(part * TILES + step, pixels, H, W, HO, WO, STRIDE, BLOCK_P)
                    dy = stage_gradient(rows_ptr, row, grad_ptr, own_ptr, dz_ptr, saved_ptr, coefficients_ptr,
                                        stats_ptr, p, exists, o, pixels, C_OUT, PITCH, G_PITCH, BLOCK_O,
                                        ACC)  # fmt: skip
                    for half in range(STRIDE):
                        if NEED_PARAMS:
                            d = neighbour(in_ptr, q, h, w, half, half, exists, i, 0.0, 1.0,
                                          C_IN, H, W, X_PITCH, False, BLOCK_I, ACC)  # fmt: skip
                            mine = tl.where((o * STRIDE // C_OUT == half)[None, :], dy, 0.0)
                            d_pw += tl.dot(
                                tl.trans(mine.to(T).to(DOT)), d.to(T).to(DOT), input_precision="ieee", out_dtype=ACC
                            )
                        if o_block == 0:
                            dd = product(rows_ptr, row, grad_ptr, own_ptr, dz_ptr, saved_ptr, coefficients_ptr,
                                         stats_ptr, pw, dy, p, exists, i, half, pixels, C_IN, C_OUT, PITCH, G_PITCH,
                                         STRIDE, BLOCK_O, ACC, DOT)  # fmt: skip
                            store_tile(dd_out + half * dd_plane, p * DD_PITCH, i, dd, mask_of(exists, i, C_IN, BLOCK_I))
        if CONV_3 <= GEOMETRIES:
            if geometry >= CONV_3:
                for step in range(TILES):
                    p, exists, q, h, w = pixels_of(part * TILES + step, pixels, H, W, HO, WO, STRIDE, BLOCK_P)
                    if NEED_PARAMS:
                        mean, rstd = 0.0, 1.0
                        if NORMALISED:
                            mean, rstd = statistics(stats_ptr, column(rows_ptr, row, X_NORM), i, C_IN, EPS)
                        d = depthwise(geometry, in_ptr, q, h, w, exists, i, mean, rstd,
                                      dw_ptr + column(rows_ptr, row, DW), C_IN, H, W, X_PITCH, NORMALISED, BLOCK_I,
                                      ACC).to(T).to(DOT)  # fmt: skip
                    if NEED_PARAMS and C_IN <= BLOCK_I and C_OUT <= BLOCK_O:  # y = W d costs less than reading it back
                        mask = mask_of(exists, o, C_OUT, BLOCK_O)
                        g = incoming(rows_ptr, row, grad_ptr, own_ptr, dz_ptr, p, o, mask, plane, C_OUT, PITCH, G_PITCH,
                                     ACC)  # fmt: skip
                        weight = pointwise_weight(pw, o, i, 0, C_IN, C_OUT, 1, T, DOT)
                        y = tl.dot(d, weight, input_precision="ieee", out_dtype=ACC)
                        dy = norm_backward(g, y, coefficients_ptr, stats_ptr, column(rows_ptr, row, NORM), o, mask,
                                           C_OUT, ACC)  # fmt: skip
                    else:
                        dy = stage_gradient(rows_ptr, row, grad_ptr, own_ptr, dz_ptr, saved_ptr, coefficients_ptr,
                                            stats_ptr, p, exists, o, pixels, C_OUT, PITCH, G_PITCH, BLOCK_O,
                                            ACC)  # fmt: skip
                    if NEED_PARAMS:
                        d_pw += tl.dot(tl.trans(dy.to(T).to(DOT)), d, input_precision="ieee", out_dtype=ACC)
                    if o_block == 0:
                        dd = product(rows_ptr, row, grad_ptr, own_ptr, dz_ptr, saved_ptr, coefficients_ptr, stats_ptr,
                                     pw, dy, p, exists, i, 0, pixels, C_IN, C_OUT, PITCH, G_PITCH, 1, BLOCK_O, ACC,
                                     DOT)  # fmt: skip
                        store_tile(dd_out, p * DD_PITCH, i, dd, mask_of(exists, i, C_IN, BLOCK_I))
        if NEED_PARAMS:
            if (geometry == GATHER) | (geometry >= CONV_3):
                at = d_pw_ptr + part.to(tl.int64) * pw_size + column(rows_ptr, row, PW)
                tl.store(at + o[:, None] * C_IN + i[None, :], d_pw, mask=(o < C_OUT)[:, None] & (i < C_IN)[None, :])


@triton.jit
def pixels_of(tile, pixels, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr,
              BLOCK_P: tl.constexpr):  # fmt: skip
    """Output pixels p of a tile, whether they exist, and the input pixels q, at (h, w), amid their windows."""
    p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    h, w = (p // WO) % HO * STRIDE, p % WO * STRIDE
    q = ((p // (HO * WO) * H + h) * W + w).to(tl.int64)
    return p.to(tl.int64), p < pixels, q, h, w


@triton.jit
def product(rows_ptr, row, grad_ptr, own_ptr, dz_ptr, saved_ptr, coefficients_ptr, stats_ptr, pw_ptr, dy, p, exists,
            i, half, pixels, C_IN: tl.constexpr, C_OUT: tl.constexpr, PITCH: tl.constexpr, G_PITCH: tl.constexpr,
            PARTS: tl.constexpr, BLOCK_O: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr):  # fmt: skip
    """dd = dy W for inputs i over all outputs, of which dy are the first."""
    T = saved_ptr.dtype.element_ty
    dd = tl.zeros((p.shape[0], i.shape[0]), ACC)
    for o0 in tl.static_range(0, C_OUT, BLOCK_O):
        o = o0 + tl.arange(0, BLOCK_O)
        if o0 > 0:
            dy = stage_gradient(rows_ptr, row, grad_ptr, own_ptr, dz_ptr, saved_ptr, coefficients_ptr, stats_ptr, p,
                                exists, o, pixels, C_OUT, PITCH, G_PITCH, BLOCK_O, ACC)  # fmt: skip
        weight = pointwise_weight(pw_ptr, o, i, half, C_IN, C_OUT, PARTS, T, DOT)
        dd += tl.dot(dy.to(T).to(DOT), tl.trans(weight), input_precision="ieee", out_dtype=ACC)
    return dd


@triton.jit
def pool_gradient(x_ptr, grad_ptr, own_ptr, dd_ptr, largest_ptr, stats_ptr, coefficients_ptr, rows_ptr,
                  edges_ptr, row, geometry, p, q, h, w, exists, c, C: tl.constexpr, H: tl.constexpr,
                  W: tl.constexpr, X_PITCH: tl.constexpr, PITCH: tl.constexpr, G_PITCH: tl.constexpr,
                  BLOCK: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """What all edges that use a pool give to its values, and where in its window a maximum stood first."""
    mask = mask_of(exists, c, C, BLOCK)
    y = pooled(x_ptr, q, h, w, exists, c, geometry, C, H, W, X_PITCH, BLOCK, ACC)
    d = tl.zeros((p.shape[0], BLOCK), ACC)
    first = column(rows_ptr, row, FIRST_EDGE)
    for e in range(first, first + column(rows_ptr, row, EDGES)):
        edge = edges_ptr + e * NARROW
        g = node_gradient(
            grad_ptr, own_ptr, tl.load(edge + EDGE_NODE), tl.load(edge + EDGE_OWN), p, c, mask, C, G_PITCH, ACC
        )
        d += norm_backward(g, y, coefficients_ptr, stats_ptr, tl.load(edge + EDGE_NORM), c, mask, C, ACC)
    if geometry == MAX:
        best = tl.full((p.shape[0], BLOCK), float("-inf"), ACC)
        place = tl.full((p.shape[0], BLOCK), -1, tl.int32)
        for dy in range(-1, 2):
            for dx in range(-1, 2):
                inside = exists & (h + dy >= 0) & (h + dy < H) & (w + dx >= 0) & (w + dx < W)
                v = load_tile(x_ptr, (q + (dy * W + dx)) * X_PITCH, c, mask_of(inside, c, C, BLOCK), ACC)
                better = inside[:, None] & ((v > best) | (v != v) | (place < 0))
                best = tl.where(better, v, best)
                place = tl.where(better, (dy + 1) * 3 + dx + 1, place)
        store_tile(largest_ptr, p * PITCH, c, place, mask)
    else:
        rows = tl.minimum(h + 2, H) - tl.maximum(h - 1, 0)
        columns = tl.minimum(w + 2, W) - tl.maximum(w - 1, 0)
        d = d / (rows * columns).to(ACC)[:, None]
    store_tile(dd_ptr, p * PITCH, c, d, mask)


@triton.jit
def depthwise_backward(geometry, dd_ptr, dw_ptr, d_dw_ptr, step, source, image, h, w, exists, c, C: tl.constexpr,
                       HO: tl.constexpr, WO: tl.constexpr, PITCH: tl.constexpr, BLOCK_C: tl.constexpr,
                       ACC: tl.constexpr, NEED_X: tl.constexpr, NEED_PARAMS: tl.constexpr,
                       S: tl.constexpr):  # fmt: skip
    """A depthwise convolution backwards at input pixels (image, h, w); adds the tile's sums for its weights to d_dw.

    Before step 0 there is nothing to add to.
    """
    K, D = window(geometry)
    d = tl.zeros((h.shape[0], BLOCK_C), ACC)
    for ky in range(K):
        for kx in range(K):
            up, left = (
                h - (ky - K // 2) * D,
                w - (kx - K // 2) * D,
            )  # S times the output pixel that tap has seen this one
            inside = exists & (up >= 0) & (up < HO * S) & (left >= 0) & (left < WO * S)
            if S > 1:
                inside = inside & (up % S == 0) & (left % S == 0)
            r = (image * HO + up // S).to(tl.int64) * WO + left // S
            v = load_tile(dd_ptr, r * PITCH, c, mask_of(inside, c, C, BLOCK_C), ACC)
            if NEED_X:
                weight = tl.load(dw_ptr + c * (K * K) + (ky * K + kx), mask=c < C, other=0.0)
                d += v * weight[None, :]
            if NEED_PARAMS:
                to = d_dw_ptr + (ky * K + kx) * C + c
                before = tl.load(to, mask=(c < C) & (step > 0), other=0.0)
                tl.store(to, before + tl.sum(v * source, 0), mask=c < C)
    return d


@triton.jit
def middle_backward_kernel(
    saved_ptr, dd_ptr, dz_ptr, dw_ptr, d_dw_ptr, stats_ptr, sums_ptr, rows_ptr, pixels, rows, tiles,
    dw_size,
    C: tl.constexpr, PITCH: tl.constexpr, DD_PITCH: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr,
    GEOMETRIES: tl.constexpr, NEED_PARAMS: tl.constexpr, EPS: tl.constexpr, TILES: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program makes TILES tiles of dz, the gradient in the middle of a separable convolution.

    Leaves each tile's sums of dz and dz * (y - mean) of the first stage in sums [tiles, 2 * rows, C], and its share of
    the depthwise weights' gradients in d_dw [programs, dw_size], each [taps, C].
    """
    d_dw_ptr += tl.program_id(0).to(tl.int64) * dw_size
    for step in range(TILES):
        middle_backward_tile(saved_ptr, dd_ptr, dz_ptr, dw_ptr, d_dw_ptr, stats_ptr, sums_ptr, rows_ptr, pixels, rows,
                             tiles, tl.program_id(0) * TILES + step, step, tl.program_id(1), tl.program_id(2), C, PITCH,
                             DD_PITCH, HO, WO, GEOMETRIES, NEED_PARAMS, EPS, BLOCK_P, BLOCK_C, ACC)  # fmt: skip
        tl.debug_barrier()  # the next step adds to what this one has written


@triton.jit
def middle_backward_tile(
    saved_ptr, dd_ptr, dz_ptr, dw_ptr, d_dw_ptr, stats_ptr, sums_ptr, rows_ptr, pixels, rows, tiles, tile, step, row,
    block,
    C: tl.constexpr, PITCH: tl.constexpr, DD_PITCH: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr,
    GEOMETRIES: tl.constexpr, NEED_PARAMS: tl.constexpr, EPS: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A tile of dz."""
    p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = p < pixels
    mask = mask_of(exists, c, C, BLOCK_C)
    plane = pixels.to(tl.int64) * PITCH
    at = p.to(tl.int64) * PITCH
    mean, rstd = statistics(stats_ptr, column(rows_ptr, row, X_NORM), c, C, EPS)
    centred = load_tile(saved_ptr + column(rows_ptr, row, X) * plane, at, c, mask, ACC) - mean[None, :]
    source = tl.where(mask, relu(centred * rstd[None, :]), 0.0)
    dw = column(rows_ptr, row, DW)
    dz = depthwise_backward(
        column(rows_ptr, row, GEOMETRY), dd_ptr + column(rows_ptr, row, DD) * (pixels.to(tl.int64) * DD_PITCH),
        dw_ptr + dw, d_dw_ptr + dw, step, source, p // (HO * WO), (p // WO) % HO, p % WO,
        exists, c, C, HO, WO, DD_PITCH, BLOCK_C, ACC, True, NEED_PARAMS, 1,
    )  # fmt: skip
    dz = tl.where(mask & (source > 0), dz, 0.0)
    store_tile(dz_ptr + column(rows_ptr, row, DZ) * plane, at, c, dz, mask)
    to = sums_ptr + (tile.to(tl.int64) * (2 * rows) + 2 * row) * C + c
    tl.store(to, tl.sum(dz, 0), mask=(c < C) & (tile < tiles))
    tl.store(to + C, tl.sum(tl.where(mask, dz * centred, 0.0), 0), mask=(c < C) & (tile < tiles))


@triton.jit
def state_backward_kernel(
    x_ptr, grad_ptr, own_ptr, before_ptr, dx_ptr, dd_ptr, largest_ptr, dw_ptr, d_dw_ptr, weights_ptr, rows_ptr,
    skips_ptr, pixels, convolutions, pools, skips, out_pixels, dw_size,
    C: tl.constexpr, X_PITCH: tl.constexpr, G_PITCH: tl.constexpr, BEFORE_PITCH: tl.constexpr, DX_PITCH: tl.constexpr,
    DD_PITCH: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr,
    GEOMETRIES: tl.constexpr, HAS_BEFORE: tl.constexpr, NEED_X: tl.constexpr, TILES: tl.constexpr,
    NEED_PARAMS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program makes TILES tiles of a state's whole gradient: every branch, pool and skip connection that leaves it.

    Leaves its share of the depthwise weights' gradients in d_dw [programs, dw_size].
    """
    d_dw_ptr += tl.program_id(0).to(tl.int64) * dw_size
    for step in range(TILES):
        state_backward_tile(x_ptr, grad_ptr, own_ptr, before_ptr, dx_ptr, dd_ptr, largest_ptr, dw_ptr, d_dw_ptr,
                            weights_ptr, rows_ptr, skips_ptr, pixels, convolutions, pools, skips, out_pixels,
                            tl.program_id(0) * TILES + step, step, tl.program_id(1), C, X_PITCH, G_PITCH, BEFORE_PITCH,
                            DX_PITCH, DD_PITCH, H, W, HO, WO, STRIDE, GEOMETRIES, HAS_BEFORE, NEED_X, NEED_PARAMS,
                            BLOCK_P, BLOCK_C, ACC)  # fmt: skip
        tl.debug_barrier()  # the next step adds to what this one has written


@triton.jit
def state_backward_tile(
    x_ptr, grad_ptr, own_ptr, before_ptr, dx_ptr, dd_ptr, largest_ptr, dw_ptr, d_dw_ptr, weights_ptr, rows_ptr,
    skips_ptr, pixels, convolutions, pools, skips, out_pixels, tile, step, block,
    C: tl.constexpr, X_PITCH: tl.constexpr, G_PITCH: tl.constexpr, BEFORE_PITCH: tl.constexpr, DX_PITCH: tl.constexpr,
    DD_PITCH: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr,
    GEOMETRIES: tl.constexpr, HAS_BEFORE: tl.constexpr, NEED_X: tl.constexpr,
    NEED_PARAMS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A tile of a state's gradient."""
    p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = p < pixels
    mask = mask_of(exists, c, C, BLOCK_C)
    image, h, w = p // (H * W), (p // W) % H, p % W
    p = p.to(tl.int64)
    dd_plane = out_pixels.to(tl.int64) * DD_PITCH
    x = load_tile(x_ptr, p * X_PITCH, c, mask, ACC)
    source = relu(x)
    dx = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    for row in range(convolutions):
        geometry = column(rows_ptr, row, GEOMETRY)
        dd = dd_ptr + column(rows_ptr, row, DD) * dd_plane
        if GATHER & GEOMETRIES:
            if NEED_X:
                if geometry == GATHER:
                    for half in tl.static_range(STRIDE):
                        inside = exists & (h % STRIDE == half) & (w % STRIDE == half)
                        r = (image * HO + h // STRIDE).to(tl.int64) * WO + w // STRIDE
                        dx += load_tile(dd + half * dd_plane, r * DD_PITCH, c, mask_of(inside, c, C, BLOCK_C), ACC)
        if CONV_3 <= GEOMETRIES:
            if geometry >= CONV_3:
                dw = column(rows_ptr, row, DW)
                dx += depthwise_backward(
                    geometry, dd, dw_ptr + dw, d_dw_ptr + dw, step, source, image, h, w,
                    exists, c, C, HO, WO, DD_PITCH, BLOCK_C, ACC, NEED_X, NEED_PARAMS, STRIDE,
                )  # fmt: skip
    if NEED_X:
        dx = tl.where(x > 0, dx, 0.0)
        for row in range(convolutions, convolutions + pools):
            geometry = column(rows_ptr, row, GEOMETRY)
            dd = dd_ptr + column(rows_ptr, row, DD) * dd_plane
            for dy in range(-1, 2):
                for dx_ in range(-1, 2):
                    up, left = h - dy, w - dx_
                    inside = exists & (up >= 0) & (up < HO * STRIDE) & (left >= 0) & (left < WO * STRIDE)
                    if STRIDE > 1:
                        inside = inside & (up % STRIDE == 0) & (left % STRIDE == 0)
                    r = ((image * HO + up // STRIDE).to(tl.int64) * WO + left // STRIDE) * DD_PITCH
                    within = mask_of(inside, c, C, BLOCK_C)
                    v = load_tile(dd, r, c, within, ACC)
                    if geometry == MAX:
                        place = tl.load(largest_ptr + r[:, None] + c[None, :], mask=within, other=-1).to(tl.int32)
                        v = tl.where(place == (dy + 1) * 3 + dx_ + 1, v, 0.0)
                    dx += v
        for e in range(skips):
            edge = skips_ptr + e * NARROW
            node, own = tl.load(edge + EDGE_NODE), tl.load(edge + EDGE_OWN)
            g = node_gradient(grad_ptr, own_ptr, node, own, p, c, mask, C, G_PITCH, ACC)
            dx += g * op_weight(weights_ptr, tl.load(edge + EDGE_WEIGHT), ACC)
        if HAS_BEFORE:
            dx += load_tile(before_ptr, p * BEFORE_PITCH, c, mask, ACC)
        store_tile(dx_ptr, p * DX_PITCH, c, dx, mask)


@triton.jit
def sum_parts_kernel(parts_ptr, total_ptr, weights_ptr, size, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """One program adds up all parts [parts, size] of a stretch of one weight's gradient, in order.

    weights: (offset, taps, length, parts) each. Parts hold [taps, channels], sums the parameters' [channels, taps].
    """
    row = weights_ptr + tl.program_id(0) * NARROW
    offset, taps, length, parts = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), ACC)
    at = parts_ptr + offset + e
    for _ in range(parts):
        total += tl.load(at, mask=e < length, other=0.0)
        at += size
    channels = length // taps
    tl.store(total_ptr + offset + e % channels * taps + e // channels, total, mask=e < length)
