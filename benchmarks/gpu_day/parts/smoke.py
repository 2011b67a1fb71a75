"""Cells of each size against the plain formulas in float64: whether all is right, else the first kernel that is not."""

from pathlib import Path

from kernel_cases import fused

from benchmarks.gpu_day import smoke
from benchmarks.gpu_day.alternative import NAME, planes_asked_for
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
        wrong = smoke.too_far(ours, here)
        notes[name] = {"launches": len(launches), "wrong": wrong}
        if wrong and name in reference:
            found = smoke.first_difference(smoke.samples(here), reference[name])
            notes[name] = {"launches": len(launches), "wrong": wrong, "first wrong launch": found or "none alone"}
    with planes_asked_for():
        for name, case in smoke.cases(day.geometry).items():
            notes[f"{name}, {NAME}"] = "stopped"
            here = case.on(day.device)
            names: list[str] = []
            try:
                with nan_in_new_memory(), each_launch(lambda launch, names=names: names.append(launch.name)):  # type: ignore[misc]
                    wrong = smoke.too_far(fused(here), here)
                notes[f"{name}, {NAME}"] = {"launches": len(names), "wrong": wrong}
            except RuntimeError as error:  # not built
                notes[f"{name}, {NAME}"] = str(error).splitlines()[0][:200]
