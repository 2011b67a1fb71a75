"""Draw the picture of a run: time and memory of each variant, and the kernels' place under the machine's roofline."""

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks.cases import AUTOCAST, CHANNELS_LAST, COMPILED, FUSED, FUSED_AMP, METHODS, NCHW
from benchmarks.results import Results, Row

COLOURS = {
    FUSED: "#1a7a4c",
    FUSED_AMP: "#7cc49b",
    NCHW: "#4a4e69",
    CHANNELS_LAST: "#8d90a8",
    AUTOCAST: "#c4a35a",
    COMPILED: "#b5543a",
    **dict(zip(METHODS, ("#1a7a4c", "#3c78a8", "#8e5aa8"), strict=True)),
}


def draw(results: Results, path: Path) -> Path:
    """Draw `results` as a PNG file and return its path."""
    rows = [row for row in results.rows if not row.error]
    cases = list(dict.fromkeys(row.case for row in rows))
    height = 1.5 + 0.2 * (len(rows) + len(cases))
    figure = Figure(figsize=(15, max(height, 5.5)), layout="constrained")
    points = [row for row in results.of_kind("mixed_op", "cell", "weight_step") if row.flops and row.compulsory_bytes]
    left, middle, *right = figure.subplots(1, 2 + bool(points), width_ratios=[1.5, 1, 1.3][: 2 + bool(points)])
    _bars(left, rows, cases, [row.median for row in rows], "seconds a step (median, p20 to p80)", spread=True)
    _bars(middle, rows, cases, [row.peak_bytes / 2**20 for row in rows], "peak memory, MB", spread=False)
    middle.set_yticklabels([])
    for axes in right:
        _roofline(axes, results, points)
    e = results.environment
    size = "C=16, 8 cells, batch 64" if results.full else "small size"
    figure.suptitle(f"{e['device']}, {e['threads']} threads, torch {e['torch']}, {size}", fontsize=11)
    handles = {v: next((p for p in left.patches if p.get_label() == v), None) for v in COLOURS}
    shown = {v: h for v, h in handles.items() if h is not None}
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(path, dpi=110)
    return path


def _bars(axes: Axes, rows: list[Row], cases: list[str], values: list[float], label: str, *, spread: bool) -> None:
    place, ticks = 0.0, []
    for case in cases:
        members = [(row, value) for row, value in zip(rows, values, strict=True) if row.case == case]
        ticks.append(place + (len(members) - 1) / 2)
        for row, value in members:
            error = [[value - row.quantile(20)], [row.quantile(80) - value]] if spread else None
            bar = axes.barh(place, value, height=0.9, color=COLOURS[row.variant], xerr=error, error_kw={"lw": 0.8})
            bar.patches[0].set_label(row.variant)
            place += 1
        place += 0.8
    axes.set_yticks(ticks, cases, fontsize=8)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    if spread:  # times span orders of magnitude
        axes.set_xscale("log")
        axes.set_xlim(left=10 ** math.floor(math.log10(min(values))))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _roofline(axes: Axes, results: Results, points: list[Row]) -> None:
    """Plot useful FLOP/s against FLOPs per byte of least traffic.

    A point far below the roof moves more bytes or computes more slowly than necessary.
    """
    peak, traffic = results.peaks.flops, results.peaks.traffic
    knee = peak / traffic
    intensities = [row.flops / row.compulsory_bytes for row in points if row.flops and row.compulsory_bytes]
    ends = [min([*intensities, knee]) / 2, max([*intensities, knee]) * 2]
    axes.plot([ends[0], knee, ends[1]], [ends[0] * traffic / 1e9, peak / 1e9, peak / 1e9], color="black", lw=1.5)
    for row, intensity in zip(points, intensities, strict=True):
        marker = {"mixed_op": "o", "cell": "s", "weight_step": "D"}[row.kind]
        rate = row.flops / row.median / 1e9 if row.flops else 0.0
        axes.plot(intensity, rate, marker, color=COLOURS[row.variant], ms=6, mec="white", mew=0.5)
    for kind, marker in (("mixed op", "o"), ("cell", "s"), ("weight step", "D")):
        axes.plot([], [], marker, color="grey", label=kind)
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("useful FLOPs per byte of compulsory traffic\n(float32 states and their gradients, once each)")
    axes.set_ylabel("GFLOP/s")
    axes.set_title(f"roofline: {peak / 1e9:.0f} GFLOP/s, {traffic / 1e9:.1f} GB/s measured", fontsize=9)
    axes.grid(which="both", alpha=0.2)
