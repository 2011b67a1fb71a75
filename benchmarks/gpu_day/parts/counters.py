"""Hardware counters of the longest launches of a weight step, by ncu."""

import csv
import io
import subprocess
from typing import Any

from benchmarks.gpu_day import place
from benchmarks.gpu_day.day import ROOT, Day, Notes

COUNT = 12
METRICS = {
    "gpu__time_duration.sum": "duration",
    "dram__bytes.sum": "bytes",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "memory, % of peak",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "multiprocessors, % of peak",
    "sm__inst_issued.avg.pct_of_peak_sustained_active": "issue, % of peak",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps, % of peak",
    "launch__registers_per_thread": "registers",
    "launch__waves_per_multiprocessor": "waves",
}


def run(day: Day, notes: Notes) -> None:
    rows = day.results.get("launches", {}).get("weight step", [])
    keys = [row["key"] for row in rows[:COUNT]]
    ncu = None if day.stand_in else place.tool("ncu")
    if not keys or (ncu is None and not day.stand_in):
        notes["counters"] = "ncu is not installed" if keys else "no launches were measured"
        return
    options = ["--profile-from-start", "off", "--csv", "--page", "raw", "--metrics", ",".join(METRICS)]
    counted = [ncu, *options] if ncu else []
    command = [*counted, *place.python(), "-m", "benchmarks.gpu_day.longest", day.to_json(), *keys]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stderr)
    if done.returncode:
        raise RuntimeError(f"ended with {done.returncode}: {done.stdout[-500:]}")
    notes["counters"] = table(done.stdout, keys)


def table(text: str, keys: list[str]) -> list[dict[str, Any]]:
    """Return a row for each launch from what ncu prints: a line of names, one of units, one a launch."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    found = list(csv.DictReader(io.StringIO("\n".join(lines))))
    units, rows = found[0] if found else {}, found[1:]
    named = {name: f"{METRICS[name]} {units[name]}".strip() for name in METRICS if name in units}
    return [{"key": key, **{named[n]: row[n] for n in named}} for key, row in zip(keys, rows, strict=False)]
