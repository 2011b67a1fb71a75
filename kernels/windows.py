"""Depthwise convolutions, forward and backward, over the images of a program.

At stride 1 by strips: STRIP outputs below each other share the rows of input that their windows cover, so that a value
is read, converted and activated once for several taps. There is code for 3x3 and for the largest kernel of a launch,
KERNEL x KERNEL; the taps that one between them lacks weigh nothing. Tiles are of BLOCK strips; at larger strides of as
many pixels as those hold.
"""

import triton
import triton.language as tl

from fastdarts.kernels.parts import load_tile, mask_of, neighbour, pixels_of, store_tile
from fastdarts.kernels.tables import CONV_5, CONV_7, DILATED_3, DILATED_5

STRIP = tl.constexpr(4)


@triton.jit
def window(geometry):
    """Kernel size and dilation of a convolution's geometry."""
    kernel = tl.where(geometry == CONV_7, 7, tl.where((geometry == CONV_5) | (geometry == DILATED_5), 5, 3))
    return kernel, tl.where(geometry >= DILATED_3, 2, 1)


@triton.jit
def strip_tiles(images, D, H: tl.constexpr, W: tl.constexpr, BLOCK: tl.constexpr):
    """Tiles of BLOCK strips that cover so many images."""
    return tl.cdiv(images * tl.cdiv(H, STRIP * D) * D * W, BLOCK)


@triton.jit
def strips(step, images, D, H: tl.constexpr, W: tl.constexpr, BLOCK: tl.constexpr):
    """A tile of strips: the first pixel q of each, at (h, w), and whether it exists; the others follow D rows apart."""
    t = step * BLOCK + tl.arange(0, BLOCK)
    w, line = t % W, t // W
    bands = tl.cdiv(H, STRIP * D)
    h = line // D % bands * (STRIP * D) + line % D
    image = line // D // bands
    return (image * H + h) * W + w, h, w, (image < images) & (h < H)


@triton.jit
def row_of(q, h, exists, j: tl.constexpr, D, H: tl.constexpr, W: tl.constexpr):
    """Pixel number j of strips, and whether it exists."""
    return q + j * D * W, exists & (h + j * D < H)


