"""What a run needs: peak memory, time, and the largest batch that fits."""

import importlib
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from fastdarts.ops.operators import unavailable

_PROBE_IMAGES = 8  # few enough to fit anywhere, enough that the part of memory that does not grow with them is small


@dataclass(frozen=True)
class Forecast:
    """Measured before the first epoch: peak memory in bytes, seconds of a step, and the largest batch that fits."""

    peak_bytes: int
    step_seconds: float
    largest_batch: int

    def out_of_memory(self, batch_size: int, device: torch.device) -> MemoryError:
        return MemoryError(
            f"out of memory on {device} with batch_size {batch_size}: the largest batch that fits is about "
            f"{self.largest_batch}; also smaller: init_channels, layers, image_size, or --amp"
        )


def compile_ahead(step: Callable[[int], object], batch_size: int, device: torch.device) -> None:
    """Have the GPU kernels that `forecast`'s steps will launch compiled side by side, in threads.

    Each would otherwise be compiled when it is first launched, one after the other.

    Args:
        step: as for `forecast`; here it runs on numbers without meaning.
    """
    if device.type != "cuda" or unavailable(device, torch.float32) is not None:
        return
    launching = importlib.import_module("fastdarts.kernels.launch")  # Triton is imported when it is first used
    with suppress(torch.OutOfMemoryError), launching.compiling_ahead():  # what does not fit, `forecast` tells
        for images in (min(_PROBE_IMAGES, batch_size), batch_size):
            step(images)


def forecast(step: Callable[[int], object], batch_size: int, device: torch.device) -> Forecast:
    """Measure a few images, then (after one warm-up) a whole batch.

    Args:
        step: runs one step on so many images; what it changes is the caller's to restore.

    Raises: MemoryError that names the largest batch that fits. On a CPU the check comes before the batch is tried,
        because there the system ends the process instead of refusing memory.
    """
    probe = min(_PROBE_IMAGES, batch_size)
    rest = reset_peak(device)
    free = free_bytes(device)
    step(probe)
    per_image = max(peak_bytes(device) - rest, 1) / probe
    largest = max(int(0.95 * free / per_image), 1)
    if device.type == "cpu" and batch_size > max(largest, probe):
        raise Forecast(0, 0.0, largest).out_of_memory(batch_size, device)
    try:
        step(batch_size)
        reset_peak(device)
        start = time.perf_counter()
        step(batch_size)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except Exception as error:
        if is_out_of_memory(error):
            raise Forecast(0, 0.0, min(largest, batch_size - 1)).out_of_memory(batch_size, device) from error
        raise
    return Forecast(peak_bytes(device), time.perf_counter() - start, largest)


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA has an error of its own; the CPU allocator raises a RuntimeError that only its words tell apart."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("not enough memory", "can't allocate memory", "out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def reset_peak(device: torch.device) -> int:
    """Start measuring a new peak; returns the bytes in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with suppress(OSError):  # no Linux, or not allowed: the peak is then that of the process's whole life
        Path("/proc/self/clear_refs").write_text("5")
    return _proc_bytes("/proc/self/status", "VmRSS") or peak_bytes(device)


def peak_bytes(device: torch.device) -> int:
    """Largest memory since `reset_peak`: allocated by torch on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    lifetime = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return _proc_bytes("/proc/self/status", "VmHWM") or lifetime


def free_bytes(device: torch.device) -> float:
    """Memory that this process can still take; infinity where the system does not tell."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + cached)
    return float(_proc_bytes("/proc/meminfo", "MemAvailable") or "inf")


def _proc_bytes(file: str, key: str) -> int:
    for line in _lines(file):
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return 0


def _lines(file: str) -> list[str]:
    try:
        return Path(file).read_text().splitlines()
    except OSError:
        return []
