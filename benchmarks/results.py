"""Hold the measurements of one run as rows, and write them as a table and as a file."""

import json
import re
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.cases import (
    ALPHA_STEP,
    AT_PAPERS_SIZE,
    BASELINE,
    BETWEEN_PASSES,
    FUSED,
    FUSED_AMP,
    METHODS,
    SAMPLING,
    SEARCH_STEP,
    Case,
    compulsory_bytes,
    flops,
    has_kernels,
)
from benchmarks.machine import Peaks
from benchmarks.worker import Measurement
from fastdarts.config.files import write_atomically

EPOCHS, TRAIN_IMAGES = 50, 25_000
"""The paper's search: each epoch has steps over 25,000 training images, with as many validation images."""

PUBLISHED = (
    ("DARTS, first order, 4 searches on a GTX 1080 Ti", 1.5),
    ("DARTS, second order, 4 searches on a GTX 1080 Ti", 4.0),
)
"""GPU-days as published in Liu, Simonyan and Yang, ICLR 2019 (arXiv:1806.09055), table 1."""

UNITS = {"cpu": "CPU", "cuda": "GPU"}


@dataclass(frozen=True)
class Row:
    """Hold the measurements of one variant of one case; times in seconds, memory in bytes (see `Measurement`)."""

    case: str
    kind: str
    variant: str
    batch: int
    seconds: tuple[float, ...] = ()
    first_seconds: float | None = None
    peak_bytes: int = 0
    rest_bytes: int = 0
    flops: int | None = None
    compulsory_bytes: int | None = None
    error: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def quantile(self, percent: int) -> float:
        """Return the quantile at `percent` of the steps' times, with linear interpolation."""
        if len(self.seconds) == 1:
            return self.seconds[0]
        return statistics.quantiles(self.seconds, n=100, method="inclusive")[percent - 1]

    @property
    def images_per_second(self) -> float:
        return self.batch / self.median

    def as_dict(self) -> dict[str, object]:
        measured: dict[str, object] = {}
        if self.seconds:
            measured = {
                "median": self.median,
                "p20": self.quantile(20),
                "p80": self.quantile(80),
                "images_per_second": self.images_per_second,
            }
        return {**asdict(self), "seconds": list(self.seconds), **measured}


