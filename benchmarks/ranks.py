"""Measure a search step on several ranks, and model it on many GPUs: `python -m benchmarks.ranks`.

Measured: processes of one thread each, which share a batch over gloo, against one process with as many threads; rounds
alternate, and the bytes that a rank gives to all-reduces are counted. CPU seconds are those of all processes and
threads, which other load on the machine changes less than time. Modelled: an H100 by the launches of its steps and
benchmarks/occupancy.py, and ring all-reduces by the constants of LINKS. The model's figures are estimates.
"""

import multiprocessing
import socket
import statistics
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from benchmarks.gpu_day.alternative import streams
from benchmarks.machine import device_name
from benchmarks.occupancy import Chip, total
from benchmarks.traffic import STEPS, Search, fused
from fastdarts import Architect, SearchNetwork
from fastdarts.bilevel.flat import FlatSGD
from fastdarts.bilevel.ranks import ALONE, Ranks
from fastdarts.bilevel.step import SearchStep

WEIGHTS, ALPHAS = 1_930_618, 224  # C=16, 8 cells
SHARES = (1, 2, 4, 8, 16, 32)
BATCHES = (64, 256, 1024)


@dataclass(frozen=True)
class Link:
    """Hold constants of a ring all-reduce: bytes a second that a GPU sends, and seconds that a call takes at least."""

    bandwidth: float
    latency: float


LINKS = {"one machine (NVLink)": Link(360e9, 20e-6), "several (8 x 400 Gb/s each)": Link(40e9, 60e-6)}
"""Assumed: 80% of NVLink 4's 450 GB/s each way and of a 400 Gb/s adapter a GPU; latencies of NCCL for few megabytes."""


@dataclass(frozen=True)
class Setting:
    C: int
    layers: int
    batch: int
    order: int


class Counting(Ranks):
    """Count the bytes that this rank gives to all-reduces."""

    sent = 0

    def sum_(self, flat: Tensor) -> Tensor:
        if not self.alone:
            self.sent += flat.numel() * flat.element_size()
        return super().sum_(flat)


def bytes_of_step(order: int, weights: int = WEIGHTS, alphas: int = ALPHAS, item: int = 4) -> int:
    """Return the bytes that a search step gives to all-reduces: weights once a full pass, alphas once."""
    return item * ((1 if order == 1 else 3) * weights + alphas)


def all_reduce_seconds(order: int, ranks: int) -> float:
    """Estimate the all-reduces of a search step on `ranks` GPUs, 8 a machine."""
    if ranks == 1:
        return 0.0
    link = LINKS["one machine (NVLink)" if ranks <= 8 else "several (8 x 400 Gb/s each)"]
    calls = 2 if order == 1 else 4
    return calls * link.latency + 2 * (ranks - 1) / ranks * bytes_of_step(order) / link.bandwidth


@cache
def h100_seconds(images: int) -> float:
    """Estimate a second-order search step on one H100 from how much of it each launch fills (benchmarks/occupancy.py).

    Args:
        images: of each of the two batches; C=16, 8 cells, 32x32, bfloat16.
    """
    with streams("1"):
        steps = fused(Search(batch=images), *STEPS)
    return sum(total(step.works, Chip()) for step in steps.values())


def model_table(compute: Callable[[int], float]) -> str:
    """Return a Markdown table: milliseconds a second-order step and the speed-up over one GPU; nothing overlaps.

    Args:
        compute: returns the seconds of a step on one GPU for a number of images.
    """
    lines = [
        f"| H100s | {' | '.join(f'batch {batch}' for batch in BATCHES)} | of these all-reduces |",
        f"| --- |{' --- |' * len(BATCHES)} --- |",
    ]
    for ranks in SHARES:
        sending = all_reduce_seconds(2, ranks)
        steps = [(compute(batch), compute(batch // ranks) + sending) for batch in BATCHES]
        cells = [f"{1e3 * step:.1f} ms, {alone / step:.1f}x" for alone, step in steps]
        lines.append(f"| {ranks} | {' | '.join(cells)} | {1e3 * sending:.2f} ms |")
    return "\n".join(lines)


def measured(setting: Setting, ranks: int, rounds: int) -> dict[str, float]:
    """Return medians of a step of `ranks` processes and of one of as many threads: seconds, CPU seconds; bytes sent."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    arguments = (ranks, port, setting, rounds, results)
    spawn(_measure, arguments, nprocs=ranks)
    return results.get()


def _measure(rank: int, size: int, port: int, setting: Setting, rounds: int, results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    together = Counting(dist.group.WORLD)
    shared, whole = _step(setting, together), _step(setting, ALONE)
    own, everything = _batches(setting.batch // size), _batches(setting.batch)
    seconds: dict[str, list[float]] = {name: [] for name in ("ranks", "ranks_cpu", "threads", "threads_cpu")}
    for _ in range(rounds + 1):
        dist.barrier()
        before = together.sent
        start, cpu = time.perf_counter(), time.process_time()
        shared.step(*own)
        seconds["ranks"].append(time.perf_counter() - start)
        used = torch.tensor(time.process_time() - cpu)
        dist.all_reduce(used)
        seconds["ranks_cpu"].append(float(used))
        sent = together.sent - before
        dist.barrier()
        if rank == 0:  # the others wait at the next barrier
            torch.set_num_threads(size)
            start, cpu = time.perf_counter(), time.process_time()
            whole.step(*everything)
            seconds["threads"].append(time.perf_counter() - start)
            seconds["threads_cpu"].append(time.process_time() - cpu)
            torch.set_num_threads(1)
    if rank == 0:  # the first round prepares what later ones find
        results.put({name: statistics.median(values[1:]) for name, values in seconds.items()} | {"bytes": sent})
    dist.destroy_process_group()


def _step(setting: Setting, ranks: Ranks) -> SearchStep:
    torch.manual_seed(0)
    network = SearchNetwork(C=setting.C, layers=setting.layers).to(memory_format=torch.channels_last)
    optimizer = FlatSGD(network.parameters(), 0.025, momentum=0.9, weight_decay=3e-4)
    return SearchStep(network, Architect(network, ranks=ranks), optimizer, order=setting.order)


def _batches(images: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(images, 3, 32, 32), torch.randint(10, (images,))) for _ in range(2)]


def main(argv: list[str] | None = None) -> int:
    parser = ArgumentParser(prog="python -m benchmarks.ranks", description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="use a small network, to test the benchmark")
    arguments = parser.parse_args(argv)
    base = (4, 2, 8) if arguments.small else (16, 8, 64)
    name = device_name(torch.device("cpu"))
    print(f"Measured: C={base[0]}, {base[1]} cells, global batch {base[2]}, 32x32, float32, on {name}.\n")
    n = arguments.ranks
    print(f"| step | {n} ranks of a thread, s (CPU s) | one process of {n} threads | ratio | MB to all-reduces |")
    print("| --- | --- | --- | --- | --- |")
    for order, words in ((1, "first order"), (2, "second order")):
        found = measured(Setting(*base, order), n, arguments.rounds)
        times = [f"{found[name]:.3f} ({found[f'{name}_cpu']:.3f})" for name in ("ranks", "threads")]
        ratios = [found[f"threads{kind}"] / found[f"ranks{kind}"] for kind in ("", "_cpu")]
        numbers = f"{' | '.join(times)} | {ratios[0]:.2f} ({ratios[1]:.2f}) | {found['bytes'] / 1e6:.3f}"
        print(f"| search step, {words} | {numbers} |", flush=True)
    print("\nEstimated, not measured: a second-order search step, and how much faster than on one H100.\n")
    print(model_table(h100_seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
