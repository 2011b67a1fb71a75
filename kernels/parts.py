"""The parts of the kernels: pixels, masks, taps, weights."""

import triton
import triton.language as tl

from fastdarts.kernels.tables import MAX, ROW, STATE


@triton.jit
def column(rows_ptr, row, name: tl.constexpr):
    """A number of a stage's row."""
    return tl.load(rows_ptr + row * ROW + name)


@triton.jit
def state_of(states, rows_ptr, row):
    """The state that a stage reads."""
    ptr = states[0]
    if len(states) > 1:
        state = column(rows_ptr, row, STATE)
        for n in tl.static_range(1, len(states)):
            if state == n:
                ptr = states[n]
    return ptr


@triton.jit
def relu(v):
    """NaN stays NaN, as in PyTorch."""
    return larger(v, 0.0)


@triton.jit
def behind_relu(v, gradient):
    """The gradient of a relu of v; NaN lets it pass, as in PyTorch."""
    return tl.where(v <= 0, 0.0, gradient)


@triton.jit
def larger(a, b):
    """NaN if one of them is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def mask_of(pixels, c, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Which elements of a tile exist; constant along whole blocks of channels, so that their loads stay wide."""
    if C % BLOCK_C == 0:
        return pixels[:, None]
    else:
        return pixels[:, None] & (c < C)[None, :]


@triton.jit
def load_tile(ptr, offset, c, mask, ACC: tl.constexpr, OTHER: tl.constexpr = 0.0):
    """[pixels, channels] from element offsets of pixels (64-bit); OTHER where there is none."""
    return tl.load(ptr + (offset[:, None] + c[None, :]), mask=mask, other=OTHER).to(ACC)


