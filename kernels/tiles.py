"""Tile shapes: how many pixels and channels a program works on."""

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import triton


@dataclass(frozen=True)
class Tile:
    """Pixels and channels of a tile (powers of 2), and the warps that share it."""

    pixels: int
    channels: int
    warps: int

    def blocks(self, dtype: torch.dtype) -> int:
        """Blocks (blocks.py) of a tile: so many that a thread reads 32 bits of each pixel."""
        return max(self.warps * 32 * 4 // (dtype.itemsize * self.channels), 1)


# Passes, and the elements (of 16 bits; of wider ones fewer) and warps of their tiles. Small enough that two programs'
# registers fit a multiprocessor.
STAGE_FORWARD, STAGE_BACKWARD, POOL_BACKWARD, JOIN, MIX = (
    "stage_forward", "stage_backward", "pool_backward", "join", "mix",
)  # fmt: skip
SHIPPED = {
    STAGE_FORWARD: (4096, 8),
    STAGE_BACKWARD: (2048, 8),
    POOL_BACKWARD: (4096, 16),
    JOIN: (2048, 8),
    MIX: (2048, 4),
}

PARTIAL_SUMS, SUM_WARPS = 8192, 16
SUM_PARTS = 128
# Elements of an edge that a program takes one tile after another, in whole images, so that it shares no windows with
# others: the more, the fewer parts of sums and gradients to add up.
FORWARD_CHUNK = 8192
BACKWARD_CHUNK = 16384
# Programs that there should be for each multiprocessor first: at batch 64 a GPU would stay half empty.
PROGRAMS = 2
FULL = 0.9  # share of these that is enough

Key = tuple[str, int, int, str]  # pass, channels, pixels of an image, dtype
found: dict[Key, tuple[int, int]] | None = None
"""Tile shapes that `fastdarts.kernels.autotune` has found for this GPU; None before its file was read."""


def channel_block(channels: int) -> int:
    """At least what a matrix instruction takes, at most 64: more would not fit the registers."""
    return min(max(triton.next_power_of_2(channels), 16), 64)


def tile(channels: int, image: int, dtype: torch.dtype, name: str) -> Tile:
    """The tile of a pass over tensors of so many channels whose images have so many pixels."""
    global found
    if found is None:
        found = load(file(), device_name())
    elements, warps = SHIPPED[name]
    wide = max(1, dtype.itemsize // 2)
    elements, warps = found.get((name, channels, image, str(dtype)), (elements // wide, warps))
    block = channel_block(channels)
    return Tile(max(elements // block, 16), block, warps)


def file() -> Path:
    """Where autotuned tiles are kept: FASTDARTS_TILES, or tiles.json in the user's cache folder."""
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("FASTDARTS_TILES") or Path(cache_home) / "fastdarts" / "tiles.json")


@cache
def device_name() -> str:
    """The GPU's name; "" without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


@cache
def multiprocessors() -> int:
    """Count the multiprocessors of the GPU at hand; without one, those of an H100: kernels are then compiled for it."""
    return torch.cuda.get_device_properties().multi_processor_count if torch.cuda.is_available() else 132


def load(path: Path, device: str) -> dict[Key, tuple[int, int]]:
    """A device's (elements, warps) from a file that autotune wrote; ValueError if it is something else."""
    if not device or not path.is_file():
        return {}
    try:
        rows = json.loads(path.read_text()).get(device, [])
        return {(str(n), int(c), int(i), str(d)): (int(e), int(w)) for n, c, i, d, e, w in rows}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} holds no tiles ({error}); delete it or run fastdarts.kernels.autotune again"
        ) from error
