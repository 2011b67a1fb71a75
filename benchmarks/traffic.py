"""Count memory traffic and launches of a search's steps on a GPU: plain modules against the Triton kernels.

    python -m benchmarks.traffic benchmarks/traffic.md

writes the report benchmarks/traffic.md; it needs no GPU. What is counted:

* Plain: the step of the original code, with plain modules in channels-last under bfloat16 autocast, which really runs.
  Every ATen operator counts as one launch that reads each of its input tensors and writes each of its outputs once;
  views are free.
* Fused: fastdarts' own step, which also runs, except for its kernels, whose launches are recorded. Each program of a
  launch moves every element that it loads or stores once; elements shared by several programs, as at the edges of
  tiles, count in each (benchmarks/launch_traffic.py). Torch operators around the launches count as in the plain step.

Both count the traffic between kernels and memory. Hits in the L2 cache from one kernel to the next are ignored; they
help both sides.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.gpu_day.alternative import streams
from benchmarks.launch_traffic import Traffic, traffic_of
from benchmarks.occupancy import Chip, elapsed, total, unfilled
from benchmarks.original import OriginalSearch
from fastdarts import Architect, SearchNetwork
from fastdarts.bilevel.flat import FlatSGD
from fastdarts.config.files import write_atomically
from fastdarts.kernels import bank, node, running, second
from fastdarts.kernels.mixed_sum import mixed_sum, mixed_sum_backward
from fastdarts.kernels.project import project, project_backward
from fastdarts.kernels.running import update_running

KERNELS = {
    "fastdarts::mixed_sum": mixed_sum,
    "fastdarts::mixed_sum_backward": mixed_sum_backward,
    "fastdarts::project": project,
    "fastdarts::project_backward": project_backward,
    "fastdarts::update_running": update_running,
}
LAUNCHES_NOTHING = {"empty", "empty_like", "empty_strided", "new_empty", "detach", "detach_", "as_strided_"}
LAUNCHES_NOTHING |= {"_local_scalar_dense", "_record_function_enter_new", "_record_function_exit"}


class Planning(TorchDispatchMode):
    """Make fastdarts' operators plan their launches as on a GPU, on CPU tensors; the launches go to `launch`."""

    def __init__(self, launch: Callable[..., None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launch = launch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket._qualified_op_name
        if name in KERNELS:
            with self, launches_to(self.launch):
                return KERNELS[name](*args)
        return func(*args, **(kwargs or {}))


class Counting(Planning):
    """Count traffic inside `with`, of launches and of torch's operators."""

    def __init__(self) -> None:
        super().__init__(self._launch)
        self.traffic = Traffic()
        self._begun, self._beside = 0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket._qualified_op_name
        with telling(self):
            out = super().__torch_dispatch__(func, types, args, kwargs)
        if not (name in KERNELS or is_view(func, args, out) or name.partition("::")[2] in LAUNCHES_NOTHING):
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
            self.traffic.add(name, sum(map(elements_bytes, tensors)))
        return out

    def _launch(self, kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
        if all(grid):
            named = dict(zip(kernel.arg_names, args, strict=False)) | constants
            more = traffic_of(kernel.fn.__name__, grid, named)
            more.works = [replace(work, begun=self._begun if self._beside else -1) for work in more.works]
            self.traffic += more

    def begin(self) -> None:
        self._begun = len(self.traffic.works)

    @contextmanager
    def beside(self) -> Iterator[None]:
        self._beside = True
        yield
        self._beside = False

    def join(self) -> None:
        self.traffic.joins.append(len(self.traffic.works))


@contextmanager
def launches_to(launch: Any) -> Iterator[None]:
    """Redirect launches of the kernels made inside to the function `launch`."""
    before = bank.launch
    bank.launch = node.launch = running.launch = launch
    try:
        yield
    finally:
        bank.launch = node.launch = running.launch = before


class Listener(Protocol):
    """Hear of what operators do with their second stream; see `fastdarts.kernels.second.Second`."""

    def begin(self) -> None: ...
    def beside(self) -> AbstractContextManager[None]: ...
    def join(self) -> None: ...


@contextmanager
def telling(listener: Listener) -> Iterator[None]:
    """Tell `listener` what operators inside do with their second stream."""

    class Told(second.Second):  # type: ignore[misc]
        def begin(self, *kept: Tensor) -> None:
            super().begin(*kept)
            listener.begin()

        @contextmanager
        def beside(self) -> Iterator[None]:
            with super().beside(), listener.beside():
                yield

        def join(self) -> None:
            listener.join()
            super().join()

    before = second.Second
    second.Second = Told
    try:
        yield
    finally:
        second.Second = before


def is_view(func: Any, args: Any, out: Any) -> bool:
    """Return True if an operator only made a view: `to` and `contiguous`, which may, count if they made a copy."""
    if not func.is_view:
        return False
    inputs = {t.untyped_storage().data_ptr() for t in tree_leaves(args) if isinstance(t, Tensor)}
    return all(t.untyped_storage().data_ptr() in inputs for t in tree_leaves(out) if isinstance(t, Tensor))


def elements_bytes(t: Tensor) -> int:
    """Return the bytes of a tensor's elements, counting expanded elements once."""
    size = t.element_size() if t.numel() else 0
    for length, stride in zip(t.shape, t.stride(), strict=True):
        size *= length if stride else 1
    return size


@dataclass(frozen=True)
class Search:
    """Hold the geometry of a search."""

    C: int = 16
    layers: int = 8
    batch: int = 64
    size: int = 32

    def network(self, backend: Any) -> SearchNetwork:
        torch.manual_seed(0)
        network = SearchNetwork(C=self.C, layers=self.layers, backend=backend)
        return network.to(memory_format=torch.channels_last)

    def data(self, images: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(images, 3, self.size, self.size).contiguous(memory_format=torch.channels_last)
        return x, torch.randint(10, (images,))


def plain_step(search: Search, step: str, images: int) -> Traffic:
    """Return the traffic of a step of the original code on a batch of `images` images."""
    original = OriginalSearch(search.network("reference"), amp=True)
    data = search.data(images)
    original.weight_step(data)  # creates the momentum buffers
    with Counting() as counting:
        if step == WEIGHT:
            original.weight_step(data)
        else:
            original.alpha_step(data, data, order=2)
    return counting.traffic


def plain(search: Search, step: str) -> Traffic:
    """Return `plain_step` for a whole batch, extrapolated: each operator's bytes are linear in the number of images."""
    one, two = (plain_step(search, step, images) for images in (2, 4))
    if one.launches != two.launches:
        raise RuntimeError("the plain step launches other operators for another number of images")
    sizes = {name: size + (two.bytes[name] - size) * (search.batch - 2) // 2 for name, size in one.bytes.items()}
    return Traffic(Counter(sizes), one.launches)


def fused_steps(search: Search) -> dict[str, Callable[[], object]]:
    """Return fastdarts' steps by their names."""
    network = search.network("auto")
    sgd = FlatSGD(network.parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4)
    architect = Architect(network, amp_dtype=torch.bfloat16)
    data = search.data(search.batch)

    def weight_step() -> None:
        loss, _ = architect.forward(data)
        gradients = torch.autograd.grad(loss, architect.flat.weights, materialize_grads=True)
        sgd.step(gradient=architect.flat.gather(gradients), max_norm=5.0)

    return {WEIGHT: weight_step, ALPHA: lambda: architect.step(data, data, 0.025, sgd)}


def fused(search: Search, *steps: str) -> dict[str, Traffic]:
    """Return the traffic of fastdarts' steps of these kinds, by step."""
    run = fused_steps(search)
    counting = Counting()
    found = {}
    for step in steps:
        counting.traffic = Traffic()
        with counting:
            run[step]()
        found[step] = counting.traffic
    return found


WEIGHT, ALPHA = "weight step", "second-order alpha step"
STEPS = (WEIGHT, ALPHA)


@dataclass(frozen=True)
class Device:
    """Hold a device's peaks from the vendor's data sheet (dense, without sparsity)."""

    name: str
    bandwidth: float  # bytes per second
    matrix: float  # bfloat16 FLOP per second of matrix units
    vector: float  # float32 FLOP per second


DEVICES = (
    Device("A100 80 GB", 2.04e12, 312e12, 19.5e12),
    Device("H100", 3.35e12, 989e12, 67e12),
    Device("H200", 4.8e12, 989e12, 67e12),
)


def device_like(name: str) -> Device:
    """Return the device whose name begins as `name`, or the first, an A100."""
    return next((device for device in DEVICES if device.name.split()[0] in name), DEVICES[0])


OF_PEAK = 0.7  # share of their peaks that memory and matrix units are assumed to reach
LAUNCH = 2e-6  # seconds from one kernel of a CUDA graph to the next
STEPS_IN_SEARCH = 50 * (25_000 // 64 + 1)


def seconds(t: Traffic, device: Device) -> tuple[float, float, float, float]:
    """Return the seconds for memory, matrix units, windows and launches, each as if it did not overlap with others."""
    return (
        t.bytes.total() / (OF_PEAK * device.bandwidth),
        2 * t.products / (OF_PEAK * device.matrix),
        t.slots / (device.vector / 2),
        t.launches.total() * LAUNCH,
    )


def report(search: Search, command: str) -> Iterator[str]:
    """Yield the lines of the report."""
    with streams("1"):
        ours = fused(search, *STEPS)
    with streams("2"):
        on_two = fused(search, *STEPS)
    theirs = {step: plain(search, step) for step in STEPS}
    geometry = f"C={search.C}, {search.layers} cells, batch {search.batch}"
    yield f"Made by `{command}` with torch {torch.__version__}; {geometry},"
    yield f"{search.size}x{search.size}, bfloat16. No GPU was used: these are counts, and times estimated from them.\n"
    yield "| step | | plain | fused | ratio |\n| --- | --- | --- | --- | --- |"
    for step in STEPS:
        for what, a, b, unit in (
            ("GB through memory", theirs[step].bytes.total() / 1e9, ours[step].bytes.total() / 1e9, ".2f"),
            ("launches", theirs[step].launches.total(), ours[step].launches.total(), ",.0f"),
        ):
            yield f"| {step} | {what} | {a:{unit}} | {b:{unit}} | {a / b:.1f} |"
    for name, found in (("Plain", theirs), ("Fused", ours)):
        yield f"\n{name}, GB and launches of what moves most:\n"
        yield f"| operator or kernel | {' | '.join(f'{step}, GB | launches' for step in STEPS)} |"
        yield "| --- " * 5 + "|"
        for kind, _ in found[WEIGHT].bytes.most_common(12):
            cells = (f"{found[step].bytes[kind] / 1e9:.2f} | {found[step].launches[kind]:,}" for step in STEPS)
            yield f"| {kind.removeprefix('aten::')} | {' | '.join(cells)} |"
    yield from _estimates(ours)
    yield from _filled(ours, on_two, Chip())


def _filled(ours: dict[str, Traffic], on_two: dict[str, Traffic], chip: Chip) -> Iterator[str]:
    yield (
        f"\nThe same steps on an {chip.name} by a model that knows how much of it a launch fills "
        "(benchmarks/occupancy.py "
        f"has its assumptions: {chip.multiprocessors} multiprocessors of {chip.warps} warps at 128 registers, "
        f"{chip.bandwidth / 1e12:.1f} TB/s once {chip.bandwidth * chip.latency / 1e6:.1f} MB are under way, "
        f"{chip.gap * 1e6:.1f} µs between launches). With FASTDARTS_STREAMS=2 two launches at once share the GPU, and "
        "slow down alike where together they need more than all of it. Not measured either.\n"
    )
    yield "| step | launches, ms | gaps, ms | sum, ms | on two streams, ms | with fewer programs than multiprocessors |"
    yield "| --- " * 6 + "|"
    seconds = 0.0
    for step in STEPS:
        works, beside = ours[step].works, on_two[step]
        gaps, one, two = len(works) * chip.gap, total(works, chip), elapsed(beside.works, beside.joins, chip)
        seconds += one
        few, large = unfilled(works, chip)
        times = " | ".join(f"{1e3 * value:.2f}" for value in (one - gaps, gaps, one, two))
        yield f"| {step} | {times} | {few} of {large} large launches |"
    yield f"\nA search by this model: {seconds * STEPS_IN_SEARCH / 3600:.2f} GPU-hours."


def _estimates(ours: dict[str, Traffic]) -> Iterator[str]:
    yield (
        "\nEstimated times of the fused steps in ms; they have not been measured. "
        f"Memory and matrix units at {OF_PEAK:.0%} of their peaks; windows of depthwise convolutions and pools at the "
        "issue slots in benchmarks/launch_traffic.py, counted in the machine code for sm_90 (code around their loops "
        f"is ignored); {LAUNCH * 1e6:.0f} µs per launch, as in a CUDA graph. The sum is the time "
        "if nothing overlaps, the longest part the time if it hides all others. "
        f"A search: {STEPS_IN_SEARCH:,} steps of both kinds (50 epochs, 25,000 + 25,000 images, batch 64).\n"
    )
    yield "| device | step | memory | matrix units | windows | launches | sum | GPU-hours: sum | longest part |"
    yield "| --- " * 9 + "|"
    for device in DEVICES:
        times = {step: seconds(ours[step], device) for step in STEPS}
        both = tuple(sum(parts) for parts in zip(*times.values(), strict=True))
        for step, parts in (*times.items(), ("both", both)):
            numbers = " | ".join(f"{1e3 * value:.2f}" for value in (*parts, sum(parts)))
            hours = [value * STEPS_IN_SEARCH / 3600 for value in (sum(parts), max(parts))] if step == "both" else []
            cells = " | ".join([f"{value:.3f}" for value in hours] or ["", ""])
            yield f"| {device.name} | {step} | {numbers} | {cells} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    command = " ".join(["python -m benchmarks.traffic", *sys.argv[1:]])
    write_atomically(args.out, "\n".join(report(Search(), command)) + "\n")


if __name__ == "__main__":
    main()
