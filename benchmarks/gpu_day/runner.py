"""Run parts one after the other, each in a process with a time limit, and write their results as each ends."""

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu_day import place
from benchmarks.gpu_day.day import ROOT, Day
from fastdarts.config.files import write_atomically

TAIL = 3000  # characters of a part's output that its results keep


@dataclass
class Outcome:
    """Hold what became of a part. status: ended, failed, timed out, or left out (for lack of time)."""

    status: str
    seconds: float
    notes: dict[str, Any] = field(default_factory=dict)
    output: str = ""


def run_part(module: str, day: Day, limit: float, environment: dict[str, str], out: Path) -> Outcome:
    """Run a part's module; end it and all that it has started `limit` seconds from now."""
    notes, log = out / "now.json", out / "log.txt"
    notes.unlink(missing_ok=True)
    day = replace(day, until=time.time() + limit)
    command = [*place.python(), "-m", "benchmarks.gpu_day.part", module, day.to_json(), str(notes)]
    start = time.time()
    with log.open("a") as stream:
        print(f"\n== {module}, at most {limit:.0f} s", file=stream, flush=True)
        begin = stream.tell()
        child = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = "ended" if child.wait(limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "timed out"
        finally:
            end(child)
    found = json.loads(notes.read_text()) if notes.is_file() else {}
    notes.unlink(missing_ok=True)
    said = log.read_bytes()[begin:].decode(errors="replace")[-TAIL:] if status != "ended" else ""
    return Outcome(status, time.time() - start, found, said)


def end(child: subprocess.Popen[bytes]) -> None:
    """End a process that leads a group, and the whole group."""
    with suppress(ProcessLookupError):  # nothing of the group is left
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def write(out: Path, results: dict[str, Any]) -> None:
    write_atomically(out / "results.json", json.dumps(results, indent=1) + "\n")
