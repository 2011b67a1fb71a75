"""Measure what a run needs: peak memory, time, and the largest batch that fits."""

import importlib
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from fastdarts.data.memory import sharing_processes
from fastdarts.ops.operators import unavailable

_PROBE_IMAGES = 8  # few enough to fit everywhere, enough for the memory that is independent of them to be a small part


@dataclass(frozen=True)
class Forecast:
    """Hold measurements before the first epoch: peak memory in bytes, seconds per step, largest batch that fits.

    Memory is that of one process, batches are those of all.
    """

    peak_bytes: int
    step_seconds: float
    largest_batch: int

    processes: int = 1
    """Ranks that share a batch."""

    def out_of_memory(self, batch_size: int, device: torch.device) -> MemoryError:
        return MemoryError(
            f"out of memory on {device} with batch_size {batch_size}: the largest batch that fits is about "
            f"{self.largest_batch}; also smaller: init_channels, layers, image_size, or --amp"
        )


def compile_ahead(step: Callable[[int], object], batch_size: int, device: torch.device) -> None:
    """Compile the GPU kernels that the steps of `forecast` will launch in parallel, in threads.

    Otherwise they would be compiled one after the other, each at its first launch.

    Args:
        step: as for `forecast`. Kernels are compiled, not run, so its outputs are undefined.
        batch_size: images in a whole batch.
        device: device of the run; on a CPU, or without kernels for it, nothing is done.
    """
    if device.type != "cuda" or unavailable(device, torch.float32) is not None:
        return
    launching = importlib.import_module("fastdarts.kernels.launch")  # imported here because it imports Triton
    with suppress(torch.OutOfMemoryError), launching.compiling_ahead():  # `forecast` reports a lack of memory
        for images in (min(_PROBE_IMAGES, batch_size), batch_size):
            step(images)


def forecast(step: Callable[[int], object], batch_size: int, device: torch.device, processes: int = 1) -> Forecast:
    """Measure a step on a few images, then (after one warm-up) a step on a whole batch.

    Args:
        step: step(images) runs one step on that many images; the caller restores what it changes.
        batch_size: images that this process has in a whole batch.
        device: device of the run.
        processes: ranks that share a batch.

    Raises: MemoryError that names the largest batch that fits. On a CPU this is checked before the batch is tried,
        because the system would end the process instead of refusing memory.
    """
    probe = min(_PROBE_IMAGES, batch_size)
    rest = reset_peak(device)
    free = free_bytes(device)
    step(probe)
    per_image = max(peak_bytes(device) - rest, 1) / probe
    largest = max(int(0.95 * free / per_image), 1)
    if device.type == "cpu" and batch_size > max(largest, probe):
        raise Forecast(0, 0.0, largest * processes, processes).out_of_memory(batch_size * processes, device)
    try:
        step(batch_size)
        reset_peak(device)
        start = time.perf_counter()
        step(batch_size)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except Exception as error:
        if is_out_of_memory(error):
            fits = min(largest, batch_size - 1) * processes
            raise Forecast(0, 0.0, fits, processes).out_of_memory(batch_size * processes, device) from error
        raise
    return Forecast(peak_bytes(device), time.perf_counter() - start, largest * processes, processes)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if `error` means a lack of memory.

    CUDA has its own error class; the CPU allocator raises a RuntimeError that only its message distinguishes.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("not enough memory", "can't allocate memory", "out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def reset_peak(device: torch.device) -> int:
    """Start measuring a new peak of memory; return the bytes in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with suppress(OSError):  # not Linux, or not permitted: the peak is then that since the process started
        Path("/proc/self/clear_refs").write_text("5")
    return _proc_bytes("/proc/self/status", "VmRSS") or peak_bytes(device)


def peak_bytes(device: torch.device) -> int:
    """Return the peak in bytes since `reset_peak`: allocated by torch on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    lifetime = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return _proc_bytes("/proc/self/status", "VmHWM") or lifetime


def free_bytes(device: torch.device) -> float:
    """Return the bytes of memory that this process can still allocate; infinity if the system does not report them."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + cached)
    return float(_proc_bytes("/proc/meminfo", "MemAvailable") or "inf") / sharing_processes()


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
