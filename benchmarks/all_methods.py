"""Compare all methods of all spaces of images on one data set under one budget: `python -m benchmarks.all_methods OUT`.

In each space every method has the same images, epochs, sizes and seeds. It is a `fastdarts compare` in `OUT/SPACE`, so
an interrupted run goes on where it was. Writes the page `OUT/all-methods.md`: accuracies with 95 % intervals, and the
cost of the searches. Tells no more than the intervals do: names all methods that the best mean cannot be told from.
"""

import os
import statistics
import sys
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import device_name
from fastdarts.compare import Comparison, compare
from fastdarts.report.rankings import Interval, interval_of_mean
from fastdarts.report.records import Record
from fastdarts.runs.compare_config import CompareConfig, methods_of
from fastdarts.runs.interrupt import Interrupted
from fastdarts.runs.progress import duration


@dataclass(frozen=True)
class Budget:
    """Hold what all methods of all spaces are given.

    Attributes:
        images: of each class; a search divides them into those of weights and those of alphas.
        seeds: searches of each method.
        epochs: of a search; a multiple of P-DARTS' three stages.
        select_epochs: of the training of each found network.
        image_size: of each side, in pixels.
    """

    images: int = 50
    seeds: int = 3
    epochs: int = 3
    select_epochs: int = 8
    image_size: int = 16


@dataclass(frozen=True)
class Entry:
    """Describe a space of the page: its options of `fastdarts compare`, and the methods, None for all that it has."""

    options: Mapping[str, Any] = field(default_factory=dict)
    methods: Sequence[str] | None = None


def _cells(layers: int) -> Entry:
    """Describe a space of cells, whose search networks and found ones have the same size."""
    size = {"init_channels": 12, "layers": layers}  # DrNAS' 6 and 4 divide 12
    return Entry({**size, "select": size})


SPACES = {
    "darts": _cells(3),
    "nasbench201": _cells(1),
    "mobilenet-small": Entry(),
    "ofa": Entry(methods=("ofa", "random")),
    "dna": Entry(methods=("dna", "random")),
}


def linked_images(data: Path, out: Path, count: int) -> Path:
    """Link the first `count` images of each class below `data/train` into a folder of its own, and return that."""
    for folder in sorted(path for path in (data / "train").iterdir() if path.is_dir()):
        target = out / "images" / "train" / folder.name
        target.mkdir(parents=True, exist_ok=True)
        images = sorted(folder.iterdir())[:count]
        if len(images) < count:
            raise ValueError(f"--images: class {folder.name!r} of {data} has {len(images)} of the {count}")
        for image in images:
            if not (target / image.name).exists():
                os.link(image, target / image.name)
    return out / "images"


def compared(space: str, entry: Entry, budget: Budget, images: Path, out: Path, workers: int) -> Comparison:
    """Run what is left of the comparison of a space."""
    options = {"batch_size": 32, "search": {"test_portion": 0.2}, **entry.options}
    config = CompareConfig(
        dataset="imagefolder",
        data=images,
        image_size=(budget.image_size, budget.image_size),
        space=space,
        methods=",".join(entry.methods or methods_of(space)),
        seeds=budget.seeds,
        epochs=budget.epochs,
        select_epochs=budget.select_epochs,
        order=1,
        device="cpu",
        workers=workers,
        out=out,
        resume=(out / "config.json").is_file(),
        **options,
    )
    return compare(config)


