"""Gradients behind a stage, and through its batch norm and product."""

import triton
import triton.language as tl

from fastdarts.kernels.parts import column, load_tile, mask_of, pointwise_weight, store_tile
from fastdarts.kernels.tables import NODE, NORM, OP_WEIGHT, OWN, PW, Y


@triton.jit
def edge_factor(factors_ptr, index, p, exists, PIXELS: tl.constexpr, FACTORS: tl.constexpr, ACC: tl.constexpr):
    """The factors of op weight `index`'s edge at pixels p of images of so many PIXELS: [images, FACTORS op weights]."""
    return tl.load(factors_ptr + (p // PIXELS) * FACTORS + index, mask=exists, other=0.0).to(ACC)


@triton.jit
def node_gradient(grad_ptr, own_ptr, factors_ptr, node, own, index, p, exists, c, mask, C: tl.constexpr,
                  PITCH: tl.constexpr, PIXELS: tl.constexpr, FACTORS: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """A node's gradient, as it came, or what its own banks have added to that; times the factors of an op's edge."""
    at = p * PITCH + node * C
    if own != 0:
        g = load_tile(own_ptr, at, c, mask, ACC)
    else:
        g = load_tile(grad_ptr, at, c, mask, ACC)
    if FACTORS:
        g = g * edge_factor(factors_ptr, index, p, exists, PIXELS, FACTORS, ACC)[:, None]
    return g


@triton.jit
def norm_backward(g, y, coefficients_ptr, norm, c, mask, C: tl.constexpr):
    """The gradient before a batch norm from the one behind it."""
    at = coefficients_ptr + norm * (4 * C) + c
    from_g = tl.load(at, mask=c < C, other=0.0)
    from_y = tl.load(at + C, mask=c < C, other=0.0)
    offset = tl.load(at + 2 * C, mask=c < C, other=0.0)
    mean = tl.load(at + 3 * C, mask=c < C, other=0.0)
    dy = from_g[None, :] * g + (from_y[None, :] * (y - mean[None, :]) + offset[None, :])
    return tl.where(mask, dy, 0.0)


@triton.jit
def incoming(rows_ptr, row, grad_ptr, own_ptr, dz_ptr, factors_ptr, p, exists, o, mask, C: tl.constexpr,
             PITCH: tl.constexpr, G_PITCH: tl.constexpr, PIXELS: tl.constexpr, FACTORS: tl.constexpr,
             ACC: tl.constexpr):  # fmt: skip
    """The gradient behind a stage: its node's, or for the first stage of a separable convolution dz."""
    node = column(rows_ptr, row, NODE)
    if node >= 0:
        g = node_gradient(grad_ptr, own_ptr, factors_ptr, node, column(rows_ptr, row, OWN),
                          column(rows_ptr, row, OP_WEIGHT), p, exists, o, mask,
                          C, G_PITCH, PIXELS, FACTORS, ACC)  # fmt: skip
    else:
        g = load_tile(dz_ptr, p * PITCH, o, mask, ACC)
    return g


@triton.jit
def stage_gradient(rows_ptr, row, grad_ptr, own_ptr, dz_ptr, saved_ptr, coefficients_ptr, factors_ptr, p, exists, o,
                   plane, C: tl.constexpr, PITCH: tl.constexpr, G_PITCH: tl.constexpr, PIXELS: tl.constexpr,
                   FACTORS: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """dy of a stage, from the y that was saved."""
    mask = mask_of(exists, o, C, BLOCK)
    g = incoming(rows_ptr, row, grad_ptr, own_ptr, dz_ptr, factors_ptr, p, exists, o, mask,
                 C, PITCH, G_PITCH, PIXELS, FACTORS, ACC)  # fmt: skip
    y = load_tile(saved_ptr + column(rows_ptr, row, Y) * plane, p * PITCH, o, mask, ACC)
    return norm_backward(g, y, coefficients_ptr, column(rows_ptr, row, NORM), o, mask, C)


@triton.jit
def product(rows_ptr, row, grad_ptr, own_ptr, dz_ptr, saved_ptr, coefficients_ptr, factors_ptr, pw_ptr, dy, p, exists,
            i, half, plane, C_IN: tl.constexpr, C_OUT: tl.constexpr, PITCH: tl.constexpr, G_PITCH: tl.constexpr,
            PIXELS: tl.constexpr, FACTORS: tl.constexpr, PARTS: tl.constexpr, BLOCK_O: tl.constexpr, ACC: tl.constexpr,
            DOT: tl.constexpr):  # fmt: skip
    """dd = dy W for inputs i over all outputs, of which dy are the first."""
    T = saved_ptr.dtype.element_ty
    dd = tl.zeros((p.shape[0], i.shape[0]), ACC)
    for o0 in tl.static_range(0, C_OUT, BLOCK_O):
        o = o0 + tl.arange(0, BLOCK_O)
        if o0 > 0:
            dy = stage_gradient(rows_ptr, row, grad_ptr, own_ptr, dz_ptr, saved_ptr, coefficients_ptr, factors_ptr, p,
                                exists, o, plane, C_OUT, PITCH, G_PITCH, PIXELS, FACTORS, BLOCK_O, ACC)  # fmt: skip
        weight = pointwise_weight(pw_ptr, o, i, half, False, C_IN, C_OUT, PARTS, T, DOT)
        dd += tl.dot(dy.to(T).to(DOT), tl.trans(weight), input_precision="ieee", out_dtype=ACC)
    return dd


@triton.jit
def store_product_share(d_pw_ptr, rows_ptr, row, d_pw, o, i, C_IN: tl.constexpr, C_OUT: tl.constexpr):
    """A program's share of a pointwise weight's gradient."""
    at = d_pw_ptr + column(rows_ptr, row, PW) * (C_IN * C_OUT)
    tl.store(at + (o[:, None] * C_IN + i[None, :]), d_pw, mask=(o < C_OUT)[:, None] & (i < C_IN)[None, :])


@triton.jit
def add_tile(ptr, offset, c, value, mask, more, ACC: tl.constexpr):
    """Adds to what the stages before have left; where there are no more than this one, writes."""
    store_tile(ptr, offset, c, value + load_tile(ptr, offset, c, mask & more, ACC), mask)
