"""Backward of stages: through batch norm and the pointwise product (dd, dW), then through the depthwise convolution."""

import triton
import triton.language as tl

from fastdarts.kernels.blocks import ROWS, away, block_tiles, blocks, convolved, pointers, within
from fastdarts.kernels.gradients import (
    add_tile,
    incoming,
    node_gradient,
    norm_backward,
    product,
    stage_gradient,
    store_product_share,
)
from fastdarts.kernels.mix import op_weight
from fastdarts.kernels.parts import (
    batch_norm,
    behind_relu,
    column,
    load_tile,
    mask_of,
    normaliser,
    pixels_of,
    pointwise_weight,
    relu,
    share,
    state_of,
    store_tile,
)
from fastdarts.kernels.tables import (
    CONV_3,
    DW,
    DZ,
    GEOMETRY,
    GROUP,
    NODE,
    NORM,
    OP_WEIGHT,
    OWN,
    PART,
    PIXEL,
    PW,
    SKIP,
    WINDOW_KINDS,
    WINDOWS,
    X_NORM,
    X,
)
from fastdarts.kernels.windows import depthwise, depthwise_weight_gradient, seen_from, window


@triton.jit(do_not_specialize=["pixels", "rows", "size"])
def stage_backward_kernel(
    states, grad_ptr, own_ptr, saved_ptr, dz_ptr, dx_ptr, dd_ptr, dw_ptr, pw_ptr, norms_ptr, coefficients_ptr,
    weights_ptr, factors_ptr, d_pw_ptr, d_dw_ptr, sums_ptr, rows_ptr, groups_ptr, pixels, rows, size,
    C_IN: tl.constexpr, C_OUT: tl.constexpr, X_PITCH: tl.constexpr, PITCH: tl.constexpr, DX_PITCH: tl.constexpr,
    DD_PITCH: tl.constexpr, G_PITCH: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr,
    WO: tl.constexpr, STRIDE: tl.constexpr,
    FACTORS: tl.constexpr, GEOMETRIES: tl.constexpr, NORMALISED: tl.constexpr, NEED_X: tl.constexpr,
    NEED_PARAMS: tl.constexpr, EPS: tl.constexpr, IMAGES: tl.constexpr, BLOCK_P: tl.constexpr, BLOCKS: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_O: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """One program takes BLOCK_I inputs of a group's stages backwards over IMAGES images: dx, and its shares of dW.

    For each stage, the program's own scratch dd [groups, pixels, DD_PITCH] holds the depthwise output d (of a pointwise
    convolution the state's relu), where weights' gradients are wanted, and then in its place dd = dy W, which the
    depthwise convolution's windows read from there, while it is still in the caches. dx: [parts, input pixels,
    DX_PITCH], to which the stages of a group add up; with NORMALISED, which are second stages, that is dz [tensors,
    pixels, PITCH] instead, one for each, and sums [programs, 2 * rows, C] of dz and dz * (y - mean) of the first stage.
    d_pw and d_dw: a program's shares, each `size` elements behind those of the program before.
    """
    group = groups_ptr + tl.program_id(1) * 2
    for n in tl.range(tl.load(group + 1) - tl.load(group), disable_licm=True):
        row = tl.load(group) + n  # read again: the passes leave no registers for what they do not need
        geometry = column(rows_ptr, row, GEOMETRY)
        if SKIP & GEOMETRIES:
            if geometry == SKIP:
                skip_backward(grad_ptr, own_ptr, dx_ptr, weights_ptr, factors_ptr, rows_ptr, groups_ptr, row, pixels,
                              C_IN, DX_PITCH, G_PITCH, H, W, HO, WO, FACTORS, IMAGES, BLOCK_P, BLOCK_I,
                              ACC)  # fmt: skip
        if PIXEL <= GEOMETRIES:
            if geometry >= PIXEL:
                if NEED_PARAMS:
                    x_ptr = state_of(states, rows_ptr, row)  # anew for each pass, like its addresses
                    input_again(x_ptr, saved_ptr, dd_ptr, dw_ptr, norms_ptr, rows_ptr, row, pixels,
                                C_IN, X_PITCH, PITCH, DD_PITCH, H, W, HO, WO, STRIDE, GEOMETRIES, NORMALISED, EPS,
                                IMAGES, BLOCK_P, BLOCKS, BLOCK_I, ACC)  # fmt: skip
                    tl.debug_barrier()
                for block in tl.static_range((C_OUT + BLOCK_O - 1) // BLOCK_O):  # the last first: the first leaves dd
                    product_backward(grad_ptr, own_ptr, saved_ptr, dz_ptr, dd_ptr, pw_ptr, coefficients_ptr,
                                     factors_ptr, d_pw_ptr, rows_ptr, row, pixels, size,
                                     (C_OUT - 1) // BLOCK_O - block, C_IN, C_OUT, PITCH, DD_PITCH, G_PITCH, H, W,
                                     HO, WO, STRIDE, FACTORS, NEED_PARAMS, IMAGES, BLOCK_P, BLOCK_I, BLOCK_O, ACC,
                                     DOT)  # fmt: skip
                tl.debug_barrier()
                if NORMALISED:
                    middle_backward(saved_ptr, dd_ptr, dz_ptr, dw_ptr, norms_ptr, sums_ptr, rows_ptr, row, rows, pixels,
                                    C_IN, PITCH, DD_PITCH, HO, WO, GEOMETRIES, EPS, IMAGES, BLOCKS, BLOCK_I,
                                    ACC)  # fmt: skip
                elif NEED_X:
                    x_ptr = state_of(states, rows_ptr, row)
                    state_backward(x_ptr, dd_ptr, dx_ptr, dw_ptr, rows_ptr, groups_ptr, row, pixels,
                                   C_IN, X_PITCH, DD_PITCH, DX_PITCH, H, W, HO, WO, STRIDE, GEOMETRIES, IMAGES,
                                   BLOCK_P, BLOCKS, BLOCK_I, ACC)  # fmt: skip
                if NEED_PARAMS and CONV_3 <= GEOMETRIES:
                    if column(rows_ptr, row, GEOMETRY) >= CONV_3:
                        x_ptr = state_of(states, rows_ptr, row)
                        weights_backward(x_ptr, saved_ptr, dd_ptr, d_dw_ptr, norms_ptr, rows_ptr, row, pixels, size,
                                         C_IN, X_PITCH, PITCH, DD_PITCH, H, W, HO, WO, STRIDE, GEOMETRIES, NORMALISED,
                                         EPS, IMAGES, BLOCKS, BLOCK_I, ACC)  # fmt: skip
        tl.debug_barrier()  # the next stage overwrites dd and adds to dx


@triton.jit
def is_later(groups_ptr, row):
    """Return True if a stage is not the first of its program's."""
    return row > tl.load(groups_ptr + tl.program_id(1) * 2)


@triton.jit
def scratch(dd_ptr, rows_ptr, row, pixels, begin, PITCH: tl.constexpr):
    """A program's own part of dd."""
    return dd_ptr + (column(rows_ptr, row, GROUP) * pixels.to(tl.int64) + begin) * PITCH


@triton.jit
def gradient_part(dx_ptr, rows_ptr, row, pixels, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr,
                  PITCH: tl.constexpr, IMAGES: tl.constexpr):  # fmt: skip
    """A program's own part of dx."""
    plane = (pixels // (HO * WO) * (H * W)).to(tl.int64)
    begin = tl.program_id(0).to(tl.int64) * (IMAGES * H * W)
    return dx_ptr + (column(rows_ptr, row, PART) * plane + begin) * PITCH


@triton.jit
def stage_input(x_ptr, saved_ptr, rows_ptr, row, pixels, X_PITCH: tl.constexpr, PITCH: tl.constexpr, H: tl.constexpr,
                W: tl.constexpr, NORMALISED: tl.constexpr, IMAGES: tl.constexpr):  # fmt: skip
    """A program's part of what a stage reads: the state, or with NORMALISED a first stage's y."""
    begin = tl.program_id(0).to(tl.int64) * (IMAGES * H * W)
    if NORMALISED:
        return saved_ptr + (column(rows_ptr, row, X) * pixels.to(tl.int64) + begin) * PITCH
    else:
        return x_ptr + begin * X_PITCH


@triton.jit(noinline=True)
def skip_backward(grad_ptr, own_ptr, dx_ptr, weights_ptr, factors_ptr, rows_ptr, groups_ptr, row, pixels,
                  C: tl.constexpr, DX_PITCH: tl.constexpr, G_PITCH: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
                  HO: tl.constexpr, WO: tl.constexpr, FACTORS: tl.constexpr, IMAGES: tl.constexpr,
                  BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """A skip connection's share of the state's gradient."""
    begin, count = share(pixels, IMAGES, HO, WO)
    dx_ptr = gradient_part(dx_ptr, rows_ptr, row, pixels, H, W, HO, WO, DX_PITCH, IMAGES)
    grad_ptr += begin * G_PITCH
    own_ptr += begin * G_PITCH
    factors_ptr += tl.program_id(0) * (IMAGES * FACTORS)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    index = column(rows_ptr, row, OP_WEIGHT)
    weight = op_weight(weights_ptr, index, ACC)
    for step in range(tl.cdiv(IMAGES * HO * WO, BLOCK_P)):
        p, exists, _, _, _ = pixels_of(step, count, H, W, HO, WO, 1, BLOCK_P)
        mask = mask_of(exists, c, C, BLOCK_C)
        g = node_gradient(grad_ptr, own_ptr, factors_ptr, column(rows_ptr, row, NODE), column(rows_ptr, row, OWN),
                          index, p, exists, c, mask, C, G_PITCH, HO * WO, FACTORS, ACC)  # fmt: skip
        add_tile(dx_ptr, p * DX_PITCH, c, g * weight, mask, is_later(groups_ptr, row), ACC)


@triton.jit(noinline=True)
def input_again(
    x_ptr, saved_ptr, dd_ptr, dw_ptr, norms_ptr, rows_ptr, row, pixels, C: tl.constexpr, X_PITCH: tl.constexpr,
    PITCH: tl.constexpr, DD_PITCH: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr,
    STRIDE: tl.constexpr, GEOMETRIES: tl.constexpr, NORMALISED: tl.constexpr, EPS: tl.constexpr, IMAGES: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCKS: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Make d, which a stage's product reads, again in dd."""
    begin, count = share(pixels, IMAGES, HO, WO)
    in_ptr = stage_input(x_ptr, saved_ptr, rows_ptr, row, pixels, X_PITCH, PITCH, H, W, NORMALISED, IMAGES)
    dd_ptr = scratch(dd_ptr, rows_ptr, row, pixels, begin, DD_PITCH)
    geometry, first = column(rows_ptr, row, GEOMETRY), tl.program_id(2) * BLOCK_C
    if PIXEL & GEOMETRIES:
        if geometry == PIXEL:
            activate_pixels(in_ptr, dd_ptr, count, first,
                            C, X_PITCH, DD_PITCH, H, W, HO, WO, STRIDE, BLOCK_P, BLOCK_C, ACC)  # fmt: skip
    if CONV_3 <= GEOMETRIES:
        if geometry >= CONV_3:
            depthwise(geometry, in_ptr, dd_ptr, dw_ptr + column(rows_ptr, row, DW) * C, norms_ptr,
                      column(rows_ptr, row, X_NORM), count // (HO * WO), first,
                      C, H, W, HO, WO, STRIDE, X_PITCH, DD_PITCH, GEOMETRIES, NORMALISED, True, EPS, BLOCKS, BLOCK_C,
                      ACC)  # fmt: skip


@triton.jit
def activate_pixels(x_ptr, d_ptr, count, first, C: tl.constexpr, PITCH: tl.constexpr, D_PITCH: tl.constexpr,
                    H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr,
                    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """The relu of the state's pixels that stand for outputs."""
    c = first + tl.arange(0, BLOCK_C)
    for step in tl.range(tl.cdiv(count, BLOCK_P), disable_licm=True):
        p, exists, q, _, _ = pixels_of(step, count, H, W, HO, WO, STRIDE, BLOCK_P)
        mask = mask_of(exists, c, C, BLOCK_C)
        store_tile(d_ptr, p * D_PITCH, c, relu(load_tile(x_ptr, q * PITCH, c, mask, ACC)), mask)


@triton.jit
def product_backward(
    grad_ptr, own_ptr, saved_ptr, dz_ptr, dd_ptr, pw_ptr, coefficients_ptr, factors_ptr, d_pw_ptr, rows_ptr, row,
    pixels, size, block: tl.constexpr, C_IN: tl.constexpr, C_OUT: tl.constexpr, PITCH: tl.constexpr,
    DD_PITCH: tl.constexpr, G_PITCH: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr,
    WO: tl.constexpr, STRIDE: tl.constexpr, FACTORS: tl.constexpr, NEED_PARAMS: tl.constexpr, IMAGES: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_O: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Through a stage's batch norm and product: dW of a block of outputs; with the first all of dd, in d's place."""
    T = saved_ptr.dtype.element_ty
    begin, count = share(pixels, IMAGES, HO, WO)
    plane = pixels.to(tl.int64) * PITCH
    grad_ptr += begin * G_PITCH
    own_ptr += begin * G_PITCH
    saved_ptr += begin * PITCH
    dz_ptr += column(rows_ptr, row, DZ) * plane + begin * PITCH
    dd_ptr = scratch(dd_ptr, rows_ptr, row, pixels, begin, DD_PITCH)
    factors_ptr += tl.program_id(0) * (IMAGES * FACTORS)
    d_pw_ptr += tl.program_id(0).to(tl.int64) * size
    i = tl.program_id(2) * BLOCK_I + tl.arange(0, BLOCK_I)
    o = block * BLOCK_O + tl.arange(0, BLOCK_O)
    pw_ptr += column(rows_ptr, row, PW) * (C_IN * C_OUT)
    d_pw = tl.zeros((BLOCK_O, BLOCK_I), ACC)
    for step in tl.range(tl.cdiv(IMAGES * HO * WO, BLOCK_P), disable_licm=True):
        p, exists, _, _, _ = pixels_of(step, count, H, W, HO, WO, STRIDE, BLOCK_P)
        if NEED_PARAMS:
            d = load_tile(dd_ptr, p * DD_PITCH, i, mask_of(exists, i, C_IN, BLOCK_I), DOT)
        if NEED_PARAMS and C_IN <= BLOCK_I and C_OUT <= BLOCK_O:  # y = W d costs less than reading it back
            mask = mask_of(exists, o, C_OUT, BLOCK_O)
            g = incoming(rows_ptr, row, grad_ptr, own_ptr, dz_ptr, factors_ptr, p, exists, o, mask,
                         C_OUT, PITCH, G_PITCH, HO * WO, FACTORS, ACC)  # fmt: skip
            weight = pointwise_weight(pw_ptr, o, i, 0, True, C_IN, C_OUT, 1, T, DOT)
            y = tl.dot(d, weight, input_precision="ieee", out_dtype=ACC).to(T).to(ACC)
            dy = norm_backward(g, y, coefficients_ptr, column(rows_ptr, row, NORM), o, mask, C_OUT)
        else:
            dy = stage_gradient(rows_ptr, row, grad_ptr, own_ptr, dz_ptr, saved_ptr, coefficients_ptr, factors_ptr, p,
                                exists, o, plane, C_OUT, PITCH, G_PITCH, HO * WO, FACTORS, BLOCK_O, ACC)  # fmt: skip
        if NEED_PARAMS:
            d_pw += tl.dot(tl.trans(dy.to(T).to(DOT)), d, input_precision="ieee", out_dtype=ACC)
        if block == 0:
            dd = product(rows_ptr, row, grad_ptr, own_ptr, dz_ptr, saved_ptr, coefficients_ptr, factors_ptr, pw_ptr, dy,
                         p, exists, i, 0, plane, C_IN, C_OUT, PITCH, G_PITCH, HO * WO, FACTORS, 1, BLOCK_O, ACC,
                         DOT)  # fmt: skip
            if NEED_PARAMS:
                tl.debug_barrier()  # dd overwrites d, which all threads have read by now
            store_tile(dd_ptr, p * DD_PITCH, i, dd, mask_of(exists, i, C_IN, BLOCK_I))
    if NEED_PARAMS:
        store_product_share(d_pw_ptr, rows_ptr, row, d_pw, o, i, C_IN, C_OUT)


@triton.jit(noinline=True)
def state_backward(
    x_ptr, dd_ptr, dx_ptr, dw_ptr, rows_ptr, groups_ptr, row, pixels, C: tl.constexpr, PITCH: tl.constexpr,
    DD_PITCH: tl.constexpr, DX_PITCH: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr,
    WO: tl.constexpr, STRIDE: tl.constexpr, GEOMETRIES: tl.constexpr, IMAGES: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A first stage's share of the state's gradient, behind the relu, from dd."""
    begin, count = share(pixels, IMAGES, HO, WO)
    images = count // (HO * WO)
    first = tl.program_id(2) * BLOCK_C
    x_ptr += tl.program_id(0).to(tl.int64) * (IMAGES * H * W * PITCH)
    dd_ptr = scratch(dd_ptr, rows_ptr, row, pixels, begin, DD_PITCH)
    dx_ptr = gradient_part(dx_ptr, rows_ptr, row, pixels, H, W, HO, WO, DX_PITCH, IMAGES)
    dw_ptr += column(rows_ptr, row, DW) * C
    geometry, more = column(rows_ptr, row, GEOMETRY), is_later(groups_ptr, row)
    if PIXEL & GEOMETRIES:
        if geometry == PIXEL:
            pixels_backward(x_ptr, dd_ptr, dx_ptr, count, first, more,
                            C, PITCH, DD_PITCH, DX_PITCH, H, W, HO, WO, STRIDE, BLOCK_P, BLOCK_C, ACC)  # fmt: skip
    if STRIDE == 1:
        for n in tl.static_range(WINDOW_KINDS):
            if WINDOWS[n][0] & GEOMETRIES:
                if geometry == WINDOWS[n][0]:
                    state_backward_by(x_ptr, dd_ptr, dx_ptr, dw_ptr, images, first, more,
                                      WINDOWS[n][4], WINDOWS[n][1], WINDOWS[n][2],
                                      C, PITCH, DD_PITCH, DX_PITCH, H, W, BLOCK, BLOCK_C, ACC)  # fmt: skip
    elif CONV_3 <= GEOMETRIES:
        if geometry >= CONV_3:
            K, D = window(geometry)
            c = first + tl.arange(0, BLOCK_C)
            PIXELS: tl.constexpr = 2 * ROWS * BLOCK
            for phase in range(STRIDE * STRIDE):
                down, right = phase // STRIDE, phase % STRIDE
                for step in range(tl.cdiv(count, PIXELS)):
                    p, exists, q, h, w = pixels_of(step, count, H, W, HO, WO, STRIDE, PIXELS)
                    seen = seen_from(dd_ptr, dw_ptr, K, D, p, h // STRIDE, w // STRIDE, down, right, exists, c,
                                     C, HO, WO, STRIDE, DD_PITCH, BLOCK_C, ACC)  # fmt: skip
                    mask = mask_of(exists & (h + down < H) & (w + right < W), c, C, BLOCK_C)
                    at = q + (down * W + right)
                    x = load_tile(x_ptr, at * PITCH, c, mask, ACC)
                    add_tile(dx_ptr, at * DX_PITCH, c, behind_relu(x, seen), mask, more, ACC)


@triton.jit
def pixels_backward(x_ptr, dd_ptr, dx_ptr, count, first, more, C: tl.constexpr, PITCH: tl.constexpr,
                    DD_PITCH: tl.constexpr, DX_PITCH: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
                    HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr, BLOCK_P: tl.constexpr,
                    BLOCK_C: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """`state_backward` of a pointwise convolution; the first of its group leaves zeros at pixels it has not seen."""
    c = first + tl.arange(0, BLOCK_C)
    for phase in range(STRIDE * STRIDE):
        down, right = phase // STRIDE, phase % STRIDE
        for step in tl.range(tl.cdiv(count, BLOCK_P), disable_licm=True):
            p, exists, q, h, w = pixels_of(step, count, H, W, HO, WO, STRIDE, BLOCK_P)
            inside = exists & (h + down < H) & (w + right < W)
            seen = mask_of(inside & (phase == 0), c, C, BLOCK_C)
            at = q + (down * W + right)
            dd = load_tile(dd_ptr, p * DD_PITCH, c, seen, ACC)
            x = load_tile(x_ptr, at * PITCH, c, seen, ACC)
            written = mask_of(inside & ((phase == 0) | (more == 0)), c, C, BLOCK_C)
            add_tile(dx_ptr, at * DX_PITCH, c, behind_relu(x, dd), written, more, ACC)


@triton.jit(noinline=True)
def state_backward_by(
    x_ptr, dd_ptr, dx_ptr, dw_ptr, images, first, more, COLUMNS: tl.constexpr, KERNEL: tl.constexpr,
    D: tl.constexpr, C: tl.constexpr, PITCH: tl.constexpr, DD_PITCH: tl.constexpr, DX_PITCH: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """`state_backward` by blocks."""
    c = first + tl.arange(0, BLOCK_C)
    for step in tl.range(block_tiles(images, COLUMNS, D, H, W, BLOCK), disable_licm=True):
        q, h, w, exists = blocks(step, images, ROWS, COLUMNS, D, H, W, BLOCK)
        dx = convolved(dd_ptr, dw_ptr, q, h, w, exists, c, 1.0, 0.0, COLUMNS, KERNEL, D,
                       C, H, W, DD_PITCH, False, True, BLOCK_C, ACC)  # fmt: skip
        at, to = pointers(x_ptr, q, c, PITCH), pointers(dx_ptr, q, c, DX_PITCH)
        lines, columns = within(h, exists, ROWS, 0, D, H), within(w, exists, COLUMNS, 0, D, W)
        for j in tl.static_range(ROWS):
            for i in tl.static_range(COLUMNS):
                mask = mask_of(lines[j] & columns[i], c, C, BLOCK_C)
                x = tl.load(at + away(j * D, i * D, W, PITCH), mask=mask, other=0.0)
                here = to + away(j * D, i * D, W, DX_PITCH)
                total = behind_relu(x, dx[j][i]) + tl.load(here, mask=mask & more, other=0.0).to(ACC)
                tl.store(here, total.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit(noinline=True)
def middle_backward(
    saved_ptr, dd_ptr, dz_ptr, dw_ptr, norms_ptr, sums_ptr, rows_ptr, row, rows, pixels, C: tl.constexpr,
    PITCH: tl.constexpr, DD_PITCH: tl.constexpr, H: tl.constexpr, W: tl.constexpr, GEOMETRIES: tl.constexpr,
    EPS: tl.constexpr, IMAGES: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradient in the middle of a separable convolution from dd, and its sums with the first stage's y."""
    begin, count = share(pixels, IMAGES, H, W)
    images = count // (H * W)
    first = tl.program_id(2) * BLOCK_C
    plane = pixels.to(tl.int64)
    in_ptr = saved_ptr + (column(rows_ptr, row, X) * plane + begin) * PITCH
    dz_ptr += (column(rows_ptr, row, DZ) * plane + begin) * PITCH
    dd_ptr = scratch(dd_ptr, rows_ptr, row, pixels, begin, DD_PITCH)
    dw_ptr += column(rows_ptr, row, DW) * C
    sums_ptr += tl.program_id(0).to(tl.int64) * (2 * rows * C) + 2 * row * C
    norm, geometry = column(rows_ptr, row, X_NORM), column(rows_ptr, row, GEOMETRY)
    for n in tl.static_range(WINDOW_KINDS):
        if WINDOWS[n][0] & GEOMETRIES:
            if geometry == WINDOWS[n][0]:
                middle_backward_by(in_ptr, dd_ptr, dz_ptr, dw_ptr, norms_ptr, norm, sums_ptr, images, first,
                                   WINDOWS[n][4], WINDOWS[n][1], WINDOWS[n][2],
                                   C, PITCH, DD_PITCH, H, W, EPS, BLOCK, BLOCK_C, ACC)  # fmt: skip


@triton.jit(noinline=True)
def middle_backward_by(
    in_ptr, dd_ptr, dz_ptr, dw_ptr, norms_ptr, norm, sums_ptr, images, first, COLUMNS: tl.constexpr,
    KERNEL: tl.constexpr, D: tl.constexpr, C: tl.constexpr, PITCH: tl.constexpr, DD_PITCH: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """`middle_backward` by blocks."""
    c = first + tl.arange(0, BLOCK_C)
    sum_dz, sum_dzy = tl.zeros((BLOCK, BLOCK_C), ACC), tl.zeros((BLOCK, BLOCK_C), ACC)
    for step in tl.range(block_tiles(images, COLUMNS, D, H, W, BLOCK), disable_licm=True):
        q, h, w, exists = blocks(step, images, ROWS, COLUMNS, D, H, W, BLOCK)
        dz = convolved(dd_ptr, dw_ptr, q, h, w, exists, c, 1.0, 0.0, COLUMNS, KERNEL, D,
                       C, H, W, DD_PITCH, False, True, BLOCK_C, ACC)  # fmt: skip
        mean, _, _ = batch_norm(norms_ptr, norm, c, C, EPS)
        scale, shift = normaliser(norms_ptr, norm, c, C, EPS)
        at, to = pointers(in_ptr, q, c, PITCH), pointers(dz_ptr, q, c, PITCH)
        lines, columns = within(h, exists, ROWS, 0, D, H), within(w, exists, COLUMNS, 0, D, W)
        for j in tl.static_range(ROWS):
            for i in tl.static_range(COLUMNS):
                mask = mask_of(lines[j] & columns[i], c, C, BLOCK_C)
                y = tl.load(at + away(j * D, i * D, W, PITCH), mask=mask, other=0.0).to(ACC)
                mine = tl.where(mask, behind_relu(y * scale[None, :] + shift[None, :], dz[j][i]), 0.0)
                mine = mine.to(dz_ptr.dtype.element_ty)  # the sums are those of what is stored
                tl.store(to + away(j * D, i * D, W, PITCH), mine, mask=mask)
                sum_dz += mine.to(ACC)
                sum_dzy += mine.to(ACC) * (y - mean[None, :])
    tl.store(sums_ptr + c, tl.sum(sum_dz, 0), mask=c < C)
    tl.store(sums_ptr + C + c, tl.sum(sum_dzy, 0), mask=c < C)


@triton.jit(noinline=True)
def weights_backward(
    x_ptr, saved_ptr, dd_ptr, d_dw_ptr, norms_ptr, rows_ptr, row, pixels, size, C: tl.constexpr,
    X_PITCH: tl.constexpr, PITCH: tl.constexpr, DD_PITCH: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr, GEOMETRIES: tl.constexpr, NORMALISED: tl.constexpr,
    EPS: tl.constexpr, IMAGES: tl.constexpr, BLOCKS: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A program's share of a stage's depthwise weight's gradient, from dd."""
    begin, count = share(pixels, IMAGES, HO, WO)
    in_ptr = stage_input(x_ptr, saved_ptr, rows_ptr, row, pixels, X_PITCH, PITCH, H, W, NORMALISED, IMAGES)
    d_dw_ptr += tl.program_id(0).to(tl.int64) * size + column(rows_ptr, row, DW) * C
    dd_ptr = scratch(dd_ptr, rows_ptr, row, pixels, begin, DD_PITCH)
    depthwise_weight_gradient(column(rows_ptr, row, GEOMETRY), in_ptr, dd_ptr, d_dw_ptr, norms_ptr,
                              column(rows_ptr, row, X_NORM), count // (HO * WO), tl.program_id(2) * BLOCK_C,
                              C, H, W, HO, WO, STRIDE, X_PITCH, DD_PITCH, GEOMETRIES, NORMALISED, EPS, BLOCKS, BLOCK_C,
                              ACC)  # fmt: skip
