"""Depthwise convolutions at stride 1 by blocks: ROWS x COLUMNS outputs, dilation apart, share what their windows
cover.

A value is read, converted and activated once for all of a block's taps that meet it: of 4x4 blocks and 5x5 windows 64
values for 400 taps. Kernel and dilation are constants, so that a block's addresses are one pointer and constants. Tiles
are of BLOCK blocks.

Passes are functions in the machine code too (noinline), which are given numbers and pointers alone: the time that
Triton's compiler takes grows with the third power of what it sees at once.
"""

import triton
import triton.language as tl

from fastdarts.kernels.parts import activated, activation, mask_of

ROWS = tl.constexpr(4)


@triton.jit
def block_tiles(images, COLUMNS: tl.constexpr, D: tl.constexpr, H: tl.constexpr, W: tl.constexpr, BLOCK: tl.constexpr):
    """Tiles of BLOCK blocks that cover so many images."""
    return tl.cdiv(images * (tl.cdiv(H, ROWS * D) * tl.cdiv(W, COLUMNS * D) * D * D), BLOCK)


@triton.jit
def blocks(step, images, DOWN: tl.constexpr, ACROSS: tl.constexpr, D: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
           BLOCK: tl.constexpr):  # fmt: skip
    """A tile of DOWN x ACROSS blocks: the first pixel q of each, at (h, w), and whether it exists; others D apart."""
    ROW: tl.constexpr = (W + ACROSS * D - 1) // (ACROSS * D) * D
    ALL: tl.constexpr = ROW * ((H + DOWN * D - 1) // (DOWN * D) * D)
    t = step * BLOCK + tl.arange(0, BLOCK)
    x, y, image = t % ROW, t % ALL // ROW, t // ALL
    h, w = y // D * (DOWN * D) + y % D, x // D * (ACROSS * D) + x % D
    return (image * H + h) * W + w, h, w, (image < images) & (h < H) & (w < W)


@triton.jit
def pointers(ptr, q, c, PITCH: tl.constexpr):
    """To channels c of blocks' first pixels; the block's others are constants away (`away`)."""
    return ptr + ((q * PITCH)[:, None] + c[None, :])


@triton.jit
def away(dy: tl.constexpr, dx: tl.constexpr, W: tl.constexpr, PITCH: tl.constexpr):
    """Elements to the pixel (dy, dx) away."""
    return (dy * W + dx) * PITCH


@triton.jit
def within(start, exists, side: tl.constexpr, reach: tl.constexpr, D: tl.constexpr, N: tl.constexpr):
    """Which of the rows, or of the columns, from `reach` before blocks to as many behind are in an image of N."""
    masks = ()
    for n in tl.static_range(side):
        at = start + (n - reach) * D
        masks = masks + (exists & (at >= 0) & (at < N),)
    return masks


@triton.jit
def load_row(at, row, columns, c, scale, shift, m: tl.constexpr, reach: tl.constexpr, D: tl.constexpr, C: tl.constexpr,
             W: tl.constexpr, PITCH: tl.constexpr, NORMALISED: tl.constexpr, RELU: tl.constexpr, BLOCK_C: tl.constexpr,
             ACC: tl.constexpr):  # fmt: skip
    """Row m of what blocks' windows of that reach cover, a tensor a column, activated; zero outside the image."""
    values = ()
    for n in tl.static_range(len(columns)):
        mask = mask_of(row & columns[n], c, C, BLOCK_C)
        here = at + away((m - reach) * D, (n - reach) * D, W, PITCH)
        values = values + (activated(here, mask, scale, shift, NORMALISED, RELU, ACC),)
    return values


@triton.jit
def times(value, N: tl.constexpr):
    """A tuple of the same N times."""
    row = ()
    for _ in tl.static_range(N):
        row = row + (value,)
    return row


@triton.jit
def taps(dw_ptr, c, ky: tl.constexpr, KERNEL: tl.constexpr, C: tl.constexpr, BACKWARD: tl.constexpr):
    """A row of a kernel's taps; BACKWARD: of the transposed convolution's."""
    row = ()
    for kx in tl.static_range(KERNEL):
        tap = ky * KERNEL + kx
        if BACKWARD:
            tap = KERNEL * KERNEL - 1 - tap
        row = row + (tl.load(dw_ptr + tap * C + c, mask=c < C, other=0.0)[None, :],)
    return row


@triton.jit
def add_row(sums, covered, factors, SUMS: tl.constexpr, FACTORS: tl.constexpr):
    """A row of sums, each with the products of as many values of a row of input, from its own place on, and factors.

    Of outputs the factors are a row of taps; of taps a row of outputs' gradients. SUMS, FACTORS: how many there are;
    Triton 3.6 names a function by the types of all tensors it is given, whichever tuple they stand in, so that without
    these numbers 3 sums of 4 factors and 5 of 2, of the gradients of 3x3 and 5x5 weights, would be one function.
    """
    more = ()
    for n in tl.static_range(SUMS):
        total = sums[n]
        for i in tl.static_range(FACTORS):
            total = tl.fma(covered[n + i], factors[i], total)
        more = more + (total,)
    return more


@triton.jit
def convolved(ptr, dw_ptr, q, h, w, exists, c, scale, shift, COLUMNS: tl.constexpr, KERNEL: tl.constexpr,
              D: tl.constexpr, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, PITCH: tl.constexpr,
              NORMALISED: tl.constexpr, BACKWARD: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """The depthwise convolution at blocks, ROWS of COLUMNS tensors; BACKWARD: its transpose, of gradients."""
    weights = ()
    d = times(times(tl.zeros((q.shape[0], BLOCK_C), ACC), COLUMNS), ROWS)
    at = pointers(ptr, q, c, PITCH)
    rows = within(h, exists, ROWS + KERNEL - 1, KERNEL // 2, D, H)
    columns = within(w, exists, COLUMNS + KERNEL - 1, KERNEL // 2, D, W)
    for m in tl.static_range(ROWS + KERNEL - 1):
        if m < KERNEL:
            weights = weights + (taps(dw_ptr, c, m, KERNEL, C, BACKWARD),)
        covered = load_row(at, rows[m], columns, c, scale, shift, m, KERNEL // 2, D,
                           C, W, PITCH, NORMALISED, not BACKWARD, BLOCK_C, ACC)  # fmt: skip
        more = ()
        for j in tl.static_range(ROWS):
            if m >= j and m - j < KERNEL:
                more = more + (add_row(d[j], covered, weights[m - j], COLUMNS, KERNEL),)
            else:
                more = more + (d[j],)
        d = more
    return d


@triton.jit(noinline=True)
def convolve_images(
    in_ptr, d_ptr, dw_ptr, norms_ptr, norm, images, first, COLUMNS: tl.constexpr, KERNEL: tl.constexpr,
    D: tl.constexpr, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, PITCH: tl.constexpr, D_PITCH: tl.constexpr,
    NORMALISED: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """d of a program's images, channels from `first` on."""
    c = first + tl.arange(0, BLOCK_C)
    scale, shift = activation(norms_ptr, norm, c, C, NORMALISED, EPS)
    for step in tl.range(block_tiles(images, COLUMNS, D, H, W, BLOCK), disable_licm=True):
        q, h, w, exists = blocks(step, images, ROWS, COLUMNS, D, H, W, BLOCK)
        d = convolved(in_ptr, dw_ptr, q, h, w, exists, c, scale, shift, COLUMNS, KERNEL, D,
                      C, H, W, PITCH, NORMALISED, False, BLOCK_C, ACC)  # fmt: skip
        at = pointers(d_ptr, q, c, D_PITCH)
        rows, columns = within(h, exists, ROWS, 0, D, H), within(w, exists, COLUMNS, 0, D, W)
        for j in tl.static_range(ROWS):
            for i in tl.static_range(COLUMNS):
                mask = mask_of(rows[j] & columns[i], c, C, BLOCK_C)
                tl.store(at + away(j * D, i * D, W, D_PITCH), d[j][i].to(d_ptr.dtype.element_ty), mask=mask)


@triton.jit(noinline=True)
def weight_gradient(
    in_ptr, dd_ptr, d_dw_ptr, norms_ptr, norm, images, first, COLUMNS: tl.constexpr, KERNEL: tl.constexpr,
    D: tl.constexpr, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, PITCH: tl.constexpr, DD_PITCH: tl.constexpr,
    NORMALISED: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A program's share of a depthwise weight's gradient: all taps over all its images, so that they add up once."""
    c = first + tl.arange(0, BLOCK_C)
    scale, shift = activation(norms_ptr, norm, c, C, NORMALISED, EPS)
    sums = times(times(tl.zeros((BLOCK, BLOCK_C), ACC), KERNEL), KERNEL)
    for step in tl.range(block_tiles(images, COLUMNS, D, H, W, BLOCK), disable_licm=True):
        q, h, w, exists = blocks(step, images, ROWS, COLUMNS, D, H, W, BLOCK)
        own_rows, own_columns = within(h, exists, ROWS, 0, D, H), within(w, exists, COLUMNS, 0, D, W)
        at = pointers(dd_ptr, q, c, DD_PITCH)
        dd = ()
        for j in tl.static_range(ROWS):
            dd = dd + (load_row(at, own_rows[j], own_columns, c, 1.0, 0.0, j, 0, D,
                                C, W, DD_PITCH, False, False, BLOCK_C, ACC),)  # fmt: skip
        at = pointers(in_ptr, q, c, PITCH)
        rows = within(h, exists, ROWS + KERNEL - 1, KERNEL // 2, D, H)
        columns = within(w, exists, COLUMNS + KERNEL - 1, KERNEL // 2, D, W)
        for m in tl.static_range(ROWS + KERNEL - 1):
            covered = load_row(at, rows[m], columns, c, scale, shift, m, KERNEL // 2, D,
                               C, W, PITCH, NORMALISED, True, BLOCK_C, ACC)  # fmt: skip
            more = ()
            for ky in tl.static_range(KERNEL):
                if m >= ky and m - ky < ROWS:
                    more = more + (add_row(sums[ky], covered, dd[m - ky], KERNEL, COLUMNS),)
                else:
                    more = more + (sums[ky],)
            sums = more
    for ky in tl.static_range(KERNEL):
        for kx in tl.static_range(KERNEL):
            tl.store(d_dw_ptr + (ky * KERNEL + kx) * C + c, tl.sum(sums[ky][kx], 0), mask=c < C)
