"""Backward of stages without windows: factorised reductions and preprocessing."""

import triton
import triton.language as tl

from fastdarts.kernels.gradients import product, stage_gradient, store_product_share
from fastdarts.kernels.parts import behind_relu, column, load_tile, mask_of, neighbour, pixels_of, share, store_tile
from fastdarts.kernels.tables import PW


@triton.jit(do_not_specialize=["pixels", "size"])
def reduction_backward_kernel(
    x_ptr, grad_ptr, own_ptr, saved_ptr, dx_ptr, pw_ptr, coefficients_ptr, factors_ptr, d_pw_ptr, rows_ptr, pixels,
    size,
    C_IN: tl.constexpr, C_OUT: tl.constexpr, X_PITCH: tl.constexpr, PITCH: tl.constexpr, DX_PITCH: tl.constexpr,
    G_PITCH: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr,
    FACTORS: tl.constexpr, NEED_X: tl.constexpr, NEED_PARAMS: tl.constexpr, IMAGES: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_O: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """One program takes BLOCK_I inputs of a stage without windows backwards over IMAGES images: dx, its share of dW.

    dx: [rows, input pixels, DX_PITCH]. d_pw: a program's shares, `size` elements behind those of the program before.
    """
    TILES: tl.constexpr = (IMAGES * HO * WO + BLOCK_P - 1) // BLOCK_P
    part, row = tl.program_id(0), tl.program_id(1)
    begin, count = share(pixels, IMAGES, HO, WO)
    begin_in = part.to(tl.int64) * (IMAGES * H * W)
    count_in = count // (HO * WO) * (H * W)
    plane = pixels.to(tl.int64) * PITCH
    x_ptr += begin_in * X_PITCH
    grad_ptr += begin * G_PITCH
    own_ptr += begin * G_PITCH
    saved_ptr += begin * PITCH
    factors_ptr += part * (IMAGES * FACTORS)
    dx_ptr += ((pixels // (HO * WO) * (H * W)).to(tl.int64) * row + begin_in) * DX_PITCH
    d_pw_ptr += part.to(tl.int64) * size
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
            dy = stage_gradient(rows_ptr, row, grad_ptr, own_ptr, saved_ptr, saved_ptr, coefficients_ptr, factors_ptr,
                                p, exists, tl.arange(0, BLOCK_O), plane, C_OUT, PITCH, G_PITCH, HO * WO, FACTORS,
                                BLOCK_O, ACC)  # fmt: skip
            for half in range(STRIDE):
                dd = product(rows_ptr, row, grad_ptr, own_ptr, saved_ptr, saved_ptr, coefficients_ptr, factors_ptr,
                             pw_ptr, dy, p, exists, i, half, plane, C_IN, C_OUT, PITCH, G_PITCH, HO * WO, FACTORS,
                             STRIDE, BLOCK_O, ACC, DOT)  # fmt: skip
                at = q + half * (W + 1)
                mask = mask_of(exists & (h + half < H) & (w + half < W), i, C_IN, BLOCK_I)
                x = load_tile(x_ptr, at * X_PITCH, i, mask, ACC)
                store_tile(dx_ptr, at * DX_PITCH, i, behind_relu(x, dd), mask)
    if NEED_PARAMS:  # a loop of its own: both in one take more registers
        for o0 in tl.static_range(0, C_OUT, BLOCK_O):
            o = o0 + tl.arange(0, BLOCK_O)
            d_pw = tl.zeros((BLOCK_O, BLOCK_I), ACC)
            for step in range(TILES):
                p, exists, q, h, w = pixels_of(step, count, H, W, HO, WO, STRIDE, BLOCK_P)
                dy = stage_gradient(rows_ptr, row, grad_ptr, own_ptr, saved_ptr, saved_ptr, coefficients_ptr,
                                    factors_ptr, p, exists, o, plane, C_OUT, PITCH, G_PITCH, HO * WO, FACTORS, BLOCK_O,
                                    ACC)  # fmt: skip
                for half in range(STRIDE):
                    d = neighbour(x_ptr, q, h, w, half, half, exists, i, 1.0, 0.0,
                                  C_IN, H, W, X_PITCH, False, True, BLOCK_I, ACC)  # fmt: skip
                    mine = tl.where((o * STRIDE // C_OUT == half)[None, :], dy, 0.0)
                    d_pw += tl.dot(tl.trans(mine.to(T).to(DOT)), d.to(T).to(DOT), input_precision="ieee", out_dtype=ACC)
            store_product_share(d_pw_ptr, rows_ptr, row, d_pw, o, i, C_IN, C_OUT)
