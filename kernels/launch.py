"""How kernels are started: the one place all launches go through."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED: bool = triton.knobs.runtime.interpret


# Options of every kernel. With 128 registers a thread a multiprocessor holds a quarter of its threads; with
# more stages in flight their shared memory would let it hold fewer.
OPTIONS: dict[str, int] = {"num_stages": 2} | ({} if torch.version.hip else {"maxnreg": 128})


def warps(asked: int, hip: bool) -> int:
    """Warps of a program: on AMD, with 64 lanes a warp, 8 at most, since more would leave a lane too few registers."""
    return min(asked, 8) if hip else asked


_only_compile = False


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Starts grid programs of a kernel; nothing to do where the grid is empty."""
    if not all(grid):
        return
    constants["num_warps"] = warps(constants["num_warps"], hip=torch.version.hip is not None)
    with torch.cuda.device_of(next(arg for arg in args if isinstance(arg, Tensor))):  # Triton takes the current device
        if _only_compile:
            kernel.warmup(*args, grid=grid, **constants, **OPTIONS)
        else:
            kernel[grid](*args, **constants, **OPTIONS)


@contextmanager
def compiling_ahead() -> Iterator[None]:
    """Launches inside only have their kernels compiled, side by side in threads, which takes minutes one by one.

    Nothing runs: what the kernels would write stays uninitialised. All are ready when the context ends.
    """
    global _only_compile
    # The mode belongs to this thread, so backwards must not go to autograd's own.
    with ThreadPoolExecutor() as pool, torch.autograd.set_multithreading_enabled(False), triton.AsyncCompileMode(pool):
        _only_compile = True
        try:
            yield
        finally:
            _only_compile = False


def accumulator(dtype: torch.dtype) -> Any:
    """Return the type of sums."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The same as a torch type: that of statistics and gradients of weights."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def dot_type(dtype: torch.dtype) -> Any:
    """Return the type of a product's factors: as stored. The interpreter multiplies no bfloat16."""
    if INTERPRETED:
        return accumulator(dtype)
    return {
        torch.float64: tl.float64,
        torch.float32: tl.float32,
        torch.bfloat16: tl.bfloat16,
        torch.float16: tl.float16,
    }[dtype]


def pixel_pitch(x: Tensor) -> int | None:
    """Elements from one pixel of [N, C, H, W] to the next, or None where they or the channels are not evenly spaced."""
    n, c, h, w = x.shape
    pitch = x.stride(3) if w > 1 else x.stride(2) if h > 1 else x.stride(0) if n > 1 else c
    dense = (
        (c == 1 or x.stride(1) == 1)
        and (w == 1 or x.stride(3) == pitch)
        and (h == 1 or x.stride(2) == w * pitch)
        and (n == 1 or x.stride(0) == h * w * pitch)
    )
    return pitch if dense and pitch >= c else None


def channels_last(x: Tensor) -> tuple[Tensor, int]:
    """x with its pitch; copied only if it has none."""
    pitch = pixel_pitch(x)
    return (x, pitch) if pitch is not None else (dense_channels_last(x), x.shape[1])


def dense_channels_last(x: Tensor) -> Tensor:
    """x with nothing between its pixels; copied only if it is not so."""
    return x if pixel_pitch(x) == x.shape[1] else x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def new_image(like: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Uninitialised [N, channels, height, width], channels-last, with the type and device of `like`."""
    return like.new_empty((like.shape[0], height, width, channels)).permute(0, 3, 1, 2)


def padded_channels(channels: int, dtype: torch.dtype) -> int:
    """Channels of a saved tensor: whole 64 bytes of accumulators, so that every pixel starts aligned."""
    line = 64 // compute_dtype(dtype).itemsize
    return -(-channels // line) * line
