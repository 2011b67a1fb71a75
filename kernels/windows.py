"""Depthwise convolutions, forward and backward, over the images of a program: by blocks (blocks.py) at stride 1, tap by
tap at larger strides.
"""

import triton
import triton.language as tl

from fastdarts.kernels.blocks import ROWS, convolve_images, weight_gradient
from fastdarts.kernels.parts import activation, load_tile, mask_of, neighbour, pixels_of, store_tile
from fastdarts.kernels.tables import CONV_5, CONV_7, DILATED_3, DILATED_5, WINDOW_KINDS, WINDOWS


@triton.jit
def window(geometry):
    """Kernel size and dilation of a convolution's geometry."""
    kernel = tl.where(geometry == CONV_7, 7, tl.where((geometry == CONV_5) | (geometry == DILATED_5), 5, 3))
    return kernel, tl.where(geometry >= DILATED_3, 2, 1)


@triton.jit
def depthwise(geometry, in_ptr, d_ptr, dw_ptr, norms_ptr, norm, images, first, C: tl.constexpr, H: tl.constexpr,
              W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr, PITCH: tl.constexpr,
              D_PITCH: tl.constexpr, GEOMETRIES: tl.constexpr, NORMALISED: tl.constexpr, AGAIN: tl.constexpr,
              EPS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """d of a program's images, channels from `first` on; NORMALISED: of what batch norm `norm` makes of its input."""
    if STRIDE == 1:
        for n in tl.static_range(WINDOW_KINDS):
            if WINDOWS[n][0] & GEOMETRIES:
                if geometry == WINDOWS[n][0]:
                    convolve_images(in_ptr, d_ptr, dw_ptr, norms_ptr, norm, images, first,
                                    WINDOWS[n][4 if AGAIN else 3], WINDOWS[n][1], WINDOWS[n][2],
                                    C, H, W, PITCH, D_PITCH, NORMALISED, EPS, BLOCK, BLOCK_C, ACC)  # fmt: skip
    else:
        K, D = window(geometry)
        c = first + tl.arange(0, BLOCK_C)
        scale, shift = activation(norms_ptr, norm, c, C, NORMALISED, EPS)
        PIXELS: tl.constexpr = 2 * ROWS * BLOCK
        count = images * (HO * WO)
        for step in range(tl.cdiv(count, PIXELS)):
            p, exists, q, h, w = pixels_of(step, count, H, W, HO, WO, STRIDE, PIXELS)
            total = tl.zeros((PIXELS, BLOCK_C), ACC)
            for ky in range(K):
                for kx in range(K):
                    v = neighbour(in_ptr, q, h, w, (ky - K // 2) * D, (kx - K // 2) * D, exists, c, scale, shift,
                                  C, H, W, PITCH, NORMALISED, True, BLOCK_C, ACC)  # fmt: skip
                    weight = tl.load(dw_ptr + (ky * K + kx) * C + c, mask=c < C, other=0.0)
                    total += v * weight[None, :]
            store_tile(d_ptr, p * D_PITCH, c, total, mask_of(exists, c, C, BLOCK_C))


@triton.jit
def seen_from(dd_ptr, dw_ptr, K, D, p, h, w, down, right, exists, c, C: tl.constexpr, HO: tl.constexpr,
              WO: tl.constexpr, STRIDE: tl.constexpr, PITCH: tl.constexpr, BLOCK_C: tl.constexpr,
              ACC: tl.constexpr):  # fmt: skip
    """The transpose of a depthwise convolution with a stride, at input pixels (down, right) of those of outputs p.

    (h, w) counts outputs. Of all taps these pixels see those that lie a multiple of the stride away.
    """
    d = tl.zeros((p.shape[0], BLOCK_C), ACC)
    for ky in range(K):
        dy = (ky - K // 2) * D - down
        if dy % STRIDE == 0:
            for kx in range(K):
                dx = (kx - K // 2) * D - right
                if dx % STRIDE == 0:
                    up, left = h - dy // STRIDE, w - dx // STRIDE
                    inside = exists & (up >= 0) & (up < HO) & (left >= 0) & (left < WO)
                    r = p - (dy // STRIDE * WO + dx // STRIDE)
                    v = load_tile(dd_ptr, r * PITCH, c, mask_of(inside, c, C, BLOCK_C), ACC)
                    weight = tl.load(dw_ptr + (ky * K + kx) * C + c, mask=c < C, other=0.0)
                    d += v * weight[None, :]
    return d


@triton.jit
def depthwise_weight_gradient(
    geometry, in_ptr, dd_ptr, d_dw_ptr, norms_ptr, norm, images, first, C: tl.constexpr, H: tl.constexpr,
    W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr, PITCH: tl.constexpr,
    DD_PITCH: tl.constexpr, GEOMETRIES: tl.constexpr, NORMALISED: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A program's share of a depthwise weight's gradient."""
    if STRIDE == 1:
        for n in tl.static_range(WINDOW_KINDS):
            if WINDOWS[n][0] & GEOMETRIES:
                if geometry == WINDOWS[n][0]:
                    weight_gradient(in_ptr, dd_ptr, d_dw_ptr, norms_ptr, norm, images, first,
                                    WINDOWS[n][4], WINDOWS[n][1], WINDOWS[n][2],
                                    C, H, W, PITCH, DD_PITCH, NORMALISED, EPS, BLOCK, BLOCK_C, ACC)  # fmt: skip
    else:
        K, D = window(geometry)
        c = first + tl.arange(0, BLOCK_C)
        scale, shift = activation(norms_ptr, norm, c, C, NORMALISED, EPS)
        PIXELS: tl.constexpr = 2 * ROWS * BLOCK
        count = images * (HO * WO)
        for tap in range(K * K):
            total = tl.zeros((PIXELS, BLOCK_C), ACC)
            for step in range(tl.cdiv(count, PIXELS)):
                p, exists, q, h, w = pixels_of(step, count, H, W, HO, WO, STRIDE, PIXELS)
                v = neighbour(in_ptr, q, h, w, (tap // K - K // 2) * D, (tap % K - K // 2) * D, exists, c, scale, shift,
                              C, H, W, PITCH, NORMALISED, True, BLOCK_C, ACC)  # fmt: skip
                total += v * load_tile(dd_ptr, p * DD_PITCH, c, mask_of(exists, c, C, BLOCK_C), ACC)
            tl.store(d_dw_ptr + tap * C + c, tl.sum(total, 0), mask=c < C)
