"""Strips: blocks (blocks.py) of STRIP x 1 pixels, what stands at them and the pools around them."""

import triton
import triton.language as tl

from fastdarts.kernels.blocks import pointers, times, within
from fastdarts.kernels.parts import larger, mask_of, window_size
from fastdarts.kernels.tables import MAX

STRIP = tl.constexpr(2)


@triton.jit
def load_strip(ptr, q, h, exists, c, C: tl.constexpr, PITCH: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
               BLOCK_C: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """Load the values of strips of pixels, in the type of sums."""
    return converted(stored_strip(ptr, q, h, exists, c, C, PITCH, H, W, BLOCK_C), ACC)


@triton.jit
def stored_strip(ptr, q, h, exists, c, C: tl.constexpr, PITCH: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
                 BLOCK_C: tl.constexpr):  # fmt: skip
    """The same as it is stored."""
    at, rows = pointers(ptr, q.to(tl.int64), c, PITCH), within(h, exists, STRIP, 0, 1, H)
    v = ()
    for j in tl.static_range(STRIP):
        v = v + (tl.load(at + j * (W * PITCH), mask=mask_of(rows[j], c, C, BLOCK_C), other=0.0),)
    return v


@triton.jit
def converted(v, ACC: tl.constexpr):
    """Strips in the type of sums."""
    more = ()
    for j in tl.static_range(STRIP):
        more = more + (v[j].to(ACC),)
    return more


@triton.jit
def pooled_strip(ptr, pool, corner, h, w, exists, c, S: tl.constexpr, C: tl.constexpr, H: tl.constexpr,
                 W: tl.constexpr, PITCH: tl.constexpr, HO: tl.constexpr, BLOCK_C: tl.constexpr,
                 ACC: tl.constexpr):  # fmt: skip
    """Maximum (of which NaN is one) or mean of 3x3 windows around strips' pixels, from their rows, which they share."""
    y = times(tl.zeros((corner.shape[0], BLOCK_C), ACC), STRIP)
    if pool == MAX:
        lines = pool_lines(ptr, corner, h, w, exists, c, float("-inf"), True, S, C, H, W, PITCH, BLOCK_C, ACC)
        largest = ()
        for j in tl.static_range(STRIP):
            largest = largest + (
                tl.where(
                    mask_of(exists & (h + j < HO), c, C, BLOCK_C),
                    larger(larger(lines[S * j], lines[S * j + 1]), lines[S * j + 2]),
                    0.0,
                ),
            )
        y = largest
    else:
        lines = pool_lines(ptr, corner, h, w, exists, c, 0.0, False, S, C, H, W, PITCH, BLOCK_C, ACC)
        means = ()
        for j in tl.static_range(STRIP):
            share = 1.0 / tl.maximum(window_size((h + j) * S, w * S, H, W), 1).to(ACC)  # outside as little as 0
            means = means + ((lines[S * j] + lines[S * j + 1] + lines[S * j + 2]) * share[:, None],)
        y = means
    return y


@triton.jit
def pool_lines(ptr, corner, h, w, exists, c, OTHER: tl.constexpr, LARGEST: tl.constexpr, S: tl.constexpr,
               C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, PITCH: tl.constexpr, BLOCK_C: tl.constexpr,
               ACC: tl.constexpr):  # fmt: skip
    """Maximum or sum of three pixels side by side, in each row of input that strips' windows meet."""
    at = pointers(ptr, corner, c, PITCH)
    rows = within(h * S, exists, S * (STRIP - 1) + 3, 1, 1, H)
    columns = within(w * S, exists, 3, 1, 1, W)
    lines = ()
    for m in tl.static_range(S * (STRIP - 1) + 3):
        row = ()
        for n in tl.static_range(3):
            mask = mask_of(rows[m] & columns[n], c, C, BLOCK_C)
            row = row + (tl.load(at + ((m - 1) * W + n - 1) * PITCH, mask=mask, other=OTHER).to(ACC),)
        if LARGEST:
            lines = lines + (larger(larger(row[0], row[1]), row[2]),)
        else:
            lines = lines + (row[0] + row[1] + row[2],)
    return lines
