"""Measure the steps of the recurrent space, fused and by plain modules: `python -m benchmarks.recurrent`.

Each variant runs in a process of its own, which counts its peak memory; variants of one step follow each other. The
default size is the paper's (d=300, batch 256, 35 words a window, 10,000 different words; evaluation d=850, batch 64).
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.machine import device_name
from fastdarts.bilevel.architect import Architect
from fastdarts.bilevel.clipping import VirtualClip
from fastdarts.bilevel.flat import FlatSGD
from fastdarts.bilevel.step import SearchStep, StepRules
from fastdarts.bilevel.task_step import TaskStep
from fastdarts.runs.resources import peak_bytes, reset_peak
from fastdarts.spaces.recurrent.architecture import PUBLISHED
from fastdarts.spaces.recurrent.discrete import RecurrentNetwork
from fastdarts.spaces.recurrent.supernet import RecurrentSearchNetwork
from fastdarts.tasks.language import Dropouts, Language
from fastdarts.tasks.task import Batch

STEPS = ("weight", "alpha", "evaluation")
VARIANTS = ("plain", "fused", "plain amp", "fused amp")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Size:
    """Hold the sizes of a step."""

    step: str
    width: int
    batch: int
    window: int
    words: int
    repeats: int


class WeightsOnly(StepRules):
    """Run weight steps without alpha steps."""

    def level_now(self) -> str:  # type: ignore[override]
        return "weights"


def batch_of(size: Size, seed: int) -> Batch:
    """Return a random window with its masks."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(size.words, (size.window + 1, size.batch), generator=generator)
    hidden = torch.zeros(size.batch, size.width)
    masks = Dropouts(0.75, 0.25, 0.75, 0.2, 0.0).draw(size.words, hidden, generator)
    return words[:-1], words[1:], hidden, *masks


def step_of(size: Size, variant: str) -> Callable[[], object]:
    """Return a function that runs one step."""
    torch.manual_seed(0)
    backend = "reference" if variant.startswith("plain") else "fused"
    amp_dtype = torch.bfloat16 if variant.endswith("amp") else None
    train, valid = batch_of(size, 0), batch_of(size, 1)
    task = Language(1e-3, 0.0)
    if size.step == "evaluation":
        found = RecurrentNetwork(PUBLISHED["RNN_DARTS_V2"], size.words, size.width, backend)  # type: ignore[arg-type]
        optimizer = FlatSGD(found.parameters(), 20.0, 0.0, 8e-7)
        training = TaskStep(found, optimizer, task, grad_clip=0.25, amp_dtype=amp_dtype)
        return lambda: training.step(train)
    network = RecurrentSearchNetwork(size.words, size.width, backend)  # type: ignore[arg-type]
    optimizer = FlatSGD(network.parameters(), 20.0, 0.0, 5e-7)
    clip = VirtualClip(0.25)
    architect = Architect(network, w_momentum=0.0, w_weight_decay=5e-7, task=task, clip=clip, amp_dtype=amp_dtype)
    if size.step == "alpha":
        return lambda: architect.step(train, valid, 20.0, optimizer)
    search = SearchStep(network, architect, optimizer, order=1, grad_clip=0.25, rules=WeightsOnly())
    return lambda: search.step(train, valid)


def measure(size: Size, variant: str) -> dict[str, float]:
    """Return seconds and bytes of a step; memory above that of the process with its weights."""
    step = step_of(size, variant)
    rest = reset_peak(CPU)
    step()
    peak = peak_bytes(CPU) - rest
    seconds = []
    for _ in range(size.repeats):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "bytes": max(peak, 1)}


def measured_apart(size: Size, variant: str) -> dict[str, float]:
    """Return `measure` of a process of its own."""
    given = json.dumps(dataclasses.asdict(size))
    command = [sys.executable, "-m", "benchmarks.recurrent", "--one", variant, "--size", given]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(argv: list[str] | None = None) -> int:
    """Print a table of all steps and variants, with ratios to the plain modules in float32."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recurrent", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--width", type=int, help="default: 300, and 850 for an evaluation")
    parser.add_argument("--batch", type=int, help="default: 256, and 64 for an evaluation")
    parser.add_argument("--window", type=int, default=35)
    parser.add_argument("--words", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--size", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.one is not None:
        print(json.dumps(measure(Size(**json.loads(given.size)), given.one)))
        return 0
    print(f"{device_name(CPU)}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'step':<12}{'variant':<12}{'seconds':>10}{'ratio':>8}{'GiB':>8}{'ratio':>8}")
    for step in given.steps:
        evaluation = step == "evaluation"
        width, batch = given.width or (850 if evaluation else 300), given.batch or (64 if evaluation else 256)
        size = Size(step, width, batch, given.window, given.words, given.repeats)
        first: dict[str, float] | None = None
        for variant in given.variants:
            found = measured_apart(size, variant)
            first = first or found
            ratios = [first[name] / found[name] for name in ("seconds", "bytes")]
            memory = found["bytes"] / 2**30
            print(
                f"{step:<12}{variant:<12}{found['seconds']:>10.3f}{ratios[0]:>8.2f}{memory:>8.2f}{ratios[1]:>8.2f}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
