"""What a comparison of methods writes: results.json, accuracy.png and report.html, one self-contained page."""

import base64
import io
import itertools
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fastdarts.config import quoting
from fastdarts.config.files import write_atomically
from fastdarts.config.reading import read_object
from fastdarts.report.run_report import template
from fastdarts.runs.environment import environment
from fastdarts.runs.progress import duration
from fastdarts.spaces.darts.draw import MUTED, STATE, draw_cells
from fastdarts.spaces.darts.genotype import Genotype

Record = dict[str, Any]

_DOT, _BAR = "#2f6fdf", "#a9c3ef"


_NUMBERS = (
    *("seed", "accuracy", "parameters", "multiply_adds", "skips_normal", "skips_reduce"),
    *("search_seconds", "select_seconds", "search_epochs", "peak_bytes"),
)


def check_record(record: Record, path: Path) -> Record:
    """Return a run's record as it is read from its result.json.

    Raises: ValueError that names the file, what is wrong in it and what to do.
    """
    wrong = [name for name in _NUMBERS if type(record.get(name)) not in (int, float)]
    wrong += [name for name in ("method", "folder") if not isinstance(record.get(name), str)]
    if not wrong and record["folder"] != path.parent.name:
        wrong = ["folder"]
    if wrong or not isinstance(record.get("stopped"), str | None):
        raise ValueError(
            f"{path} is damaged: {', '.join(wrong) or 'stopped'} is missing or of a wrong kind; remove the file and "
            "resume: its run is measured again"
        )
    return record


def summaries(runs: Sequence[Record]) -> list[Record]:
    """One record a method, in the order of their best accuracy: `accuracy_mean` and `accuracy_std` (of the sample; None
    for one seed), `best` (its run with the best accuracy), `search_seconds` (mean), `peak_bytes` (largest), `text`."""
    found = []
    for method in dict.fromkeys(run["method"] for run in runs):
        ours = [run for run in runs if run["method"] == method]
        accuracies = [run["accuracy"] for run in ours]
        mean, std = statistics.fmean(accuracies), statistics.stdev(accuracies) if len(ours) > 1 else None
        spread = "" if std is None else f" ± {100 * std:.2f}"
        seeds = "1 seed" if len(ours) == 1 else f"{len(ours)} seeds"
        best = max(ours, key=lambda run: run["accuracy"])
        found.append(
            {
                "method": method,
                "seeds": len(ours),
                "accuracy_mean": mean,
                "accuracy_std": std,
                "best": best,
                "search_seconds": statistics.fmean(run["search_seconds"] for run in ours),
                "peak_bytes": max(run["peak_bytes"] for run in ours),
                "text": f"{100 * mean:.2f}{spread} % ({seeds}), best {100 * best['accuracy']:.2f} %",
            }
        )
    return sorted(found, key=lambda row: -row["best"]["accuracy"])


def write_comparison(out: Path, runs: Sequence[Record], failures: dict[str, str]) -> None:
    """Write the three files into the comparison's folder, which has its config.json."""
    config = read_object(out / "config.json")
    methods = summaries(runs)
    everything: Record = {
        "config": config,
        "environment": environment(),
        "methods": methods,
        "runs": list(runs),
        "failures": failures,
    }
    write_atomically(out / "results.json", json.dumps(everything, indent=2) + "\n")
    picture = accuracy_png(methods, runs) if runs else None
    if picture is not None:
        write_atomically(out / "accuracy.png", picture)
    page = {
        "title": f"fastdarts comparison on {config['dataset']}",
        "folder": str(out),
        "table": [_row(method) for method in methods],
        "all_runs": [_run_row(run) for run in sorted(runs, key=lambda run: (run["method"], run["seed"]))],
        "cells": [
            (
                f"{run['method']}, seed {run['seed']}: {100 * run['accuracy']:.2f} %",
                run is method["best"],
                Markup(draw_cells(Genotype.load(_genotype(out, run)))),
            )
            for method in methods
            for run in sorted(runs, key=lambda run: -run["accuracy"])
            if run["method"] == method["method"]
        ],
        "commands": [quoting.join(_command(config, _genotype(out, method["best"]))) for method in methods],
        "failures": failures,
        "picture": base64.b64encode(picture).decode() if picture else None,
        "tables": {
            name: [(key, "–" if value is None else str(value)) for key, value in rows.items()]
            for name, rows in (("Configuration", config), ("Environment", everything["environment"]))
        },
    }
    write_atomically(out / "report.html", template("compare.html").render(page))


_COUNTS = ("parameters", "multiply_adds")


def _row(method: Record) -> list[str]:
    best = method["best"]
    spread = "" if method["accuracy_std"] is None else f" ± {100 * method['accuracy_std']:.2f}"
    return [
        method["method"],
        f"{100 * method['accuracy_mean']:.2f}{spread} %",
        str(method["seeds"]),
        f"{100 * best['accuracy']:.2f} %",
        *(f"{best[key]:,}" for key in _COUNTS),
        f"{best['skips_normal']} + {best['skips_reduce']}",
        duration(method["search_seconds"]),
        _mib(method["peak_bytes"]),
    ]