@triton.jit
def convolved_by(KERNEL: tl.constexpr, ptr, dw_ptr, K, D, q, h, w, exists, c, scale, shift, C: tl.constexpr,
                 H: tl.constexpr, W: tl.constexpr, PITCH: tl.constexpr, NORMALISED: tl.constexpr,
                 BACKWARD: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """`convolved` by code for KERNEL x KERNEL."""
    zero = tl.zeros((q.shape[0], BLOCK_C), ACC)
    d = ()
    for _ in tl.static_range(STRIP):
        d = d + (zero,)
    for kx in range(K):
        for m in tl.static_range(KERNEL + STRIP - 1):
            v = neighbour(ptr, q, h, w, (m - KERNEL // 2) * D, (kx - K // 2) * D, exists, c, scale, shift,
                          C, H, W, PITCH, NORMALISED, not BACKWARD, BLOCK_C, ACC)  # fmt: skip
            more = ()
            for j in tl.static_range(STRIP):
                total = d[j]
                if m >= j and m - j < KERNEL:
                    ky = m - j - KERNEL // 2 + K // 2
                    tap = ky * K + kx
                    if BACKWARD:
                        tap = K * K - 1 - tap
                    weight = tl.load(dw_ptr + tap * C + c, mask=(c < C) & (ky >= 0) & (ky < K), other=0.0)
                    total += v * weight[None, :]
                more = more + (total,)
            d = more
    return d


@triton.jit
def convolved(ptr, dw_ptr, K, D, q, h, w, exists, c, scale, shift, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
              PITCH: tl.constexpr, KERNEL: tl.constexpr, NORMALISED: tl.constexpr, BACKWARD: tl.constexpr,
              BLOCK_C: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """The depthwise convolution of strips, a tensor a pixel; BACKWARD: its transpose, of what has no activation."""
    if K == 3:
        d = convolved_by(3, ptr, dw_ptr, K, D, q, h, w, exists, c, scale, shift,
                         C, H, W, PITCH, NORMALISED, BACKWARD, BLOCK_C, ACC)  # fmt: skip
    else:
        d = convolved_by(KERNEL, ptr, dw_ptr, K, D, q, h, w, exists, c, scale, shift,
                         C, H, W, PITCH, NORMALISED, BACKWARD, BLOCK_C, ACC)  # fmt: skip
    return d


@triton.jit
def depthwise(geometry, in_ptr, d_ptr, dw_ptr, images, c, scale, shift, C: tl.constexpr, H: tl.constexpr,
              W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr, PITCH: tl.constexpr,
              D_PITCH: tl.constexpr, KERNEL: tl.constexpr, NORMALISED: tl.constexpr, BLOCK: tl.constexpr,
              BLOCK_C: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """d of a program's images."""
    K, D = window(geometry)
    if STRIDE == 1:
        for step in range(strip_tiles(images, D, H, W, BLOCK)):
            q, h, w, exists = strips(step, images, D, H, W, BLOCK)
            d = convolved(in_ptr, dw_ptr, K, D, q, h, w, exists, c, scale, shift,
                          C, H, W, PITCH, KERNEL, NORMALISED, False, BLOCK_C, ACC)  # fmt: skip
            for j in tl.static_range(STRIP):
                p, there = row_of(q, h, exists, j, D, H, W)
                store_tile(d_ptr, p * D_PITCH, c, d[j], mask_of(there, c, C, BLOCK_C))
    else:
        PIXELS: tl.constexpr = STRIP * BLOCK
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
def seen_from(dd_ptr, dw_ptr, K, D, image, h, w, exists, c, C: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr,
              STRIDE: tl.constexpr, PITCH: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """The transpose of a depthwise convolution with a stride, at input pixels (image, h, w)."""
    d = tl.zeros((h.shape[0], BLOCK_C), ACC)
    for ky in range(K):
        for kx in range(K):
            inside, r = seen_by(image, h, w, (ky - K // 2) * D, (kx - K // 2) * D, exists, HO, WO, STRIDE)
            v = load_tile(dd_ptr, r * PITCH, c, mask_of(inside, c, C, BLOCK_C), ACC)
            weight = tl.load(dw_ptr + (ky * K + kx) * C + c, mask=c < C, other=0.0)
            d += v * weight[None, :]
    return d


@triton.jit
def seen_by(image, h, w, dy, dx, exists, HO: tl.constexpr, WO: tl.constexpr, S: tl.constexpr):
    """Which input pixels (h, w) a tap (dy, dx) away from its output has seen, and the output pixels' numbers."""
    up, left = h - dy, w - dx
    inside = exists & (up >= 0) & (up < HO * S) & (left >= 0) & (left < WO * S)
    if S == 1:
        return inside, (image * HO + h) * WO + w - (dy * WO + dx)
    else:
        return inside & (up % S == 0) & (left % S == 0), (image * HO + up // S) * WO + left // S


@triton.jit
def strip_weight_gradient(
    KERNEL: tl.constexpr, in_ptr, dd_ptr, d_dw_ptr, K, D, images, c, scale, shift, C: tl.constexpr, H: tl.constexpr,
    W: tl.constexpr, PITCH: tl.constexpr, DD_PITCH: tl.constexpr, NORMALISED: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A column of taps over all tiles, so that it adds up once."""
    zero = tl.zeros((BLOCK, BLOCK_C), ACC)
    for kx in range(K):
        sums = ()
        for _ in tl.static_range(KERNEL):
            sums = sums + (zero,)
        for step in range(strip_tiles(images, D, H, W, BLOCK)):
            q, h, w, exists = strips(step, images, D, H, W, BLOCK)
            dd = ()
            for j in tl.static_range(STRIP):
                p, there = row_of(q, h, exists, j, D, H, W)
                dd = dd + (load_tile(dd_ptr, p * DD_PITCH, c, mask_of(there, c, C, BLOCK_C), ACC),)
            for m in tl.static_range(KERNEL + STRIP - 1):
                v = neighbour(in_ptr, q, h, w, (m - KERNEL // 2) * D, (kx - K // 2) * D, exists, c, scale, shift,
                              C, H, W, PITCH, NORMALISED, True, BLOCK_C, ACC)  # fmt: skip
                more = ()
                for n in tl.static_range(KERNEL):
                    total = sums[n]
                    if m >= n and m - n < STRIP:
                        total += v * dd[m - n]
                    more = more + (total,)
                sums = more
        for n in tl.static_range(KERNEL):
            ky = n - KERNEL // 2 + K // 2
            mask = (c < C) & (ky >= 0) & (ky < K)
            tl.store(d_dw_ptr + (ky * K + kx) * C + c, tl.sum(sums[n], 0), mask=mask)


@triton.jit
def depthwise_weight_gradient(
    geometry, in_ptr, dd_ptr, d_dw_ptr, images, c, scale, shift, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr, PITCH: tl.constexpr, DD_PITCH: tl.constexpr,
    KERNEL: tl.constexpr, NORMALISED: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A program's share of a depthwise weight's gradient."""
    K, D = window(geometry)
    if STRIDE == 1:
        if K == 3:
            strip_weight_gradient(3, in_ptr, dd_ptr, d_dw_ptr, K, D, images, c, scale, shift,
                                  C, H, W, PITCH, DD_PITCH, NORMALISED, BLOCK, BLOCK_C, ACC)  # fmt: skip
        else:
            strip_weight_gradient(KERNEL, in_ptr, dd_ptr, d_dw_ptr, K, D, images, c, scale, shift,
                                  C, H, W, PITCH, DD_PITCH, NORMALISED, BLOCK, BLOCK_C, ACC)  # fmt: skip
    else:
        PIXELS: tl.constexpr = STRIP * BLOCK
        count = images * (HO * WO)
        for tap in range(K * K):
            total = tl.zeros((PIXELS, BLOCK_C), ACC)
            for step in range(tl.cdiv(count, PIXELS)):
                p, exists, q, h, w = pixels_of(step, count, H, W, HO, WO, STRIDE, PIXELS)
                v = neighbour(in_ptr, q, h, w, (tap // K - K // 2) * D, (tap % K - K // 2) * D, exists, c, scale, shift,
                              C, H, W, PITCH, NORMALISED, True, BLOCK_C, ACC)  # fmt: skip
                total += v * load_tile(dd_ptr, p * DD_PITCH, c, mask_of(exists, c, C, BLOCK_C), ACC)
            tl.store(d_dw_ptr + tap * C + c, tl.sum(total, 0), mask=c < C)