@triton.jit
def store_tile(ptr, offset, c, value, mask):
    tl.store(ptr + (offset[:, None] + c[None, :]), value.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def statistics(stats_ptr, norm, c, C: tl.constexpr, EPS: tl.constexpr):
    """Mean and reciprocal standard deviation of a batch norm's channels."""
    at = stats_ptr + norm * (2 * C) + c
    mean = tl.load(at, mask=c < C, other=0.0)
    variance = tl.load(at + C, mask=c < C, other=1.0)
    return mean, tl.rsqrt(variance + EPS)


@triton.jit
def batch_norm(norms_ptr, norm, c, C: tl.constexpr, EPS: tl.constexpr):
    """Mean, scale and shift of a batch norm's channels: it makes (y - mean) * scale + shift.

    norms: statistics [norms, 2, C]; of norms that learn, where EPS is None, means, scales and shifts [norms, 3, C].
    """
    if EPS is None:
        at = norms_ptr + norm * (3 * C) + c
        mean = tl.load(at, mask=c < C, other=0.0)
        scale = tl.load(at + C, mask=c < C, other=0.0)
        shift = tl.load(at + 2 * C, mask=c < C, other=0.0)
        return mean, scale, shift
    else:
        mean, rstd = statistics(norms_ptr, norm, c, C, EPS)
        return mean, rstd, 0.0


@triton.jit
def normaliser(norms_ptr, norm, c, C: tl.constexpr, EPS: tl.constexpr):
    """Factor and offset of a batch norm's channels: one multiply-add normalises."""
    mean, scale, shift = batch_norm(norms_ptr, norm, c, C, EPS)
    if EPS is None:
        return scale, shift - mean * scale
    else:
        return scale, -mean * scale


@triton.jit
def activation(norms_ptr, norm, c, C: tl.constexpr, NORMALISED: tl.constexpr, EPS: tl.constexpr):
    """Return the factor and the shift of an input before its relu."""
    if NORMALISED:
        return normaliser(norms_ptr, norm, c, C, EPS)
    else:
        return 1.0, 0.0


@triton.jit
def pixels_of(step, count, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr,
              BLOCK_P: tl.constexpr):  # fmt: skip
    """A tile of whole images: output pixels p, whether they exist, and the input pixels q, at (h, w), amid windows."""
    p = step * BLOCK_P + tl.arange(0, BLOCK_P)
    h, w = (p // WO) % HO * STRIDE, p % WO * STRIDE
    return p, p < count, (p // (HO * WO) * H + h) * W + w, h, w


@triton.jit
def share(pixels, IMAGES: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr):
    """A program's first output pixel, and how many it has."""
    begin = tl.program_id(0).to(tl.int64) * (IMAGES * HO * WO)
    return begin, tl.minimum(pixels - begin, IMAGES * HO * WO).to(tl.int32)


@triton.jit
def activated(at, mask, scale, shift, NORMALISED: tl.constexpr, RELU: tl.constexpr, ACC: tl.constexpr):
    """Load the values at pointers, or with RELU the relu of them or of their normalised ones; zero where masked."""
    if NORMALISED:
        return tl.where(mask, relu(tl.load(at, mask=mask, other=0.0).to(ACC) * scale[None, :] + shift[None, :]), 0.0)
    elif RELU:
        return relu(tl.load(at, mask=mask, other=0.0).to(ACC))
    else:
        return tl.load(at, mask=mask, other=0.0).to(ACC)


@triton.jit
def neighbour(ptr, q, h, w, dy, dx, exists, c, scale, shift, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
              PITCH: tl.constexpr, NORMALISED: tl.constexpr, RELU: tl.constexpr, BLOCK_C: tl.constexpr,
              ACC: tl.constexpr):  # fmt: skip
    """Input (dy, dx) away from pixels q at (h, w), activated; zero outside the image."""
    inside = exists & (h + dy >= 0) & (h + dy < H) & (w + dx >= 0) & (w + dx < W)
    mask = mask_of(inside, c, C, BLOCK_C)
    offset = (q + (dy * W + dx)) * PITCH
    return activated(ptr + (offset[:, None] + c[None, :]), mask, scale, shift, NORMALISED, RELU, ACC)


@triton.jit
def pointwise_weight(pw_ptr, o, i, part, whole, C_IN: tl.constexpr, C_OUT: tl.constexpr, PARTS: tl.constexpr,
                     T: tl.constexpr, DOT: tl.constexpr):  # fmt: skip
    """Weights [i, o], rounded as stored. With parts, an output reads the inputs of one of them, unless `whole`."""
    mask = (i < C_IN)[:, None] & (o < C_OUT)[None, :]
    if PARTS > 1:
        mask = mask & ((o * PARTS // C_OUT == part) | whole)[None, :]
    return tl.load(pw_ptr + (o[None, :] * C_IN + i[:, None]), mask=mask, other=0.0).to(T).to(DOT)


@triton.jit
def pooled(x_ptr, q, h, w, exists, c, geometry, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, PITCH: tl.constexpr,
           BLOCK_C: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """Maximum (of which NaN is one) or mean of the 3x3 window's pixels inside the image."""
    y = tl.zeros((q.shape[0], BLOCK_C), ACC)
    if geometry == MAX:
        y += float("-inf")
        for tap in range(9):
            _, v = pool_tap(x_ptr, q, h, w, tap, exists, c, C, H, W, PITCH, BLOCK_C, ACC, float("-inf"))
            y = larger(y, v)
    else:
        for ky in range(3):  # in the order of strips.py: statistics are those of what a node normalises
            line = tl.zeros((q.shape[0], BLOCK_C), ACC)
            for kx in range(3):
                _, v = pool_tap(x_ptr, q, h, w, 3 * ky + kx, exists, c, C, H, W, PITCH, BLOCK_C, ACC, 0.0)
                line += v
            y += line
        y = y * (1.0 / window_size(h, w, H, W).to(ACC))[:, None]
    return tl.where(mask_of(exists, c, C, BLOCK_C), y, 0.0)


@triton.jit
def pool_tap(x_ptr, q, h, w, tap, exists, c, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, PITCH: tl.constexpr,
             BLOCK_C: tl.constexpr, ACC: tl.constexpr, OTHER: tl.constexpr):  # fmt: skip
    """Which pixels of a 3x3 window's tap, 0 to 8, are inside the image, and their values."""
    dy, dx = tap // 3 - 1, tap % 3 - 1
    inside = exists & (h + dy >= 0) & (h + dy < H) & (w + dx >= 0) & (w + dx < W)
    return inside, load_tile(x_ptr, (q + (dy * W + dx)) * PITCH, c, mask_of(inside, c, C, BLOCK_C), ACC, OTHER)


@triton.jit
def window_size(h, w, H: tl.constexpr, W: tl.constexpr):
    """Pixels of the 3x3 window around (h, w) that are inside the image."""
    rows = tl.minimum(h + 2, H) - tl.maximum(h - 1, 0)
    columns = tl.minimum(w + 2, W) - tl.maximum(w - 1, 0)
    return rows * columns
