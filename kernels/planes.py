"""The passes of csrc/cuda that keep images in shared memory, in place of the Triton kernels over the same stages.

They know what a CIFAR search has most of: convolutions at stride 1 in bfloat16, of 16 channels of 32x32 pixels
and 32 of 16x16. FASTDARTS_GPU=cuda asks for them; whatever else there is goes to Triton: in smaller images a warp does
more for each channel once than for all its pixels.
"""

import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import fastdarts.ops.extension  # noqa: F401 - registers the kernels
from fastdarts.kernels import tiles
from fastdarts.kernels.tables import TAPS, WINDOWS, Stage, constant

if TYPE_CHECKING:
    from fastdarts.kernels.bank import Image, Shared

CHOICES = "triton", "cuda"
WIDTHS = {16: 32, 32: 16}  # of images, by their channels, for which there are kernels
MOST_PIXELS = 1024  # of a program
MOST_STATES = 2  # of a launch
SHARED = 113 * 1024  # bytes, of which a multiprocessor of sm_90 has two

_lib = torch.library.Library("fastdarts", "FRAGMENT")
_lib.define(
    "planes_forward(Tensor[] states, Tensor(a!) saved, Tensor dw, Tensor pw, Tensor stats, Tensor(b!) moments, "
    "Tensor stages, Tensor groups, int images, int channels, int width, int x_pitch, int images_of_program, "
    "float eps) -> ()"
)


class Kernel:
    """A kernel of csrc/cuda as `launch` takes it: an operator, whose launch chooses threads and shared memory."""

    def __init__(self, operator: str) -> None:
        self.fn = SimpleNamespace(__name__=operator)
        schema = getattr(torch.ops.fastdarts, operator).default._schema
        self.arg_names = [argument.name for argument in schema.arguments]

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def start(*args: Any, num_warps: int, num_stages: int, maxnreg: int = 0, **named: Any) -> None:
            require_built(self.fn.__name__, next(arg for arg in args if isinstance(arg, Tensor)).device)
            getattr(torch.ops.fastdarts, self.fn.__name__)(*args, **named)

        return start

    def warmup(self, *args: Any, **named: Any) -> None:
        """Nothing to compile."""


forward_kernel = Kernel("planes_forward")
WARPS = 8


def wished() -> bool:
    """Return True if FASTDARTS_GPU asks for these passes.

    Raises: ValueError for another value than triton or cuda.
    """
    choice = os.environ.get("FASTDARTS_GPU", CHOICES[0])
    if choice not in CHOICES:
        raise ValueError(f"FASTDARTS_GPU must be {' or '.join(CHOICES)}; got {choice}")
    return choice == "cuda"


def require_built(operator: str, device: torch.device) -> None:
    """Raise RuntimeError if the extension has no kernels for this device."""
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"fastdarts::{operator}", device.type.upper()):
        raise RuntimeError(
            f"FASTDARTS_GPU=cuda needs the CUDA part of the extension, which has no {operator} for {device.type}: "
            "install again with FASTDARTS_CUDA=1 where nvcc is, or use FASTDARTS_GPU=triton"
        )


def serve(s: "Shared", states: "Sequence[Image]", stride: int) -> bool:
    """Return True if the convolutions that leave these states, of one layout, are to be made here."""
    return (
        wished()
        and stride == 1
        and s.saved.dtype == torch.bfloat16
        and s.affine is None
        and s.factors is None
        and WIDTHS.get(s.channels) == s.width == s.height
        and len(states) <= MOST_STATES
        and all(pitch % 8 == 0 and x.data_ptr() % 16 == 0 for x, pitch in states)
    )


def shared_bytes(channels: int, width: int, lines: int) -> int:
    """Return the shared memory of a program, as csrc/cuda/planes.cuh lays it out."""
    pitch = odd_eights(width + 8)
    return 2 * (2 * channels * odd_eights(lines * pitch) + pitch + channels * (channels + 8))


def odd_eights(n: int) -> int:
    return (-(-n // 8) | 1) * 8


def images_of_program(s: "Shared") -> int:
    """Return how many images a program takes: what fits, but fewer if the GPU would not be full."""
    images = max(min(MOST_PIXELS // s.width**2, s.images // (tiles.PROGRAMS * tiles.multiprocessors())), 1)
    while shared_bytes(s.channels, s.width, images * s.width) > SHARED:
        images -= 1
    return images


def tables(programs: Sequence[Sequence[Stage]], firsts: Sequence[Stage], device: torch.device) -> tuple[Tensor, ...]:
    """Return stages [n, 10] and groups [m, 2] (first, last + 1), as csrc/cuda/planes_forward.cuh has them.

    programs: the stages of each.
    firsts: those that these, then the second of separable convolutions, continue; else none.
    """
    sizes = {geometry: (kernel, dilation) for geometry, kernel, dilation, *_ in WINDOWS.value}
    by_y = {first.y: first for first in firsts}
    rows: list[tuple[int, ...]] = []
    groups: list[tuple[int, int]] = []
    for stages in programs:
        groups.append((len(rows), len(rows) + len(stages)))
        for stage in stages:
            first = by_y.get(stage.x)
            again = (sizes[first.geometry][0], first.dw, first.pw, first.norm) if first else (0, 0, 0, 0)
            rows.append((*sizes[stage.geometry], stage.y, stage.dw, stage.pw, stage.state, *again))
    return constant(tuple(rows), device), constant(tuple(groups), device)


def split(stages: Sequence[Stage]) -> tuple[list[Stage], list[Stage]]:
    """Return the stages that these passes know, and all others."""
    return [s for s in stages if s.geometry in TAPS], [s for s in stages if s.geometry not in TAPS]