def section(space: str, found: Comparison) -> list[str]:
    """Return the lines of a space: a row for each method, the highest mean first, and what the intervals tell."""
    accuracies = {row["method"]: _of(found.runs, row["method"], "accuracy") for row in found.methods}
    names = sorted(accuracies, key=lambda name: -statistics.fmean(accuracies[name]))
    intervals = {name: interval_of_mean(accuracies[name]) for name in names}
    lines = [
        f"## {space}",
        "",
        "| method | validation accuracy | 95 % interval | million parameters | search | peak memory |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, interval in intervals.items():
        parameters = statistics.fmean(_of(found.runs, name, "parameters")) / 1e6
        seconds = statistics.fmean(_of(found.runs, name, "search_seconds"))
        peak = max(_of(found.runs, name, "peak_bytes")) / 2**20
        reach = "–" if interval is None else f"{max(100 * interval[0], 0):.1f} to {min(100 * interval[1], 100):.1f} %"
        mean = f"{100 * statistics.fmean(accuracies[name]):.1f} %"
        lines.append(f"| `{name}` | {mean} | {reach} | {parameters:.3f} | {duration(seconds)} | {peak:.0f} MiB |")
    lines += ["", _verdict(intervals), ""]
    return lines + [f"Failed: {name}: {error}" for name, error in found.failures.items()]


def _verdict(intervals: Mapping[str, Interval | None]) -> str:
    """Name the methods whose intervals overlap with that of the first."""
    first, *others = intervals
    best = intervals[first]
    if not others:
        return ""
    if best is None:
        return "One seed has no interval, so no method can be called better than another."
    same = [name for name in others if (other := intervals[name]) is not None and other[1] >= best[0]]
    if not same:
        return f"`{first}` is above all others by its interval."
    words = "all others" if len(same) == len(others) else ", ".join(f"`{name}`" for name in same)
    return f"The interval of `{first}` overlaps with that of {words}: this budget does not tell them apart."


def _of(runs: Sequence[Record], method: str, key: str) -> list[float]:
    return [run[key] for run in runs if run["method"] == method]


def page(budget: Budget, data: Path, workers: int, found: Mapping[str, Comparison]) -> str:
    """Return the page's text."""
    machine = f"{device_name(torch.device('cpu'))}, {workers} processes at a time with a thread each"
    size = budget.image_size
    lines = [
        "# All methods of all spaces",
        "",
        f"{budget.images} images of each class of `{data.name}` at {size}x{size}, {budget.seeds} searches of each "
        f"method, {budget.epochs} epochs each, of order 1. Each found network is trained for {budget.select_epochs} "
        f"epochs on the images of the weights and measured on those of the alphas. {machine}.",
        "",
        "This is far less than a paper's budget. It shows that everything runs on the same terms, and the cost of a "
        "search. Intervals that do not overlap say that a method is better under this budget, not in general. Stages, "
        "as of P-DARTS and Once-for-all, are shares of the epochs. Networks of different spaces differ in size.",
        "",
    ]
    for space, comparison in found.items():
        lines += section(space, comparison)
    return "\n".join(lines).rstrip() + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the results; what it has is not run again")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="image folder with train/CLASS/*")
    parser.add_argument("--images", type=int, default=Budget.images, metavar="N", help="of each class")
    parser.add_argument("--seeds", type=int, default=Budget.seeds)
    parser.add_argument("--epochs", type=int, default=Budget.epochs, help="of a search; a multiple of 3")
    parser.add_argument("--select-epochs", type=int, default=Budget.select_epochs, help="of a found network's training")
    parser.add_argument("--image-size", type=int, default=Budget.image_size, metavar="SIZE")
    parser.add_argument("--spaces", default=",".join(SPACES), metavar="NAME,...")
    parser.add_argument("--methods", metavar="NAME,...", help="(default: all of each space)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes at a time")
    args = parser.parse_args(argv)
    budget = Budget(args.images, args.seeds, args.epochs, args.select_epochs, args.image_size)
    images = linked_images(args.data, args.out, budget.images)
    found: dict[str, Comparison] = {}
    for space in args.spaces.split(","):
        entry = SPACES[space]
        if args.methods:
            entry = Entry(entry.options, args.methods.split(","))
        try:
            found[space] = compared(space, entry, budget, images, args.out / space, args.workers)
        except Interrupted as stop:
            print("stopped; the same command goes on", file=sys.stderr)
            return stop.exit_code
        (args.out / "all-methods.md").write_text(page(budget, args.data, args.workers, found))
    print(f"results: {args.out / 'all-methods.md'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
