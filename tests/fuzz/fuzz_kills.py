"""Programs that are killed at random instants and resumed end with the bits of undisturbed ones.

    python tests/fuzz/fuzz_kills.py --kills 200 --seed 0

Searches of both orders, evaluations and comparisons on digits take turns. Compared are the alphas of all epochs, the
weights of the last checkpoint, all metrics but times, the architecture and the ranking.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastdarts.compare
import fastdarts.evaluate
import fastdarts.report.run_report
import fastdarts.search  # noqa: F401 - imported once, for all forks

_STEPS = "--device cpu --deterministic --save-every-steps 1"
_SEARCH = f"search --layers 1 --init-channels 2 --epochs 2 --batch-size 256 {_STEPS}"
PROGRAMS = {
    "search, second order": f"{_SEARCH} --order 2",
    "search, first order": f"{_SEARCH} --order 1 --layers 3",
    "search, pc-darts": f"{_SEARCH} --method pc-darts --space nasbench201 --order 1 --init-channels 4",
    "evaluate": f"evaluate --genotype PC_DARTS --layers 3 --init-channels 2 --epochs 2 --batch-size 256 {_STEPS}",
    "compare": "compare --methods darts,random --seeds 1 --epochs 1 --select-epochs 1 --order 1 --layers 1 "
    "--init-channels 2 --batch-size 512 --device cpu --deterministic",
}
"""Command lines, of some seconds each."""

TIMES = ("seconds", "images_per_second")
"""Endings of the names of numbers that the clock decides."""


def start(command: str, out: Path, log: Path) -> int:
    """Fork a process, in a group of its own, that runs a command line in a folder, resumed where it can be."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    with log.open("a") as text:
        os.dup2(text.fileno(), 1)
        os.dup2(text.fileno(), 2)
    from fastdarts import cli

    program, *arguments = command.split()
    resumed = ["--resume", *(arguments[:2] if program == "compare" else [])]  # a comparison may get more methods
    more = resumed if (out / "config.json").is_file() else arguments
    code = 1
    try:
        code = cli.main([program, *more, "--out", str(out)])
    finally:
        sys.stdout.flush()
        os._exit(code)


def run(command: str, out: Path, log: Path, seconds: float | None = None) -> bool:
    """Run a command line to its end, or kill its whole group after some seconds; return True if it came to its end.

    Raises: RuntimeError with what it said, if it fails.
    """
    child = start(command, out, log)
    deadline = time.monotonic() + (seconds if seconds is not None else 600)
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.002)
    if ended == (0, 0):
        _kill(child, out)
        return False
    if os.waitstatus_to_exitcode(ended[1]):
        raise RuntimeError(f"{command} in {out} failed: {log.read_text()[-2000:]}")
    return True


def _kill(child: int, out: Path) -> None:
    """Kill a program and the runs that a comparison has started, which are sessions of their own."""
    os.kill(child, signal.SIGSTOP)  # so that it starts no more
    for run_of in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(out).encode() in run_of.read_bytes().split(b"\0"):
                os.kill(int(run_of.parent.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def end_of(folder: Path) -> dict[str, Any]:
    """Read what a run's folder, and the folders in it, came to."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name == "alphas.npz":
            with np.load(path) as arrays:
                found |= {f"{name} {key}": arrays[key].tobytes() for key in arrays.files}
        elif path.name == "checkpoint.pt":
            network = torch.load(path, weights_only=True)["network"]
            found |= {f"{name} {key}": value.numpy().tobytes() for key, value in network.items()}
        elif path.name == "metrics.jsonl":
            found[name] = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".json" and path.name not in ("environment.json", "config.json"):
            found[name] = _timeless(json.loads(path.read_text()))
    return found


def _timeless(value: Any) -> Any:
    """Leave out what the clock or the machine's memory decides."""
    if isinstance(value, dict):
        names = [name for name in value if not name.endswith(TIMES) and name not in ("peak_bytes", "text")]
        return {name: _timeless(value[name]) for name in names}
    return [_timeless(one) for one in value] if isinstance(value, list) else value


def run_kills(kills: int, seed: int, folder: Path, names: tuple[str, ...] = tuple(PROGRAMS)) -> Counter[str]:
    """Kill the programs, in turn, so many times in all; return how often each was killed and how often it differed."""
    draw, told, undisturbed = random.Random(seed), Counter[str](), {}
    lengths: dict[str, float] = {}
    for name in names:
        start_time = time.monotonic()
        run(PROGRAMS[name], folder / name, folder / "log")
        lengths[name], undisturbed[name] = time.monotonic() - start_time, end_of(folder / name)
    for number in range(kills):  # until kills are used up
        name = names[number % len(names)]
        out = folder / f"killed {name}"
        shutil.rmtree(out, ignore_errors=True)
        for _ in range(draw.randint(1, 4)):
            if told["kills"] == kills or run(PROGRAMS[name], out, folder / "log", draw.uniform(0, lengths[name])):
                break
            told["kills"] += 1
            told[name] += 1
        run(PROGRAMS[name], out, folder / "log")
        ours = end_of(out)
        told["runs"] += 1
        if ours != undisturbed[name]:
            told["different"] += 1
            keys = [k for k in ours.keys() | undisturbed[name].keys() if ours.get(k) != undisturbed[name].get(k)]
            print(f"{name}, run {number} of seed {seed}: other {', '.join(sorted(keys))}", flush=True)
        if told["kills"] == kills:
            break
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told = run_kills(args.kills, args.seed, Path(folder))
    words = ", ".join(f"{told[name]} of {name}" for name in PROGRAMS)
    print(
        f"{told['kills']} kills ({words}), {told['runs']} runs, seed {args.seed}: {told['different']} ended differently"
    )
    return int(told["different"] > 0)


if __name__ == "__main__":
    sys.exit(main())
