"""Names of the kernels in use, and reasons: for the first line of a run, environment.json and `fastdarts env`."""

import importlib
from importlib import metadata
from typing import Any

import torch

from fastdarts.bilevel.ranks import Ranks
from fastdarts.ops import extension, recurrent
from fastdarts.ops.operators import unavailable


def synchronises(config: Any, ranks: Ranks) -> bool:
    """Return True if the batch norms of a run sum moments over processes, which no kernel does.

    Raises: ValueError if its config asks for kernels all the same.
    """
    if not config.sync_batch_norm or ranks.alone:
        return False
    if config.backend == "fused":
        raise ValueError("backend 'fused' cannot go with sync_batch_norm: no kernel sums moments over processes")
    return True


def kernels_used(device: torch.device, backend: str, synchronised: bool = False) -> str:
    """Name the kernels that a run with this backend uses for its mixed operations; see `synchronises`."""
    if synchronised:
        return f"plain PyTorch modules on {device}: no kernel sums the moments of batch norm over processes"
    if backend == "reference":
        return f"plain PyTorch modules on {device}, as backend 'reference' asks"
    return f"{describe_kernels(device)}, on {device}"


def cell_kernels_used(device: torch.device, backend: str = "auto") -> str:
    """Name the kernels that the recurrent cell of a language model and its loss use."""
    if backend == "reference":
        return f"plain PyTorch modules on {device}, as backend 'reference' asks"
    reason = recurrent.unavailable(device, torch.float32)
    if reason is not None:
        return f"plain PyTorch modules, several times slower: {reason}"
    name = f"C++, {instruction_set()}" if device.type == "cpu" else f"Triton {metadata.version('triton')}"
    return f"fused {name}, on {device}"


def describe_kernels(device: torch.device) -> str:
    """Name the kernels that mixed operations use on a device; for plain modules, say why."""
    reason = unavailable(device, torch.float32)
    if reason == extension.NOT_BUILT:
        reason += "; to build it, in the checkout: pip install --no-build-isolation --force-reinstall --no-deps ."
    if reason is not None:
        return f"plain PyTorch modules, many times slower: {reason}"
    if device.type == "cpu":
        return f"fused C++, {instruction_set()}"
    alpha_steps = "CUDA" if has_cuda_part() else "plain PyTorch (fastdarts._C was built without CUDA)"
    return f"fused Triton {metadata.version('triton')}; alpha steps: {alpha_steps}"


def instruction_set() -> str | None:
    """Return amx, avx512, avx2 or portable, or what is wrong with FASTDARTS_CPU; None without the extension."""
    if extension.UNAVAILABLE is not None:
        return None
    try:
        return str(importlib.import_module("fastdarts._C").instruction_set())
    except ValueError as error:
        return str(error).splitlines()[0]


def has_cuda_part() -> bool:
    """Return whether the extension was built with csrc/cuda."""
    return torch._C._dispatch_has_kernel_for_dispatch_key("fastdarts::flat_norm", "CUDA")
