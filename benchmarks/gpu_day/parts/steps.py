"""Milliseconds of a search's steps: eager, as CUDA graphs, with plain modules, and of a cell with torch.compile."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu_day.alternative import NAME, TWO_STREAMS, planes_asked_for, streams
from benchmarks.gpu_day.day import Day, Notes, milliseconds
from benchmarks.gpu_day.steps import Run, Steps, captured, network_of
from benchmarks.original import OriginalSearch, autocast
from fastdarts.mixed.mixed_op import Backend
from fastdarts.spaces.darts.cell import Cell
from fastdarts.spaces.darts.genotype import edges_of


def run(day: Day, notes: Notes) -> None:
    steps = Steps(day, cuda_graphs=False)
    fused: dict[str, Run] = {
        "weight step": steps.weight,
        "alpha step, order 1": lambda: steps.alpha(1),
        "alpha step, order 2": lambda: steps.alpha(2),
        "search step": steps.step,
    }
    plain = plain_steps(day, steps)
    cells = cell_steps(day)
    for name, step in fused.items():
        _measure(day, notes, f"{name}, graph", lambda step=step: captured(step, day.device))  # type: ignore[misc]
    for name, step in plain.items():
        _measure(day, notes, f"{name}, plain", lambda step=step: step)  # type: ignore[misc]
    for name, step in fused.items():
        _measure(day, notes, f"{name}, eager", lambda step=step: step)  # type: ignore[misc]
    with planes_asked_for():
        for name in ("weight step", "alpha step, order 2"):
            _measure(day, notes, f"{name}, graph, {NAME}", lambda name=name: captured(fused[name], day.device))  # type: ignore[misc]
    with streams("2"):
        for name in ("weight step", "alpha step, order 2"):
            _measure(day, notes, f"{name}, graph, {TWO_STREAMS}", lambda name=name: captured(fused[name], day.device))  # type: ignore[misc]
    _measure(day, notes, "weight step, plain graph", lambda: captured(plain["weight step"], day.device))
    for name, step in cells.items():
        _measure(day, notes, f"cell, {name}", lambda step=step: step)  # type: ignore[misc]


def _measure(day: Day, notes: Notes, name: str, prepare: Callable[[], Run]) -> None:
    """Note the milliseconds of what `prepare` returns, or why it does not run."""
    try:
        notes[name] = milliseconds(prepare(), day.device, day.geometry.rounds)
    except RuntimeError as error:
        notes[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]


def plain_steps(day: Day, steps: Steps) -> dict[str, Run]:
    """Return the steps of the original code: plain modules in channels-last under autocast."""
    network = network_of(day.geometry, "reference").to(day.device)
    original = OriginalSearch(network.to(memory_format=torch.channels_last), amp=True)
    train, valid = steps.train, steps.valid
    return {
        "weight step": lambda: original.weight_step(train),
        "alpha step, order 1": lambda: original.alpha_step(train, valid, 1),
        "alpha step, order 2": lambda: original.alpha_step(train, valid, 2),
        "search step": lambda: original.search_step(train, valid, 2),
    }


def cell_steps(day: Day) -> dict[str, Run]:
    """Return forward and backward of a normal cell: fused, plain, compiled."""
    made: dict[str, Run] = {}
    backends: tuple[tuple[str, Backend], ...] = (("fused", "auto"), ("plain", "reference"), ("compiled", "reference"))
    for name, backend in backends:
        g = day.geometry
        cell = Cell(4, 4, 4 * g.C, 4 * g.C, g.C, False, False, backend=backend)
        cell.to(day.device).to(memory_format=torch.channels_last)
        if name == "compiled" and not day.stand_in:
            cell.compile()
        weights = torch.randn(len(edges_of(4)), 8, device=day.device).softmax(1).requires_grad_()
        x = torch.randn(g.batch, 4 * g.C, g.size, g.size, device=day.device)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        made[name] = _forward_backward(cell, x, weights)
    return made


def _forward_backward(cell: Cell, x: Tensor, weights: Tensor) -> Run:
    wanted = [x, weights, *cell.parameters()]

    def step() -> None:
        with autocast(x.device, True):
            out = cell(x, x, weights)
        torch.autograd.grad(out.float().square().mean(), wanted)

    return step
