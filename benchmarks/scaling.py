"""Measure how a weight step's time and memory grow with batch, channels, size, layers: `python -m benchmarks.scaling`.

One setting is varied at a time, from C=16, 8 cells, batch 64, 32x32 images and torch's number of threads (with --small:
C=8, 3 cells, batch 8, and few points). Exponents are fitted to logarithms by least squares: 1 means proportional. Each
point runs in a separate process; points that do not fit into memory are marked as such.
"""

import json
import math
import statistics
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from benchmarks.cases import CHANNELS_LAST, FUSED, FUSED_AMP, NCHW, Case
from benchmarks.machine import device, environment
from benchmarks.worker import Measurement, measure
from fastdarts.config.files import write_atomically
from fastdarts.runs.resources import free_bytes

PIXELS = 2 * 64 * 32 * 32
"""Pixels of a batch while the image size varies: enough for a step to have work, few enough to fit into memory."""

RANGES: dict[str, tuple[int, ...]] = {
    "batch": (8, 16, 32, 64, 128, 256, 512),
    "C": (8, 16, 24, 32, 36, 48, 64, 100),
    "size": (8, 28, 64, 224),
    "layers": (4, 8, 12, 16, 20),
    "threads": (1, 2),
}


@dataclass(frozen=True)
class Point:
    """Hold one measured setting: seconds and bytes of a weight step, or an `error`."""

    axis: str
    value: int
    variant: str
    batch: int
    seconds: float = math.nan
    peak_bytes: int = 0
    error: str | None = None


def settings(axis: str, values: Sequence[int], base: Case, threads: int) -> list[tuple[int, Case, int]]:
    """Return (value, case, threads) for every value of an axis."""
    if axis == "threads":
        return [(value, base, value) for value in values]
    cases = [(value, replace(base, **{axis: value})) for value in values]  # type: ignore[arg-type]
    if axis == "size":
        cases = [(size, replace(case, batch=max(1, min(8 * base.batch, PIXELS // size**2)))) for size, case in cases]
    return [(value, case, threads) for value, case in cases]


def exponent(points: Sequence[Point], quantity: str) -> float | None:
    """Fit quantity = a * value^b and return b, or None for fewer than two points.

    `quantity` is "time" or "memory", of a step; for the axis "size", per image.
    """
    known = [p for p in points if not p.error]
    if len(known) < 2:
        return None
    values = [p.seconds if quantity == "time" else p.peak_bytes for p in known]
    if points[0].axis == "size":
        values = [value / p.batch for value, p in zip(values, known, strict=True)]
    logs = [math.log(p.value) for p in known], [math.log(value) for value in values]
    return statistics.linear_regression(*logs).slope


def table(points: Sequence[Point]) -> str:
    """Return a Markdown table per axis, with the exponents in its last row."""
    lines = []
    for axis in dict.fromkeys(p.axis for p in points):
        here = [p for p in points if p.axis == axis]
        variants = list(dict.fromkeys(p.variant for p in here))
        header = [f"{v}, {what}" for v in variants for what in ("ms an image", "MB an image", "MB")]
        lines += ["", f"| {axis} | {' | '.join(header)} |", f"| {' | '.join(['---'] * (1 + len(header)))} |"]
        for value in dict.fromkeys(p.value for p in here):
            cells = [cell for v in variants for p in here if (p.value, p.variant) == (value, v) for cell in _cells(p)]
            lines.append(f"| {value} | {' | '.join(cells)} |")
        cells = []
        for variant in variants:
            own = [p for p in here if p.variant == variant]
            time, memory = exponent(own, "time"), exponent(own, "memory")
            cells += [_exponent(time), "", _exponent(memory)]
        lines.append(f"| exponent | {' | '.join(cells)} |")
    return "\n".join(lines[1:])


def _cells(p: Point) -> list[str]:
    if p.error:
        return [p.error, "", ""]
    memory = p.peak_bytes / 2**20
    return [f"{1e3 * p.seconds / p.batch:.2f}", f"{memory / p.batch:.1f}", f"{memory:.0f}"]


def _exponent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def main(argv: list[str] | None = None) -> int:
    parser = ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    variants = {"fused": FUSED, "amp": FUSED_AMP, "nchw": NCHW, "channels_last": CHANNELS_LAST}
    parser.add_argument("--variants", nargs="+", choices=variants, default=["fused", "amp"])
    parser.add_argument("--axes", nargs="+", choices=RANGES, default=list(RANGES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--small", action="store_true", help="use a small network and few points, to test the benchmark"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "scaling.json")
    arguments = parser.parse_args(argv)

    base = Case("weight step", "weight_step")
    ranges = RANGES
    if arguments.small:
        base = replace(base, C=8, layers=3, batch=8)
        ranges = {"batch": (2, 8), "C": (8, 16), "size": (8, 28), "layers": (3, 4), "threads": (1, 2)}
    chosen = [variants[name] for name in arguments.variants]
    points: list[Point] = []
    largest: dict[str, tuple[int, int]] = {}  # by variant: work and memory, which grows no faster than work
    for axis in arguments.axes:
        for value, case, threads in settings(axis, ranges[axis], base, arguments.threads):
            work = case.batch * case.size**2 * case.C * case.layers
            free = 0.9 * free_bytes(device())
            fits = [v for v in chosen if v not in largest or work / largest[v][0] * largest[v][1] < free]
            found = measure(case, fits, device(), threads, budget=5, rounds=(3, 9), limit=0)
            for variant in chosen:
                point = _point(axis, value, variant, case, found.get(variant))
                points.append(point)
                if not point.error:
                    largest[variant] = max(largest.get(variant, (0, 0)), (work, point.peak_bytes))
                print(f"{axis} {value}, {variant}: {', '.join(_cells(point))}", flush=True)
    content = {"environment": environment(device()), "points": [asdict(point) for point in points]}
    write_atomically(arguments.out, json.dumps(content, indent=1))
    print(table(points))
    print(f"\nwritten: {arguments.out}")
    return 0


def _point(axis: str, value: int, variant: str, case: Case, found: Measurement | None) -> Point:
    if found is None:
        return Point(axis, value, variant, case.batch, error="does not fit into memory")
    if found.error:
        return Point(axis, value, variant, case.batch, error=found.error)
    return Point(axis, value, variant, case.batch, found.median, found.peak_bytes)


if __name__ == "__main__":
    sys.exit(main())
