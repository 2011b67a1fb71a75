"""Find CUDA's toolkit."""

import os
import shutil
from pathlib import Path


def nvcc() -> str | None:
    """The compiler, in a folder that holds the toolkit's headers as well."""
    found = [os.environ.get("CUDA_HOME"), *(shutil.which("nvcc") or "").split()[:1], "/usr/local/cuda"]
    for folder in filter(None, found):
        home = Path(folder).resolve().parents[1] if folder.endswith("nvcc") else Path(folder)
        if (home / "bin" / "nvcc").is_file() and (home / "include" / "cuda_runtime.h").is_file():
            return str(home / "bin" / "nvcc")
    return None
