"""Every distinct launch of a weight step and a second-order alpha step: ms, GB/s, share of the model's bandwidth."""

import math

import torch

from benchmarks.gpu_day.day import Day, Notes, milliseconds
from benchmarks.gpu_day.recording import Launch, distinct_launches
from benchmarks.gpu_day.steps import Run, Steps, by_kernels
from benchmarks.traffic import OF_PEAK, Device, device_like

REPEATS = 20  # launches of one timing, so that the host's share of it is small


def run(day: Day, notes: Notes) -> None:
    steps = Steps(day, cuda_graphs=False)
    model = device_like("" if day.stand_in else torch.cuda.get_device_name())
    measured: dict[str, Run] = {"weight step": steps.weight}
    if not day.stand_in:  # in Triton's interpreter one step is slow enough
        measured["alpha step, order 2"] = lambda: steps.alpha(2)
    for name, step in measured.items():
        kinds, counts = distinct_launches(lambda step=step: by_kernels(day, step))  # type: ignore[misc]
        rows = []
        for key, launch in kinds.items():
            rows.append({"key": key, "launches": counts[key], **timed(launch, day, model)})
            if len(rows) % 20 == 0 or len(rows) == len(kinds):
                notes[name] = sorted(rows, key=lambda row: -row["launches"] * row["ms"])


def timed(launch: Launch, day: Day, model: Device) -> dict[str, float]:
    """Return milliseconds, bytes, GB/s and the share of what memory could do in that time."""
    repeats = 1 if day.stand_in else REPEATS

    def repeated() -> None:
        for _ in range(repeats):
            launch.run()

    ms = milliseconds(repeated, day.device, 1 if day.stand_in else 3) / repeats
    size = launch.traffic.bytes.total()
    rate = size / ms / 1e6
    share = rate * 1e9 / (OF_PEAK * model.bandwidth)
    return {
        "ms": ms,
        "programs": math.prod(launch.grid),
        "bytes": size,
        "GB/s": rate,
        "share of the model's bandwidth": share,
    }
