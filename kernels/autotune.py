"""Finds tile shapes for this GPU and keeps them for later runs. Nothing does so by itself: a search starts at once.

python -m fastdarts.kernels.autotune [--channels 16 32 64] [--size 32] [--batch 64] [--dtype bfloat16]
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton

from fastdarts.config.files import write_atomically
from fastdarts.kernels import tiles
from fastdarts.spaces.darts.cell import Cell
from fastdarts.spaces.darts.genotype import edges_of

ELEMENTS, WARPS = (1024, 2048, 4096, 8192), (4, 8, 16)
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def tune(key: tuple[int, int, str], measure: Callable[[], float]) -> dict[tiles.Key, tuple[int, int]]:
    """The best (elements, warps) of each pass for (channels, pixels of an image, dtype), one pass after the other.

    `measure` gives the milliseconds of a step with `tiles.found` as it stands. A shape that does not compile or does
    not fit counts as endless.
    """
    tiles.found = chosen = {}
    for name in tiles.SHIPPED:
        times: dict[tuple[int, int], float] = {}
        for shape in itertools.product(ELEMENTS, WARPS):
            chosen[(name, *key)] = shape
            try:
                times[shape] = measure()
            except (RuntimeError, triton.TritonError):  # out of resources
                times[shape] = float("inf")
        chosen[(name, *key)] = min(times, key=lambda shape: times[shape])
    return dict(chosen)


def store(path: Path, device: str, new: dict[tiles.Key, tuple[int, int]]) -> None:
    """Adds tiles to the file; those of other devices and sizes stay."""
    everything: dict[str, list[Any]] = json.loads(path.read_text()) if path.is_file() else {}
    kept = tiles.load(path, device) | new
    everything[device] = [[*key, *shape] for key, shape in sorted(kept.items())]
    write_atomically(path, json.dumps(everything, indent=1) + "\n")


def cell_step(channels: int, size: int, batch: int, dtype: torch.dtype) -> Callable[[], object]:
    """Forward and backward of a normal cell with all its inputs, weights and op weights."""
    cell = Cell(4, 4, 4 * channels, 4 * channels, channels, False, False).cuda()
    inputs = [torch.randn(batch, 4 * channels, size, size, device="cuda", dtype=dtype) for _ in range(2)]
    inputs = [x.contiguous(memory_format=torch.channels_last).requires_grad_() for x in inputs]
    weights = torch.rand(len(edges_of(4)), 8, device="cuda").softmax(-1).requires_grad_()
    wanted = [*inputs, weights, *cell.parameters()]
    return lambda: torch.autograd.grad(cell(*inputs, weights).sum(), wanted)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fastdarts.kernels.autotune", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32, 64], help="of the cells, first to last")
    parser.add_argument("--size", type=int, default=32, help="of the first cells' images; each next number halves it")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("autotune needs a CUDA device, torch sees none", file=sys.stderr)
        return 2
    dtype, path = DTYPES[args.dtype], tiles.file()
    for i, channels in enumerate(args.channels):
        size = args.size >> i
        step = cell_step(channels, size, args.batch, dtype)
        best = tune((channels, size * size, str(dtype)), lambda step=step: triton.testing.do_bench(step))  # type: ignore[misc]
        store(path, tiles.device_name(), best)
        for (name, *_), shape in best.items():
            print(f"C={channels}, {size}x{size}, {name}: {shape[0]} elements, {shape[1]} warps")
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
