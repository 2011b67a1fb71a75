"""Limit the memory that images may take."""

import os
import resource
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROCESSES = "FASTDARTS_PROCESSES"
"""Environment variable with the number of processes that share out this machine's memory; without it, torchrun's."""


def sharing_processes() -> int:
    """Return the number of processes of one launch, or of one comparison, that share out this machine's memory."""
    return int(os.environ.get(PROCESSES) or os.environ.get("LOCAL_WORLD_SIZE") or 1)


def available_bytes() -> float:
    """Return the memory that this process can still take; infinity where the system does not tell."""
    free = [_meminfo() / sharing_processes(), _cgroup_left() / sharing_processes()]
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        free.append(limit - _virtual_bytes())
    return max(min(free), 0.0)


def check_room(count: int, shape: tuple[int, ...]) -> None:
    """Refuse images that memory cannot hold, before any is decoded.

    Raises: MemoryError that says how much they take and how much there is.
    """
    needed = float(count)
    for side in shape:
        needed *= side
    free = available_bytes()
    if needed > 0.9 * free:
        channels, height, width = shape
        raise MemoryError(
            f"{count:,} images of {channels}x{height}x{width} take {needed / 2**30:,.1f} GiB of memory, "
            f"{free / 2**30:,.1f} GiB are free: give a smaller image_size or fewer images"
        )


def shared_bytes() -> float:
    """Return the free shared memory, through which processes pass images; infinity where the system does not tell."""
    folder = Path("/dev/shm")
    return float(shutil.disk_usage(folder).free) if folder.is_dir() else float("inf")


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Budget:
    """Bytes that threads share; each waits until its part is free. A part larger than all of it is taken alone."""

    def __init__(self, size: float) -> None:
        self.size = size
        self._used = 0.0
        self._changed = threading.Condition()

    @contextmanager
    def part(self, size: float) -> Iterator[None]:
        """Hold so many bytes inside."""
        size = min(size, self.size)
        with self._changed:
            self._changed.wait_for(lambda: self._used + size <= self.size)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()


def _meminfo() -> float:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) * 1024
    return float("inf")


def _cgroup_left() -> float:
    """Return what a container's limit leaves (version 2 of control groups)."""
    limit, used = _lines("/sys/fs/cgroup/memory.max"), _lines("/sys/fs/cgroup/memory.current")
    if not limit or not used or not limit[0].isdigit():
        return float("inf")
    cache = [line.split()[1] for line in _lines("/sys/fs/cgroup/memory.stat") if line.startswith("inactive_file ")]
    return float(limit[0]) - float(used[0]) + (float(cache[0]) if cache else 0.0)


def _virtual_bytes() -> float:
    lines = _lines("/proc/self/statm")
    return float(lines[0].split()[0]) * resource.getpagesize() if lines else 0.0


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
