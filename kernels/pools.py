"""Backward of pools, and with it all of a state's gradient."""

import triton
import triton.language as tl

from fastdarts.kernels.gradients import add_tile, node_gradient, norm_backward
from fastdarts.kernels.joins import joined
from fastdarts.kernels.mix import op_weight
from fastdarts.kernels.parts import (
    column,
    load_tile,
    mask_of,
    pixels_of,
    pool_tap,
    pooled,
    share,
    store_tile,
    window_size,
)
from fastdarts.kernels.tables import (
    AVG,
    EDGE_NODE,
    EDGE_NORM,
    EDGE_OWN,
    EDGE_WEIGHT,
    EDGES,
    FIRST_EDGE,
    GEOMETRY,
    MAX,
    NARROW,
    NORM,
)


@triton.jit(do_not_specialize=["pixels", "rows", "parts"])
def pool_backward_kernel(
    x_ptr, grad_ptr, own_ptr, parts_ptr, before_ptr, dx_ptr, dd_ptr, largest_ptr, coefficients_ptr,
    weights_ptr, factors_ptr, rows_ptr, edges_ptr, pixels, rows, parts,
    C: tl.constexpr, X_PITCH: tl.constexpr, PITCH: tl.constexpr, PARTS_PITCH: tl.constexpr, BEFORE_PITCH: tl.constexpr,
    DX_PITCH: tl.constexpr, G_PITCH: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr,
    WO: tl.constexpr, STRIDE: tl.constexpr, FACTORS: tl.constexpr, IMAGES: tl.constexpr, HAS_BEFORE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program makes BLOCK_C channels of a state's gradient over IMAGES images.

    dx: that of the pools, of the edges, [parts, input pixels, PARTS_PITCH], and what the state has from elsewhere.
    For each pool, the gradient of its values (of a mean's pixels) goes into scratch dd [pixels, PITCH], and the place
    of the maximum in its window, 0 to 8, into largest.
    """
    begin, count = share(pixels, IMAGES, HO, WO)
    begin_in = tl.program_id(0).to(tl.int64) * (IMAGES * H * W)
    plane = (pixels // (HO * WO) * (H * W)).to(tl.int64) * PARTS_PITCH
    x_ptr += begin_in * X_PITCH
    parts_ptr += begin_in * PARTS_PITCH
    before_ptr += begin_in * BEFORE_PITCH
    dx_ptr += begin_in * DX_PITCH
    grad_ptr += begin * G_PITCH
    own_ptr += begin * G_PITCH
    dd_ptr += begin * PITCH
    largest_ptr += begin * PITCH
    factors_ptr += tl.program_id(0) * (IMAGES * FACTORS)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    for row in range(rows):
        geometry = column(rows_ptr, row, GEOMETRY)
        for step in range((IMAGES * HO * WO + BLOCK_P - 1) // BLOCK_P):
            p, exists, q, h, w = pixels_of(step, count, H, W, HO, WO, STRIDE, BLOCK_P)
            pool_gradient(x_ptr, grad_ptr, own_ptr, dd_ptr, largest_ptr, coefficients_ptr, weights_ptr, factors_ptr,
                          rows_ptr, edges_ptr, row, geometry, p, q, h, w, exists, c,
                          C, H, W, X_PITCH, PITCH, G_PITCH, HO * WO, FACTORS, BLOCK_C, ACC)  # fmt: skip
        tl.debug_barrier()
        for step in range((IMAGES * H * W + BLOCK_P - 1) // BLOCK_P):
            p, exists, _, h, w = pixels_of(step, count // (HO * WO) * (H * W), H, W, H, W, 1, BLOCK_P)
            dx = pool_backward(dd_ptr, largest_ptr, geometry, p // (H * W), h, w, exists, c,
                               C, HO, WO, PITCH, BLOCK_C, ACC, STRIDE)  # fmt: skip
            mask = mask_of(exists, c, C, BLOCK_C)
            if row == 0:
                dx += joined(parts_ptr, before_ptr, parts, plane, p, c, mask,
                             PARTS_PITCH, BEFORE_PITCH, HAS_BEFORE, ACC)  # fmt: skip
            add_tile(dx_ptr, p * DX_PITCH, c, dx, mask, row > 0, ACC)
        tl.debug_barrier()  # the next pool overwrites dd and adds to dx


@triton.jit
def pool_gradient(x_ptr, grad_ptr, own_ptr, dd_ptr, largest_ptr, coefficients_ptr, weights_ptr, factors_ptr,
                  rows_ptr, edges_ptr, row, geometry, p, q, h, w, exists, c, C: tl.constexpr, H: tl.constexpr,
                  W: tl.constexpr, X_PITCH: tl.constexpr, PITCH: tl.constexpr, G_PITCH: tl.constexpr,
                  PIXELS: tl.constexpr, FACTORS: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """Store the gradient of a pool's values from all edges that use it, and the first place of each maximum."""
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
    elif column(rows_ptr, row, NORM) >= 0:
        y = pooled(x_ptr, q, h, w, exists, c, geometry, C, H, W, X_PITCH, BLOCK, ACC)
    d = tl.zeros((p.shape[0], BLOCK), ACC)
    first = column(rows_ptr, row, FIRST_EDGE)
    for e in range(first, first + column(rows_ptr, row, EDGES)):
        edge = edges_ptr + e * NARROW
        index = tl.load(edge + EDGE_WEIGHT)
        g = node_gradient(grad_ptr, own_ptr, factors_ptr, tl.load(edge + EDGE_NODE), tl.load(edge + EDGE_OWN), index,
                          p, exists, c, mask, C, G_PITCH, PIXELS, FACTORS, ACC)  # fmt: skip
        norm = tl.load(edge + EDGE_NORM)
        if norm >= 0:
            g = norm_backward(g, y, coefficients_ptr, norm, c, mask, C)
        else:
            g = g * op_weight(weights_ptr, index, ACC)
        d += g
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


@triton.jit
def seen_by(image, h, w, dy, dx, exists, HO: tl.constexpr, WO: tl.constexpr, S: tl.constexpr):
    """Which input pixels (h, w) a tap (dy, dx) away from its output has seen, and the output pixels' numbers."""
    up, left = h - dy, w - dx
    inside = exists & (up >= 0) & (up < HO * S) & (left >= 0) & (left < WO * S)
    if S == 1:
        return inside, (image * HO + h) * WO + w - (dy * WO + dx)
    else:
        return inside & (up % S == 0) & (left % S == 0), (image * HO + up // S) * WO + left // S