def _run_row(run: Record) -> list[str]:
    return [
        run["method"],
        str(run["seed"]),
        f"{100 * run['accuracy']:.2f} %",
        *(f"{run[key]:,}" for key in _COUNTS),
        f"{run['skips_normal']} + {run['skips_reduce']}",
        f"{run['search_epochs']}" + (f" ({run['stopped']})" if run["stopped"] else ""),
        duration(run["search_seconds"]),
        duration(run["select_seconds"]),
        _mib(run["peak_bytes"]),
    ]


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


def _genotype(out: Path, run: Record) -> Path:
    return out / run["folder"] / "search" / "genotype.json"


def _command(config: Record, genotype: Path) -> list[str]:
    """How the best cell of a method is trained in full."""
    size = config["image_size"]
    where = [] if config["dataset"] == "digits" else ["--data", config["data"]]
    sized = ["--image-size", "x".join(map(str, size))] if size else []
    portion = config.get("search", {}).get("test_portion")
    aside = [] if portion is None else ["--test-portion", str(portion)]
    words = ["python", "-m", "fastdarts.evaluate", "--dataset", config["dataset"], *where, *sized, *aside]
    return [*words, "--genotype", str(genotype)]


def accuracy_png(methods: Sequence[Record], runs: Sequence[Record]) -> bytes:
    """Accuracy against search time as a PNG file's bytes: a large dot with its ± a method, a small one a run."""
    figure = Figure(figsize=(8, 5.5), dpi=150, facecolor="white")
    axes = figure.add_axes((0.09, 0.11, 0.89, 0.82))
    times = [run["search_seconds"] for run in runs]
    axes.set_xscale("log")
    axes.set_xlim(min(times) / 1.6, max(times) * 1.6)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.scatter(times, [100 * run["accuracy"] for run in runs], s=8, color=STATE.line, zorder=2)
    for method in methods:
        x, y = method["search_seconds"], 100 * method["accuracy_mean"]
        axes.errorbar(x, y, yerr=100 * (method["accuracy_std"] or 0), color=_BAR, elinewidth=1, capsize=2, zorder=1)
        axes.plot([x], [y], "o", color=_DOT, markersize=6, zorder=4)
    axes.set_title(
        "Accuracy of the found cells after a short training, against search time", loc="left", size=10, weight="bold"
    )
    axes.set_xlabel("seconds of a search (logarithmic)", size=8, color=MUTED)
    axes.set_ylabel("validation accuracy (%)", size=8, color=MUTED)
    axes.tick_params(which="both", labelsize=8, labelcolor=MUTED, color=STATE.line)
    axes.grid(color="#e5e8ec", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(STATE.line)
    _write_names(axes, methods, runs)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _write_names(axes: Axes, methods: Sequence[Record], runs: Sequence[Record]) -> None:
    """Each method's name in the free place nearest to its dot, with a line to it where that is not beside it. Boxes are
    (left, bottom, right, top) in points."""
    axes.autoscale_view()  # sets the limits that `transData` knows
    size, dot = 8.0, 5.0
    scale = 72 / 150  # of the pixels that matplotlib places by
    centres = [(method["search_seconds"], method["accuracy_mean"]) for method in methods]
    centres += [(run["search_seconds"], run["accuracy"]) for run in runs]
    spots = [axes.transData.transform((seconds, 100 * accuracy)) * scale for seconds, accuracy in centres]
    left, bottom, right, top = (edge * scale for edge in axes.get_window_extent().extents)
    radii = [dot] * len(methods) + [2.5] * len(runs)
    taken = [(x - r, y - r, x + r, y + r) for (x, y), r in zip(spots, radii, strict=True)]
    for method, (x, y) in sorted(zip(methods, spots, strict=False), key=lambda pair: -pair[1][1]):
        half, rise = 0.3 * size * len(method["method"]) + 1, 0.6 * size
        for reach, part in itertools.product(range(0, 400, 4), range(24)):
            turn = math.tau * part / 24
            at, up = x + (reach + dot + half) * math.cos(turn), y + (reach + dot + rise) * math.sin(turn)
            box = (at - half, up - rise, at + half, up + rise)
            fits = box[0] > left and box[1] > bottom and box[2] < right and box[3] < top
            if fits and not any(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken):
                break
        taken.append(box)
        line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3}
        axes.annotate(
            method["method"],
            (x / scale, y / scale),
            (at / scale, up / scale),
            xycoords="figure pixels",
            textcoords="figure pixels",
            ha="center",
            va="center",
            size=size,
            color=STATE.text,
            arrowprops=line if reach > 8 else None,
            zorder=5,
        )
