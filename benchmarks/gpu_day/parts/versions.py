"""The machine: versions, NVIDIA's programs, clocks, and the bandwidth of a copy."""

import platform
import subprocess
from importlib import metadata

import torch

from benchmarks.gpu_day import place
from benchmarks.gpu_day.day import Day, Notes, milliseconds
from benchmarks.machine import environment

PACKAGES = ("torch", "triton", "numpy", "pytest")
QUERY = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,memory.total"


def run(day: Day, notes: Notes) -> None:
    notes["environment"] = environment(day.device)
    notes["system"] = platform.platform()
    notes["packages"] = {name: metadata.version(name) for name in PACKAGES}
    notes["tools"] = {name: place.tool(name) for name in ("nvcc", "ncu", "compute-sanitizer")}
    if not day.stand_in:
        properties = torch.cuda.get_device_properties(day.device)
        notes["multiprocessors"] = properties.multi_processor_count
        notes["memory"] = properties.total_memory
        query = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
        notes["nvidia-smi"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    elements = 2**20 if day.stand_in else 2**30
    source = torch.ones(elements, dtype=torch.int16, device=day.device)
    target = torch.empty_like(source)
    ms = milliseconds(lambda: target.copy_(source), day.device, 10)
    notes["copy"] = {"bytes": 4 * elements, "GB/s": 4 * elements / ms / 1e6}
