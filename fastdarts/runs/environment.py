"""Describe the machine and software of a run."""

import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fastdarts.config.version import __version__
from fastdarts.runs.kernels import describe_kernels


def environment() -> dict[str, Any]:
    """Return the machine and software of this process for environment.json: versions, devices, kernels, commit."""
    packages = ("torchvision", "numpy", "triton")
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "fastdarts": __version__,
        "torch": torch.__version__,
        **{name: version for name in packages if (version := _version(name))},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpus": devices,
        "kernels": {kind: describe_kernels(torch.device(kind)) for kind in ("cpu", "cuda") if kind == "cpu" or devices},
        "cuda": torch.version.cuda if devices else None,
        "cudnn": torch.backends.cudnn.version() if devices else None,
        "commit": _commit(),
        "command": shlex.join(sys.orig_argv),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _commit() -> str | None:
    """Return the commit of the package's checkout, with "-dirty" if tracked files were changed; None outside of one."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != root:  # installed inside a checkout of another project
            return None
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None