class Results:
    """Hold all rows of a run on one machine."""

    def __init__(self, environment: Mapping[str, object], peaks: Peaks, full: bool) -> None:
        self.environment = dict(environment)
        self.peaks = peaks
        self.full = full
        self.rows: list[Row] = []

    def add(self, case: Case, measurements: Mapping[str, Measurement], device: torch.device) -> None:
        arithmetic, traffic = flops(case), compulsory_bytes(case)
        for variant, found in measurements.items():
            error = found.error
            if error is None and variant in (FUSED, FUSED_AMP) and _needs_kernels(case) and not has_kernels(device):
                error = f"no kernels for {device.type} in this installation"
            self.rows.append(
                Row(
                    case.name,
                    case.kind,
                    variant,
                    case.batch,
                    tuple(found.seconds),
                    found.first_seconds,
                    found.peak_bytes,
                    found.rest_bytes,
                    arithmetic,
                    traffic,
                    error,
                )
            )

    def has(self, case: str, variant: str) -> bool:
        return any((row.case, row.variant) == (case, variant) for row in self.rows)

    def row(self, case: str, variant: str) -> Row:
        return next(row for row in self.rows if (row.case, row.variant) == (case, variant))

    def of_kind(self, *kinds: str) -> list[Row]:
        """Return the measured rows of these kinds, in the suite's order."""
        return [row for row in self.rows if row.kind in kinds and not row.error]

    def hours(self, row: Row) -> float:
        """Return the hours of the paper's 50 epochs at the row's speed."""
        return EPOCHS * TRAIN_IMAGES / row.images_per_second / 3600

    def table(self) -> str:
        """Return the text for the terminal: times, memory, arithmetic; then hours of a search."""
        e, peaks = self.environment, self.peaks
        unit = UNITS[str(e["kind"])]
        size = "C=16, 8 cells, batch 64, 32x32" if self.full else "a small size; --full measures the paper's"
        lines = [
            f"{e['device']}, {e['threads']} threads ({e['capability']}), torch {e['torch']}, commit {e['commit']}, "
            f"load {e['load']:.1f} at the start; {size}",
            f"peak {peaks.flops / 1e9:.0f} GFLOP/s ({peaks.flops_by}), "
            f"matrix product {peaks.matmul_flops / 1e9:.0f} GFLOP/s, "
            f"memory {peaks.traffic / 1e9:.1f} GB/s (c = a + b)",
            "Medians of steps that the variants make in turns, after two warm-up steps each; speed and memory ratio",
            f"relative to {BASELINE}, for methods to {METHODS[0]}. Memory: peak of a process minus its memory after",
            "loading libraries; on a GPU, peak allocated by torch. GFLOP/s and share of the peak: useful FLOPs, those",
            "of 3 forwards for a weight step.",
            "",
            f"{'':<22}{'median':>11}{'[p20, p80]':>24}{'speed':>9}{'images/s':>11}"
            f"{'memory':>10}{'ratio':>8}{'GFLOP/s':>9}{'peak':>6}",
        ]
        for case in dict.fromkeys(row.case for row in self.rows):
            rows = [row for row in self.rows if row.case == case]
            baseline = next((r for r in rows if r.variant in (BASELINE, METHODS[0]) and not r.error), None)
            lines += [case, *(self._line(row, baseline) for row in rows)]
        lines += self._shares()
        projections = self.of_kind("search_step")
        if projections:
            network = "the paper's network" if self.full else f"the small network, but for {AT_PAPERS_SIZE[2:]}"
            lines += [
                "",
                f"{unit}-hours per search, projected from the measured steps: {EPOCHS} epochs of {TRAIN_IMAGES:,} + "
                f"{TRAIN_IMAGES:,} images, {network}",
                *(f"  {row.case:<42}{row.variant:<22}{self.hours(row):9.1f} h" for row in projections),
                "published (Liu et al., ICLR 2019, table 1):",
                *(f"  {what:<50}{days:9.1f} GPU-days" for what, days in PUBLISHED),
            ]
        return "\n".join(lines)

    def _shares(self) -> list[str]:
        """Return the shares of time that a fused second-order step of the paper's size spends outside of passes."""
        fused = {row.case: row.median for row in self.rows if row.variant == FUSED and not row.error}
        size = "" if self.full else AT_PAPERS_SIZE
        pairs = [(BETWEEN_PASSES, ALPHA_STEP + size), (SAMPLING, SEARCH_STEP + size)]
        known = [(part, whole) for part, whole in pairs if part in fused and whole in fused]
        return ["", *(f"{part}: {fused[part] / fused[whole]:.2%} of the {whole}, fused" for part, whole in known)]

    def _line(self, row: Row, baseline: Row | None) -> str:
        if row.error:
            return f"  {row.variant:<20}  {row.error}"
        speed = f"{baseline.median / row.median:.2f}x" if baseline else ""
        memory = f"{row.peak_bytes / max(baseline.peak_bytes, 1):.2f}" if baseline else ""
        rate = share = ""
        if row.flops:
            rate, share = f"{row.flops / row.median / 1e9:.1f}", f"{row.flops / row.median / self.peaks.flops:.0%}"
        compiling = f"   compiled in {row.first_seconds:.0f} s" if row.variant == "plain compiled" else ""
        spread = f"[{_time(row.quantile(20))}, {_time(row.quantile(80))}]"
        return (
            f"  {row.variant:<20}{_time(row.median):>11}{spread:>24}{speed:>9}{row.images_per_second:>11.1f}"
            f"{row.peak_bytes / 2**20:>7.0f} MB{memory:>8}{rate:>9}{share:>6}{compiling}"
        )

    def write(self, folder: Path) -> Path:
        """Write the results as `<device>.json`, or `<device>-full.json`, in `folder`; return the path."""
        slug = re.sub(r"[^a-z0-9]+", "-", str(self.environment["device"]).lower()).strip("-")
        path = folder / f"{slug}{'-full' if self.full else ''}.json"
        folder.mkdir(parents=True, exist_ok=True)
        projections = [
            {"case": row.case, "variant": row.variant, "hours": self.hours(row)} for row in self.of_kind("search_step")
        ]
        content = {
            "environment": self.environment,
            "peaks": asdict(self.peaks),
            "full": self.full,
            "rows": [row.as_dict() for row in self.rows],
            "projected_hours_per_search": projections,
            "published_gpu_days": dict(PUBLISHED),
        }
        write_atomically(path, json.dumps(content, indent=1).encode())
        return path


def load(path: Path) -> dict[tuple[str, str], Row]:
    """Return the measured rows of a file by (case, variant); raise a ValueError if it is not a file of results."""
    try:
        content = json.loads(path.read_text())
        fields = Row.__dataclass_fields__
        known = [{name: value for name, value in row.items() if name in fields} for row in content["rows"]]
        rows = [Row(**row | {"seconds": tuple(row["seconds"])}) for row in known]
        return {(row.case, row.variant): row for row in rows if not row.error}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no benchmark results: {error}") from error


def _needs_kernels(case: Case) -> bool:
    return case.kind not in ("between_passes", "clip_sgd", "data")


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.2f} ms"
