"""Add up partial results of programs in a fixed order."""

import triton
import triton.language as tl

from fastdarts.kernels.parts import load_tile, mask_of, store_tile
from fastdarts.kernels.tables import NARROW


@triton.jit(do_not_specialize=["pixels", "parts"])
def join_gradients_kernel(
    parts_ptr, before_ptr, dx_ptr, pixels, parts,
    C: tl.constexpr, PITCH: tl.constexpr, BEFORE_PITCH: tl.constexpr, DX_PITCH: tl.constexpr,
    HAS_BEFORE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program makes BLOCK_P pixels x BLOCK_C channels of the gradient of a state without pools from its edges'
    [parts, pixels, PITCH] and what it has from elsewhere.
    """
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = mask_of(p < pixels, c, C, BLOCK_C)
    plane = pixels.to(tl.int64) * PITCH
    dx = joined(parts_ptr, before_ptr, parts, plane, p, c, mask, PITCH, BEFORE_PITCH, HAS_BEFORE, ACC)
    store_tile(dx_ptr, p * DX_PITCH, c, dx, mask)


@triton.jit
def joined(parts_ptr, before_ptr, parts, plane, p, c, mask, PITCH: tl.constexpr, BEFORE_PITCH: tl.constexpr,
           HAS_BEFORE: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """Pixels p of a state's gradient: its edges' parts, `plane` elements apart, and what it has from elsewhere."""
    dx = tl.zeros((p.shape[0], c.shape[0]), ACC)
    if HAS_BEFORE:
        dx += load_tile(before_ptr, p * BEFORE_PITCH, c, mask, ACC)
    for part in range(parts):
        dx += load_tile(parts_ptr + part * plane, p * PITCH, c, mask, ACC)
    return dx


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
