"""Report the memory and time that a run will need, before it begins."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastdarts.runs import resources
from fastdarts.runs.progress import duration
from fastdarts.runs.resources import Forecast
from fastdarts.runs.state import RunState


def forecast_line(state: RunState, forecast: Forecast, device: torch.device) -> str:
    steps = state.config.epochs * state.steps_per_epoch - state.steps_done
    each = f" in each of {forecast.processes} processes" if forecast.processes > 1 else ""
    return (
        f"expected: about {forecast.peak_bytes / 2**30:.2f} GiB of memory{each}, "
        f"{duration(steps * forecast.step_seconds)} for {steps} steps on {device} "
        f"(measured: {forecast.step_seconds:.3f} s a step)"
    )


@contextmanager
def out_of_memory_explained(forecast: Forecast, batch_size: int, device: torch.device) -> Iterator[None]:
    """Turn out-of-memory errors raised inside into a MemoryError that names the largest batch that fits."""
    try:
        yield
    except Exception as error:
        if resources.is_out_of_memory(error):
            raise forecast.out_of_memory(batch_size, device) from error
        raise
