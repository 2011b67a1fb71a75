"""Cells of each size against the plain formulas in float64: whether all is right, else the first kernel that is not."""

from dataclasses import replace
from pathlib import Path

import torch
from kernel_cases import Case, fused, plain

from benchmarks.gpu_day import smoke
from benchmarks.gpu_day.day import Day, Notes
from benchmarks.gpu_day.recording import Launch, each_launch, nan_in_new_memory
from benchmarks.machine import synchronize


def run(day: Day, notes: Notes) -> None:
    stored = Path(day.kit) / "launches.pt"
    reference = smoke.load(stored) if day.kit and not day.stand_in else {}
    for name, case in smoke.cases(day.geometry).items():
        here = case.on(day.device)
        notes[name] = "stopped"
        launches: list[str] = []

        def look(launch: Launch, launches: list[str] = launches, name: str = name) -> None:
            launches.append(launch.name)
            notes[name] = f"stopped in launch {len(launches)}, {launch.name}"
            synchronize(day.device)

        with nan_in_new_memory(), each_launch(look):
            ours = fused(here)
        wrong = too_far(ours, here)
        notes[name] = {"launches": len(launches), "wrong": wrong}
        if wrong and name in reference:
            found = smoke.first_difference(smoke.samples(here), reference[name])
            notes[name] = {"launches": len(launches), "wrong": wrong, "first wrong launch": found or "none alone"}


def too_far(ours: dict[str, torch.Tensor], case: Case) -> dict[str, float]:
    """Return the results whose error is more than is allowed, as multiples of that.

    Allowed are twice the error of the plain formulas in bfloat16, or of the truth from inputs in bfloat16 that another
    rounding gave, and a few roundings of the largest value.
    """
    true, theirs = plain(case, torch.float64), plain(case, torch.bfloat16)
    eps = torch.finfo(torch.bfloat16).eps
    nudged = [state * (1 + eps / 2 * torch.randn_like(state).sign()) for state in case.to(torch.float64).states]
    moved = plain(replace(case, states=nudged), torch.float64)
    found = {}
    for name, t in true.items():
        mine, *others = ((other[name].double() - t).abs().max().item() for other in (ours, theirs, moved))
        allowed = 2 * max(others) + (8 if max(others) else 64) * eps * t.abs().max().item()
        if not mine <= allowed:
            found[name] = mine / max(allowed, 1e-30)
    return found
