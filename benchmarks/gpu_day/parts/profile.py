"""Three replays of a captured search step in torch's profiler: time of each kernel, and time between kernels."""

from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_day.day import Day, Notes
from benchmarks.gpu_day.steps import Steps
from benchmarks.machine import synchronize

REPLAYS, TO_CAPTURE, ROWS = 3, 5, 40


def run(day: Day, notes: Notes) -> None:
    steps = Steps(day)
    for _ in range(TO_CAPTURE):
        steps.step()
    synchronize(day.device)
    activity = ProfilerActivity.CPU if day.stand_in else ProfilerActivity.CUDA
    with profile(activities=[activity]) as profiled:
        for _ in range(REPLAYS):
            steps.step()
        synchronize(day.device)
    events = [event for event in profiled.events() or [] if event.device_type.name == "CUDA"]
    if events:
        spans = sorted((event.time_range.start, event.time_range.end) for event in events)
        notes["ms a step"] = (max(end for _, end in spans) - spans[0][0]) / REPLAYS / 1e3
        notes["ms without a kernel"] = _idle(spans) / REPLAYS / 1e3
        notes["launches"] = len(spans) / REPLAYS
    rows = []
    for row in profiled.key_averages():
        total = row.self_cpu_time_total if day.stand_in else row.self_device_time_total
        rows.append({"name": row.key[:80], "ms a step": total / REPLAYS / 1e3, "launches": row.count / REPLAYS})
    notes["kernels"] = sorted(rows, key=lambda row: -row["ms a step"])[:ROWS]


def _idle(spans: list[tuple[float, float]]) -> float:
    """Return the time that no span covers, between the first and the last."""
    idle, busy_until = 0.0, spans[0][0]
    for start, end in spans:
        idle += max(start - busy_until, 0)
        busy_until = max(busy_until, end)
    return idle
