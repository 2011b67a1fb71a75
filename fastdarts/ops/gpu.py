"""Look up the operators' GPU kernels, if Triton is installed."""

import importlib
import importlib.util
from typing import Any

TRITON = importlib.util.find_spec("triton") is not None
"""True if there are GPU kernels."""


def in_module(module: str, name: str) -> Any:
    """Return the GPU implementation `name` of `fastdarts.kernels.module`; Triton is imported at the first call."""
    return lambda *args: getattr(importlib.import_module(f"fastdarts.kernels.{module}"), name)(*args)
