"""The suite's GPU tests, in several processes; how each ended is known as soon as it ends."""

import os
import re
import subprocess
from collections import Counter
from importlib.util import find_spec

from benchmarks.gpu_day import place
from benchmarks.gpu_day.day import ROOT, Day, Notes


def run(day: Day, notes: Notes) -> None:
    workers = 0 if day.stand_in else min(os.cpu_count() or 1, 12)
    side_by_side = ["-n", str(workers)] if workers and find_spec("xdist") else []
    command = [*place.python(), "-m", "pytest", "tests/kernels/test_gpu.py", "-m", "gpu", "-v", *side_by_side]
    running = subprocess.Popen(
        [*command, "-p", "no:cacheprovider", "--tb=line"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert running.stdout
    counts: Counter[str] = Counter()
    failed: list[str] = []
    for line in running.stdout:
        print(line, end="", flush=True)
        if ended := re.search(r"\b(PASSED|FAILED|SKIPPED|ERROR)\b", line.partition(" - ")[0]):
            if line.startswith(("FAILED", "ERROR", "SKIPPED")):
                continue  # the summary at the end names them once more
            counts[ended[1].lower()] += 1
            if ended[1] in ("FAILED", "ERROR"):
                failed.append(" ".join(re.findall(r"\S+::\S+", line)))
            notes["counts"], notes["failed"] = dict(counts), failed
    if running.wait() not in (0, 1):
        raise RuntimeError(f"pytest ended with {running.returncode}")
