"""Backward of stages: through batch norm and the pointwise product (dd, dW), then through the depthwise convolution."""

import triton
import triton.language as tl

from fastdarts.kernels.mix import op_weight
from fastdarts.kernels.parts import (
    activation,
    column,
    load_tile,
    mask_of,
    neighbour,
    pixels_of,
    pointwise_weight,
    pool_tap,
    pooled,
    statistics,
    store_tile,
    window_size,
)
from fastdarts.kernels.tables import (
    AVG,
    CONV_3,
    DW,
    DZ,
    EDGE_NODE,
    EDGE_NORM,
    EDGE_OWN,
    EDGES,
    FIRST_EDGE,
    GEOMETRY,
    MAX,
    NARROW,
    NODE,
    NORM,
    OP_WEIGHT,
    OWN,
    PW,
    SKIP,
    X_NORM,
    X,
    Y,
)
from fastdarts.kernels.windows import (
    STRIP,
    convolved,
    depthwise,
    depthwise_weight_gradient,
    row_of,
    seen_by,
    seen_from,
    strip_tiles,
    strips,
    window,
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
                   plane, C: tl.constexpr, PITCH: tl.constexpr, G_PITCH: tl.constexpr, BLOCK: tl.constexpr,
                   ACC: tl.constexpr):  # fmt: skip
    """dy of a stage, from the y that was saved."""
    mask = mask_of(exists, o, C, BLOCK)
    g = incoming(rows_ptr, row, grad_ptr, own_ptr, dz_ptr, p, o, mask, plane, C, PITCH, G_PITCH, ACC)
    y = load_tile(saved_ptr + column(rows_ptr, row, Y) * plane, p * PITCH, o, mask, ACC)
    return norm_backward(g, y, coefficients_ptr, stats_ptr, column(rows_ptr, row, NORM), o, mask, C, ACC)


