"""NVIDIA's compute-sanitizer over a small cell: accesses out of bounds and misaligned ones."""

import subprocess

from benchmarks.gpu_day import place
from benchmarks.gpu_day.day import ROOT, Day, Notes


def run(day: Day, notes: Notes) -> None:
    sanitizer = None if day.stand_in else place.tool("compute-sanitizer")
    if sanitizer is None and not day.stand_in:
        notes["memcheck"] = "compute-sanitizer is not installed"
        return
    checked = [sanitizer, "--tool", "memcheck", "--error-exitcode", "9"] if sanitizer else []
    command = [*checked, *place.python(), "-m", "benchmarks.gpu_day.small_cell"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    notes["exit"] = done.returncode
    notes["memcheck"] = (done.stdout or done.stderr).strip().splitlines()[-5:]
