"""Write the results of a comparison of methods: results.json, a chart and report.html, a self-contained page."""

import base64
import io
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fastdarts.config import quoting
from fastdarts.config.files import write_atomically
from fastdarts.config.reading import read_object
from fastdarts.report.measure import PERPLEXITY, Measure, measure_on
from fastdarts.report.records import Record, summaries
from fastdarts.report.run_report import template
from fastdarts.runs.environment import environment
from fastdarts.runs.progress import duration
from fastdarts.spaces.picture import MUTED, STATE
from fastdarts.spaces.registry import load_architecture, space_of

_DOT, _BAR = "#2f6fdf", "#a9c3ef"


def write_comparison(out: Path, runs: Sequence[Record], failures: dict[str, str]) -> None:
    """Write results.json, report.html and accuracy.png (on texts perplexity.png) into a comparison's folder.

    Args:
        out: the folder, which holds config.json.
        runs: records of the runs that have ended.
        failures: errors by the names of failed runs.
    """
    config = read_object(out / "config.json")
    measure = measure_on(config["dataset"])
    methods = summaries(runs, measure)
    everything: Record = {
        "config": config,
        "environment": environment(),
        "methods": methods,
        "runs": list(runs),
        "failures": failures,
    }
    write_atomically(out / "results.json", json.dumps(everything, indent=2) + "\n")
    picture = chart_png(measure, methods, runs) if runs else None
    if picture is not None:
        write_atomically(out / f"{measure.key}.png", picture)
    tables = list(dict.fromkeys(name for run in runs for name in run["tabulated"]))
    page = {
        "measure": measure.key,
        "counts": [*_COUNTS_OF[measure.key], *(name.replace("_", " ") for name in tables)],
        "title": f"fastdarts comparison on {config['dataset']}",
        "folder": str(out),
        "table": [_row(measure, method, tables) for method in methods],
        "all_runs": [
            _run_row(measure, run, tables) for run in sorted(runs, key=lambda run: (run["method"], run["seed"]))
        ],
        "cells": [
            (
                f"{run['method']}, seed {run['seed']}: {measure.text(run[measure.key])}",
                run is method["best"],
                Markup(_picture(_genotype(out, run))),
            )
            for method in methods
            for run in measure.ranked(runs)
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


_COUNTS_OF = {
    "accuracy": ("parameters", "multiply-adds", "skips"),
    "perplexity": ("test perplexity", "parameters", "multiply-adds", "depth"),
}
"""Titles of the columns about a network, by the key of the measure."""


def _row(measure: Measure, method: Record, tables: Sequence[str]) -> list[str]:
    best = method["best"]
    return [
        method["method"],
        measure.text(method[f"{measure.key}_mean"], method[f"{measure.key}_std"]),
        str(method["seeds"]),
        measure.text(best[measure.key]),
        *_counts(measure, best, tables),
        duration(method["search_seconds"]),
        _mib(method["peak_bytes"]),
    ]


def _run_row(measure: Measure, run: Record, tables: Sequence[str]) -> list[str]:
    return [
        run["method"],
        str(run["seed"]),
        measure.text(run[measure.key]),
        *_counts(measure, run, tables),
        f"{run['search_epochs']}" + (f" ({run['stopped']})" if run["stopped"] else ""),
        duration(run["search_seconds"]),
        duration(run["select_seconds"]),
        _mib(run["peak_bytes"]),
    ]


def _counts(measure: Measure, run: Record, tables: Sequence[str]) -> list[str]:
    """Return the columns of `_COUNTS_OF`, and the tabulated accuracies."""
    sizes = [f"{run[key]:,}" for key in ("parameters", "multiply_adds")]
    tabulated = [f"{run['tabulated'][name]:.2f} %" if name in run["tabulated"] else "–" for name in tables]
    if measure is PERPLEXITY:
        return [measure.text(run["test_perplexity"]), *sizes, f"{run['numbers']['depth']:.0f}", *tabulated]
    return [*sizes, _skips(run), *tabulated]


def _skips(run: Record) -> str:
    """Return a run's numbers of skip connections as text, one for each group that reports them."""
    return " + ".join(f"{count:.0f}" for name, count in run["numbers"].items() if name.startswith("skips_")) or "–"


def _picture(genotype: Path) -> str:
    architecture = load_architecture(str(genotype))
    return space_of(architecture).svg(architecture)


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


def _genotype(out: Path, run: Record) -> Path:
    return out / run["folder"] / "search" / "genotype.json"


def _command(config: Record, genotype: Path) -> list[str]:
    """Return the command line, as a list of words, that fully trains the architecture in the file `genotype`."""
    size = config["image_size"]
    where = [] if config["dataset"] in ("digits", "pydoc") else ["--data", config["data"]]
    sized = ["--image-size", "x".join(map(str, size))] if size else []
    portion = config.get("search", {}).get("test_portion")
    aside = [] if portion is None else ["--test-portion", str(portion)]
    words = ["python", "-m", "fastdarts.evaluate", "--dataset", config["dataset"], *where, *sized, *aside]
    return [*words, "--genotype", str(genotype)]


def chart_png(measure: Measure, methods: Sequence[Record], runs: Sequence[Record]) -> bytes:
    """Plot a measure against search time; return the bytes of a PNG file.

    Each method has a large dot with its standard deviation, each run a small dot.
    """
    figure = Figure(figsize=(8, 5.5), dpi=150, facecolor="white")
    axes = figure.add_axes((0.09, 0.11, 0.89, 0.82))
    times = [run["search_seconds"] for run in runs]
    axes.set_xscale("log")
    axes.set_xlim(min(times) / 1.6, max(times) * 1.6)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.scatter(times, [measure.scale * run[measure.key] for run in runs], s=8, color=STATE.line, zorder=2)
    for method in methods:
        x, y = method["search_seconds"], measure.scale * method[f"{measure.key}_mean"]
        bar = measure.scale * (method[f"{measure.key}_std"] or 0)
        axes.errorbar(x, y, yerr=bar, color=_BAR, elinewidth=1, capsize=2, zorder=1)
        axes.plot([x], [y], "o", color=_DOT, markersize=6, zorder=4)
    name = measure.key.capitalize()
    title = f"{name} of the found cells after a short training, against search time"
    axes.set_title(title, loc="left", size=10, weight="bold")
    axes.set_xlabel("seconds of a search (logarithmic)", size=8, color=MUTED)
    hint = " (smaller is better)" if measure.sign < 0 else f" ({measure.unit.strip()})"
    axes.set_ylabel(f"validation {measure.key}{hint}", size=8, color=MUTED)
    axes.tick_params(which="both", labelsize=8, labelcolor=MUTED, color=STATE.line)
    axes.grid(color="#e5e8ec", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(STATE.line)
    _write_names(axes, measure, methods, runs)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _write_names(axes: Axes, measure: Measure, methods: Sequence[Record], runs: Sequence[Record]) -> None:
    """Write each method's name in the free place nearest to its dot, with a line to the dot if they are not adjacent.

    Boxes are (left, bottom, right, top) in points.
    """
    axes.autoscale_view()  # sets the limits that `transData` uses
    size, dot = 8.0, 5.0
    scale = 72 / 150  # points per pixel; matplotlib places text in pixels
    centres = [(method["search_seconds"], method[f"{measure.key}_mean"]) for method in methods]
    centres += [(run["search_seconds"], run[measure.key]) for run in runs]
    spots = [axes.transData.transform((seconds, measure.scale * value)) * scale for seconds, value in centres]
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