@triton.jit(do_not_specialize=["pixels", "rows", "pw_size", "dw_size"])
def stage_backward_kernel(
    x_ptr, grad_ptr, own_ptr, saved_ptr, dz_ptr, dx_ptr, dd_ptr, dw_ptr, pw_ptr, stats_ptr, coefficients_ptr,
    weights_ptr, d_pw_ptr, d_dw_ptr, sums_ptr, rows_ptr, groups_ptr, pixels, rows, pw_size, dw_size,
    C_IN: tl.constexpr, C_OUT: tl.constexpr, X_PITCH: tl.constexpr, PITCH: tl.constexpr, DX_PITCH: tl.constexpr,
    DD_PITCH: tl.constexpr, G_PITCH: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr,
    WO: tl.constexpr, STRIDE: tl.constexpr,
    GEOMETRIES: tl.constexpr, KERNEL: tl.constexpr, NORMALISED: tl.constexpr, NEED_X: tl.constexpr,
    NEED_PARAMS: tl.constexpr, EPS: tl.constexpr, IMAGES: tl.constexpr, BLOCK_P: tl.constexpr, WINDOW_P: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_O: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """One program takes BLOCK_I inputs of a group's stages backwards over IMAGES images: dx, and its shares of dW.

    For each stage, the program's own scratch dd [groups, pixels, DD_PITCH] holds the depthwise output d, where weights'
    gradients are wanted, and then in its place dd = dy W, which the depthwise convolution's windows read from there,
    while it is still in the caches. dx: [groups, input pixels, DX_PITCH],
    to which the stages of a group add up; with NORMALISED, which are second stages, that is dz [tensors, pixels, PITCH]
    instead, one for each, and sums [programs, 2 * rows, C] of dz and dz * (y - mean) of the first stage.
    d_pw: [programs, matrices], d_dw: [programs, taps].
    """
    TILES: tl.constexpr = (IMAGES * HO * WO + BLOCK_P - 1) // BLOCK_P
    part = tl.program_id(0)
    begin = part.to(tl.int64) * (IMAGES * HO * WO)
    begin_in = part.to(tl.int64) * (IMAGES * H * W)
    count = tl.minimum(pixels - begin, IMAGES * HO * WO).to(tl.int32)
    images = count // (HO * WO)
    plane = pixels.to(tl.int64) * PITCH
    dx_plane = (pixels // (HO * WO) * (H * W)).to(tl.int64) * DX_PITCH
    x_ptr += begin_in * X_PITCH
    grad_ptr += begin * G_PITCH
    own_ptr += begin * G_PITCH
    saved_ptr += begin * PITCH
    dz_ptr += begin * PITCH
    dx_ptr += tl.program_id(1) * dx_plane + begin_in * DX_PITCH
    dd_ptr += (tl.program_id(1) * pixels.to(tl.int64) + begin) * DD_PITCH
    d_pw_ptr += part.to(tl.int64) * pw_size
    d_dw_ptr += part.to(tl.int64) * dw_size
    i = tl.program_id(2) * BLOCK_I + tl.arange(0, BLOCK_I)
    group = groups_ptr + tl.program_id(1) * 2
    first = tl.load(group)
    for row in tl.range(first, tl.load(group + 1), disable_licm=True):
        geometry = column(rows_ptr, row, GEOMETRY)
        in_ptr = x_ptr
        if NORMALISED:
            in_ptr = saved_ptr + column(rows_ptr, row, X) * plane
        if SKIP & GEOMETRIES:
            if geometry == SKIP:
                weight = op_weight(weights_ptr, column(rows_ptr, row, OP_WEIGHT), ACC)
                for step in range(TILES):
                    p, exists, _, _, _ = pixels_of(step, count, H, W, HO, WO, STRIDE, BLOCK_P)
                    mask = mask_of(exists, i, C_IN, BLOCK_I)
                    g = node_gradient(grad_ptr, own_ptr, column(rows_ptr, row, NODE), column(rows_ptr, row, OWN), p, i,
                                      mask, C_IN, G_PITCH, ACC)  # fmt: skip
                    add_tile(dx_ptr, p * DX_PITCH, i, g * weight, mask, row > first, ACC)
        if CONV_3 <= GEOMETRIES:
            if geometry >= CONV_3:
                weight_ptr = dw_ptr + column(rows_ptr, row, DW) * C_IN
                if NEED_PARAMS:
                    scale, shift = activation(stats_ptr, rows_ptr, row, i, C_IN, NORMALISED, EPS)
                    depthwise(geometry, in_ptr, dd_ptr, weight_ptr, images, i, scale, shift, C_IN, H, W, HO, WO, STRIDE,
                              X_PITCH, DD_PITCH, KERNEL, NORMALISED, WINDOW_P, BLOCK_I, ACC)  # fmt: skip
                    tl.debug_barrier()
                for block in tl.static_range((C_OUT + BLOCK_O - 1) // BLOCK_O):  # the last first: the first leaves dd
                    product_backward(grad_ptr, own_ptr, saved_ptr, dz_ptr, dd_ptr, pw_ptr, stats_ptr, coefficients_ptr,
                                     d_pw_ptr, rows_ptr, row, count, plane, i, (C_OUT - 1) // BLOCK_O - block,
                                     C_IN, C_OUT, PITCH, DD_PITCH, G_PITCH, H, W, HO, WO, STRIDE,
                                     NEED_PARAMS, TILES, BLOCK_P, BLOCK_I, BLOCK_O, ACC, DOT)  # fmt: skip
                tl.debug_barrier()
                if NORMALISED:
                    middle_backward(in_ptr, dd_ptr, dz_ptr + column(rows_ptr, row, DZ) * plane, weight_ptr, stats_ptr,
                                    sums_ptr, rows_ptr, row, rows, geometry, images, i,
                                    C_IN, PITCH, DD_PITCH, HO, WO, KERNEL, EPS, WINDOW_P, BLOCK_I, ACC)  # fmt: skip
                elif NEED_X:
                    state_backward(x_ptr, dd_ptr, dx_ptr, weight_ptr, geometry, images, i, row > first,
                                   C_IN, X_PITCH, DD_PITCH, DX_PITCH, H, W, HO, WO, STRIDE, KERNEL, WINDOW_P, BLOCK_I,
                                   ACC)  # fmt: skip
                if NEED_PARAMS:  # read again: kept in registers over all passes it spills
                    scale, shift = activation(stats_ptr, rows_ptr, row, i, C_IN, NORMALISED, EPS)
                    depthwise_weight_gradient(geometry, in_ptr, dd_ptr, d_dw_ptr + column(rows_ptr, row, DW) * C_IN,
                                              images, i, scale, shift, C_IN, H, W, HO, WO, STRIDE, X_PITCH, DD_PITCH,
                                              KERNEL, NORMALISED, WINDOW_P, BLOCK_I, ACC)  # fmt: skip
        tl.debug_barrier()  # the next stage overwrites dd and adds to dx


@triton.jit
def add_tile(ptr, offset, c, value, mask, more, ACC: tl.constexpr):
    """Adds to what the stages before have left; where there are no more than this one, writes."""
    store_tile(ptr, offset, c, value + load_tile(ptr, offset, c, mask & more, ACC), mask)


@triton.jit
def product_backward(
    grad_ptr, own_ptr, saved_ptr, dz_ptr, dd_ptr, pw_ptr, stats_ptr, coefficients_ptr, d_pw_ptr, rows_ptr, row, count,
    plane, i, block: tl.constexpr, C_IN: tl.constexpr, C_OUT: tl.constexpr, PITCH: tl.constexpr,
    DD_PITCH: tl.constexpr, G_PITCH: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr,
    WO: tl.constexpr, STRIDE: tl.constexpr, NEED_PARAMS: tl.constexpr, TILES: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_O: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Through a stage's batch norm and product: dW of a block of outputs; with the first all of dd, in d's place."""
    T = saved_ptr.dtype.element_ty
    o = block * BLOCK_O + tl.arange(0, BLOCK_O)
    pw_ptr += column(rows_ptr, row, PW) * (C_IN * C_OUT)
    d_pw = tl.zeros((BLOCK_O, BLOCK_I), ACC)
    for step in tl.range(TILES, disable_licm=True):
        p, exists, _, _, _ = pixels_of(step, count, H, W, HO, WO, STRIDE, BLOCK_P)
        if NEED_PARAMS:
            d = load_tile(dd_ptr, p * DD_PITCH, i, mask_of(exists, i, C_IN, BLOCK_I), DOT)
        if NEED_PARAMS and C_IN <= BLOCK_I and C_OUT <= BLOCK_O:  # y = W d costs less than reading it back
            mask = mask_of(exists, o, C_OUT, BLOCK_O)
            g = incoming(rows_ptr, row, grad_ptr, own_ptr, dz_ptr, p, o, mask, plane, C_OUT, PITCH, G_PITCH, ACC)
            weight = pointwise_weight(pw_ptr, o, i, 0, C_IN, C_OUT, 1, T, DOT)
            y = tl.dot(d, weight, input_precision="ieee", out_dtype=ACC)
            dy = norm_backward(g, y, coefficients_ptr, stats_ptr, column(rows_ptr, row, NORM), o, mask, C_OUT, ACC)
        else:
            dy = stage_gradient(rows_ptr, row, grad_ptr, own_ptr, dz_ptr, saved_ptr, coefficients_ptr, stats_ptr, p,
                                exists, o, plane, C_OUT, PITCH, G_PITCH, BLOCK_O, ACC)  # fmt: skip
        if NEED_PARAMS:
            d_pw += tl.dot(tl.trans(dy.to(T).to(DOT)), d, input_precision="ieee", out_dtype=ACC)
        if block == 0:
            dd = product(rows_ptr, row, grad_ptr, own_ptr, dz_ptr, saved_ptr, coefficients_ptr, stats_ptr, pw_ptr, dy,
                         p, exists, i, 0, plane, C_IN, C_OUT, PITCH, G_PITCH, 1, BLOCK_O, ACC, DOT)  # fmt: skip
            if NEED_PARAMS:
                tl.debug_barrier()  # dd overwrites d, which all threads have read by now
            store_tile(dd_ptr, p * DD_PITCH, i, dd, mask_of(exists, i, C_IN, BLOCK_I))
    if NEED_PARAMS:
        store_product_share(d_pw_ptr, rows_ptr, row, d_pw, o, i, C_IN, C_OUT)


@triton.jit
def store_product_share(d_pw_ptr, rows_ptr, row, d_pw, o, i, C_IN: tl.constexpr, C_OUT: tl.constexpr):
    """A program's share of a pointwise weight's gradient."""
    at = d_pw_ptr + column(rows_ptr, row, PW) * (C_IN * C_OUT)
    tl.store(at + (o[:, None] * C_IN + i[None, :]), d_pw, mask=(o < C_OUT)[:, None] & (i < C_IN)[None, :])


@triton.jit
def product(rows_ptr, row, grad_ptr, own_ptr, dz_ptr, saved_ptr, coefficients_ptr, stats_ptr, pw_ptr, dy, p, exists,
            i, half, plane, C_IN: tl.constexpr, C_OUT: tl.constexpr, PITCH: tl.constexpr, G_PITCH: tl.constexpr,
            PARTS: tl.constexpr, BLOCK_O: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr):  # fmt: skip
    """dd = dy W for inputs i over all outputs, of which dy are the first."""
    T = saved_ptr.dtype.element_ty
    dd = tl.zeros((p.shape[0], i.shape[0]), ACC)
    for o0 in tl.static_range(0, C_OUT, BLOCK_O):
        o = o0 + tl.arange(0, BLOCK_O)
        if o0 > 0:
            dy = stage_gradient(rows_ptr, row, grad_ptr, own_ptr, dz_ptr, saved_ptr, coefficients_ptr, stats_ptr, p,
                                exists, o, plane, C_OUT, PITCH, G_PITCH, BLOCK_O, ACC)  # fmt: skip
        weight = pointwise_weight(pw_ptr, o, i, half, C_IN, C_OUT, PARTS, T, DOT)
        dd += tl.dot(dy.to(T).to(DOT), tl.trans(weight), input_precision="ieee", out_dtype=ACC)
    return dd


@triton.jit(do_not_specialize=["pixels", "pw_size"])
def reduction_backward_kernel(
    x_ptr, grad_ptr, own_ptr, saved_ptr, dx_ptr, pw_ptr, stats_ptr, coefficients_ptr, d_pw_ptr, rows_ptr, pixels,
    pw_size,
    C_IN: tl.constexpr, C_OUT: tl.constexpr, X_PITCH: tl.constexpr, PITCH: tl.constexpr, DX_PITCH: tl.constexpr,
    G_PITCH: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr,
    NEED_X: tl.constexpr, NEED_PARAMS: tl.constexpr, IMAGES: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_O: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """One program takes BLOCK_I inputs of a stage without windows backwards over IMAGES images: dx, its share of dW.

    dx: [rows, input pixels, DX_PITCH]. d_pw: [programs, matrices].
    """
    TILES: tl.constexpr = (IMAGES * HO * WO + BLOCK_P - 1) // BLOCK_P
    part, row = tl.program_id(0), tl.program_id(1)
    begin = part.to(tl.int64) * (IMAGES * HO * WO)
    begin_in = part.to(tl.int64) * (IMAGES * H * W)
    count = tl.minimum(pixels - begin, IMAGES * HO * WO).to(tl.int32)
    count_in = count // (HO * WO) * (H * W)
    plane = pixels.to(tl.int64) * PITCH
    x_ptr += begin_in * X_PITCH
    grad_ptr += begin * G_PITCH
    own_ptr += begin * G_PITCH
    saved_ptr += begin * PITCH
    dx_ptr += ((pixels // (HO * WO) * (H * W)).to(tl.int64) * row + begin_in) * DX_PITCH
    d_pw_ptr += part.to(tl.int64) * pw_size
    i = tl.program_id(2) * BLOCK_I + tl.arange(0, BLOCK_I)
    T = saved_ptr.dtype.element_ty
    pw_ptr += column(rows_ptr, row, PW) * (C_IN * C_OUT)
    if NEED_X:
        if STRIDE > 1:  # pixels that no output has seen
            for step in range(TILES * STRIDE * STRIDE):
                p, exists, _, _, _ = pixels_of(step, count_in, H, W, H, W, 1, BLOCK_P)
                mask = mask_of(exists, i, C_IN, BLOCK_I)
                store_tile(dx_ptr, p * DX_PITCH, i, tl.zeros((BLOCK_P, BLOCK_I), ACC), mask)
            tl.debug_barrier()
        for step in range(TILES):
            p, exists, q, h, w = pixels_of(step, count, H, W, HO, WO, STRIDE, BLOCK_P)
            dy = stage_gradient(rows_ptr, row, grad_ptr, own_ptr, saved_ptr, saved_ptr, coefficients_ptr, stats_ptr, p,
                                exists, tl.arange(0, BLOCK_O), plane, C_OUT, PITCH, G_PITCH, BLOCK_O, ACC)  # fmt: skip
            for half in range(STRIDE):
                dd = product(rows_ptr, row, grad_ptr, own_ptr, saved_ptr, saved_ptr, coefficients_ptr, stats_ptr,
                             pw_ptr, dy, p, exists, i, half, plane, C_IN, C_OUT, PITCH, G_PITCH, STRIDE, BLOCK_O, ACC,
                             DOT)  # fmt: skip
                at = q + half * (W + 1)
                mask = mask_of(exists & (h + half < H) & (w + half < W), i, C_IN, BLOCK_I)
                x = load_tile(x_ptr, at * X_PITCH, i, mask, ACC)
                store_tile(dx_ptr, at * DX_PITCH, i, tl.where(x > 0, dd, 0.0), mask)
    if NEED_PARAMS:  # a loop of its own: both in one take more registers
        for o0 in tl.static_range(0, C_OUT, BLOCK_O):
            o = o0 + tl.arange(0, BLOCK_O)
            d_pw = tl.zeros((BLOCK_O, BLOCK_I), ACC)
            for step in range(TILES):
                p, exists, q, h, w = pixels_of(step, count, H, W, HO, WO, STRIDE, BLOCK_P)
                dy = stage_gradient(rows_ptr, row, grad_ptr, own_ptr, saved_ptr, saved_ptr, coefficients_ptr, stats_ptr,
                                    p, exists, o, plane, C_OUT, PITCH, G_PITCH, BLOCK_O, ACC)  # fmt: skip
                for half in range(STRIDE):
                    d = neighbour(x_ptr, q, h, w, half, half, exists, i, 1.0, 0.0,
                                  C_IN, H, W, X_PITCH, False, True, BLOCK_I, ACC)  # fmt: skip
                    mine = tl.where((o * STRIDE // C_OUT == half)[None, :], dy, 0.0)
                    d_pw += tl.dot(tl.trans(mine.to(T).to(DOT)), d.to(T).to(DOT), input_precision="ieee", out_dtype=ACC)
            store_product_share(d_pw_ptr, rows_ptr, row, d_pw, o, i, C_IN, C_OUT)


@triton.jit
def state_backward(x_ptr, dd_ptr, dx_ptr, dw_ptr, geometry, images, c, more, C: tl.constexpr, PITCH: tl.constexpr,
                   DD_PITCH: tl.constexpr, DX_PITCH: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr,
                   WO: tl.constexpr, STRIDE: tl.constexpr, KERNEL: tl.constexpr, BLOCK: tl.constexpr,
                   BLOCK_C: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """A first stage's share of the state's gradient, behind the relu."""
    K, D = window(geometry)
    if STRIDE == 1:
        for step in range(strip_tiles(images, D, H, W, BLOCK)):
            q, h, w, exists = strips(step, images, D, H, W, BLOCK)
            dx = convolved(dd_ptr, dw_ptr, K, D, q, h, w, exists, c, 1.0, 0.0,
                           C, H, W, DD_PITCH, KERNEL, False, True, BLOCK_C, ACC)  # fmt: skip
            for j in tl.static_range(STRIP):
                p, there = row_of(q, h, exists, j, D, H, W)
                mask = mask_of(there, c, C, BLOCK_C)
                x = load_tile(x_ptr, p * PITCH, c, mask, ACC)
                add_tile(dx_ptr, p * DX_PITCH, c, tl.where(x > 0, dx[j], 0.0), mask, more, ACC)
    else:
        PIXELS: tl.constexpr = STRIP * BLOCK
        count = images * (H * W)
        for step in range(tl.cdiv(count, PIXELS)):
            p, exists, _, h, w = pixels_of(step, count, H, W, H, W, 1, PIXELS)
            seen = seen_from(dd_ptr, dw_ptr, K, D, p // (H * W), h, w, exists, c, C, HO, WO, STRIDE, DD_PITCH, BLOCK_C,
                             ACC)  # fmt: skip
            mask = mask_of(exists, c, C, BLOCK_C)
            x = load_tile(x_ptr, p * PITCH, c, mask, ACC)
            add_tile(dx_ptr, p * DX_PITCH, c, tl.where(x > 0, seen, 0.0), mask, more, ACC)


@triton.jit
def middle_backward(
    in_ptr, dd_ptr, dz_ptr, dw_ptr, stats_ptr, sums_ptr, rows_ptr, row, rows, geometry, images, c,
    C: tl.constexpr, PITCH: tl.constexpr, DD_PITCH: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    KERNEL: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradient in the middle of a separable convolution, and its sums with the first stage's y."""
    K, D = window(geometry)
    sum_dz, sum_dzy = tl.zeros((BLOCK_C,), ACC), tl.zeros((BLOCK_C,), ACC)
    for step in range(strip_tiles(images, D, H, W, BLOCK)):
        q, h, w, exists = strips(step, images, D, H, W, BLOCK)
        dz = convolved(dd_ptr, dw_ptr, K, D, q, h, w, exists, c, 1.0, 0.0,
                       C, H, W, DD_PITCH, KERNEL, False, True, BLOCK_C, ACC)  # fmt: skip
        mean, rstd = statistics(stats_ptr, column(rows_ptr, row, X_NORM), c, C, EPS)
        strip_dz, strip_dzy = tl.zeros((BLOCK, BLOCK_C), ACC), tl.zeros((BLOCK, BLOCK_C), ACC)
        for j in tl.static_range(STRIP):
            p, there = row_of(q, h, exists, j, D, H, W)
            mask = mask_of(there, c, C, BLOCK_C)
            y = load_tile(in_ptr, p * PITCH, c, mask, ACC)
            mine = tl.where(mask & (y * rstd[None, :] - (mean * rstd)[None, :] > 0), dz[j], 0.0)
            store_tile(dz_ptr, p * PITCH, c, mine, mask)
            strip_dz += mine
            strip_dzy += mine * (y - mean[None, :])
        sum_dz += tl.sum(strip_dz, 0)
        sum_dzy += tl.sum(strip_dzy, 0)
    to = sums_ptr + tl.program_id(0).to(tl.int64) * (2 * rows * C) + 2 * row * C + c
    tl.store(to, sum_dz, mask=c < C)
    tl.store(to + C, sum_dzy, mask=c < C)


@triton.jit(do_not_specialize=["pixels", "rows"])
def pool_backward_kernel(
    x_ptr, grad_ptr, own_ptr, dx_ptr, dd_ptr, largest_ptr, stats_ptr, coefficients_ptr, rows_ptr, edges_ptr, pixels,
    rows,
    C: tl.constexpr, X_PITCH: tl.constexpr, PITCH: tl.constexpr, DX_PITCH: tl.constexpr, G_PITCH: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr, IMAGES: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program takes BLOCK_C channels of a state's pools backwards over IMAGES images.

    For each pool, the gradient of its values (of a mean's pixels) goes into scratch dd [pixels, PITCH], and the place
    of the maximum in its window, 0 to 8, into largest.
    """
    begin = tl.program_id(0).to(tl.int64) * (IMAGES * HO * WO)
    begin_in = tl.program_id(0).to(tl.int64) * (IMAGES * H * W)
    count = tl.minimum(pixels - begin, IMAGES * HO * WO).to(tl.int32)
    x_ptr += begin_in * X_PITCH
    dx_ptr += begin_in * DX_PITCH
    grad_ptr += begin * G_PITCH
    own_ptr += begin * G_PITCH
    dd_ptr += begin * PITCH
    largest_ptr += begin * PITCH
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    for row in range(rows):
        geometry = column(rows_ptr, row, GEOMETRY)
        for step in range((IMAGES * HO * WO + BLOCK_P - 1) // BLOCK_P):
            p, exists, q, h, w = pixels_of(step, count, H, W, HO, WO, STRIDE, BLOCK_P)
            pool_gradient(x_ptr, grad_ptr, own_ptr, dd_ptr, largest_ptr, stats_ptr, coefficients_ptr, rows_ptr,
                          edges_ptr, row, geometry, p, q, h, w, exists, c,
                          C, H, W, X_PITCH, PITCH, G_PITCH, BLOCK_C, ACC)  # fmt: skip
        tl.debug_barrier()
        for step in range((IMAGES * H * W + BLOCK_P - 1) // BLOCK_P):
            p, exists, _, h, w = pixels_of(step, count // (HO * WO) * (H * W), H, W, H, W, 1, BLOCK_P)
            dx = pool_backward(dd_ptr, largest_ptr, geometry, p // (H * W), h, w, exists, c,
                               C, HO, WO, PITCH, BLOCK_C, ACC, STRIDE)  # fmt: skip
            add_tile(dx_ptr, p * DX_PITCH, c, dx, mask_of(exists, c, C, BLOCK_C), row > 0, ACC)
        tl.debug_barrier()  # the next pool overwrites dd and adds to dx


@triton.jit
def pool_gradient(x_ptr, grad_ptr, own_ptr, dd_ptr, largest_ptr, stats_ptr, coefficients_ptr, rows_ptr,
                  edges_ptr, row, geometry, p, q, h, w, exists, c, C: tl.constexpr, H: tl.constexpr,
                  W: tl.constexpr, X_PITCH: tl.constexpr, PITCH: tl.constexpr, G_PITCH: tl.constexpr,
                  BLOCK: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """What all edges that use a pool give to its values, and where in its window a maximum stood first."""
    mask = mask_of(exists, c, C, BLOCK)
    y = tl.zeros((p.shape[0], BLOCK), ACC)
    if geometry == MAX:
        y += float("-inf")
        place = tl.full((p.shape[0], BLOCK), -1, tl.int32)
        for tap in range(9):
            inside, v = pool_tap(x_ptr, q, h, w, tap, exists, c, C, H, W, X_PITCH, BLOCK, ACC, float("-inf"))
            better = inside[:, None] & ((v > y) | (v != v) | (place < 0))
            y = tl.where(better, v, y)
            place = tl.where(better, tap, place)
        store_tile(largest_ptr, p * PITCH, c, place, mask)
        y = tl.where(mask, y, 0.0)
    else:
        y = pooled(x_ptr, q, h, w, exists, c, geometry, C, H, W, X_PITCH, BLOCK, ACC)
    d = tl.zeros((p.shape[0], BLOCK), ACC)
    first = column(rows_ptr, row, FIRST_EDGE)
    for e in range(first, first + column(rows_ptr, row, EDGES)):
        edge = edges_ptr + e * NARROW
        g = node_gradient(
            grad_ptr, own_ptr, tl.load(edge + EDGE_NODE), tl.load(edge + EDGE_OWN), p, c, mask, C, G_PITCH, ACC
        )
        d += norm_backward(g, y, coefficients_ptr, stats_ptr, tl.load(edge + EDGE_NORM), c, mask, C, ACC)
    if geometry == AVG:
        d = d / window_size(h, w, H, W).to(ACC)[:, None]
    store_tile(dd_ptr, p * PITCH, c, d, mask)


@triton.jit
def pool_backward(dd_ptr, largest_ptr, geometry, image, h, w, exists, c, C: tl.constexpr, HO: tl.constexpr,
                  WO: tl.constexpr, PITCH: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
                  S: tl.constexpr):  # fmt: skip
    """A pool backwards at input pixels (image, h, w)."""
    dx = tl.zeros((h.shape[0], BLOCK_C), ACC)
    for tap in range(9):
        inside, r = seen_by(image, h, w, tap // 3 - 1, tap % 3 - 1, exists, HO, WO, S)
        mask = mask_of(inside, c, C, BLOCK_C)
        v = load_tile(dd_ptr, r * PITCH, c, mask, ACC)
        if geometry == MAX:
            place = tl.load(largest_ptr + ((r * PITCH)[:, None] + c[None, :]), mask=mask, other=-1)
            v = tl.where(place == tap, v, 0.0)
        dx += v
    return dx


@triton.jit(do_not_specialize=["pixels", "parts"])
def join_gradients_kernel(
    parts_ptr, before_ptr, dx_ptr, pixels, parts,
    C: tl.constexpr, PITCH: tl.constexpr, BEFORE_PITCH: tl.constexpr, DX_PITCH: tl.constexpr,
    HAS_BEFORE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program makes BLOCK_P pixels x BLOCK_C channels of a state's gradient from its edges' [parts, pixels, PITCH]
    and what it has from elsewhere.
    """
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = mask_of(p < pixels, c, C, BLOCK_C)
    dx = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    if HAS_BEFORE:
        dx += load_tile(before_ptr, p * BEFORE_PITCH, c, mask, ACC)
    for part in range(parts):
        dx += load_tile(parts_ptr + part * (pixels.to(tl.int64) * PITCH), p * PITCH, c, mask, ACC)
    store_tile(dx_ptr, p * DX_PITCH, c, dx, mask)


@triton.jit(do_not_specialize=["size"])
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
