"""Intercept the launches of Triton kernels: keep them, or look at each as it is made."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from benchmarks.launch_traffic import Traffic, traffic_of
from fastdarts.kernels import bank, node, running
from fastdarts.kernels import launch as launching

Grid = tuple[int, ...]


@dataclass
class Launch:
    """Hold a launch of a kernel with all that it was given."""

    kernel: Any
    grid: Grid
    args: tuple[Any, ...]
    constants: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.fn.__name__)

    @property
    def key(self) -> str:
        """Return a string that two launches share if they do the same work on other numbers."""
        shapes = [tuple(t.shape) for t in self.tensors]
        of_all = repr((self.name, self.grid, shapes, sorted(self.constants.items(), key=lambda item: item[0])))
        return f"{self.name} {hashlib.sha256(of_all.encode()).hexdigest()[:8]}"

    @property
    def tensors(self) -> list[Tensor]:
        flat = [t for arg in self.args for t in (arg if isinstance(arg, tuple) else (arg,))]
        return [t for t in flat if isinstance(t, Tensor)]

    @property
    def traffic(self) -> Traffic:
        """Return what the traffic model says of it."""
        arguments = dict(zip(self.kernel.arg_names, self.args, strict=False)) | self.constants
        return traffic_of(self.name, self.grid, arguments)

    def run(self) -> None:
        launching.launch(self.kernel, self.grid, *self.args, **self.constants)


@contextmanager
def each_launch(look: Callable[[Launch], None]) -> Iterator[None]:
    """Call `look` after each launch made inside."""
    real = launching.launch

    def launch(kernel: Any, grid: Grid, *args: Any, **constants: Any) -> None:
        real(kernel, grid, *args, **constants)
        if all(grid):
            look(Launch(kernel, grid, args, constants))

    bank.launch = node.launch = running.launch = launch
    try:
        yield
    finally:
        bank.launch = node.launch = running.launch = real


def distinct_launches(step: Callable[[], object]) -> tuple[dict[str, Launch], dict[str, int]]:
    """Return one launch of each kind that `step` makes, and how many it makes of each."""
    kinds: dict[str, Launch] = {}
    counts: dict[str, int] = {}

    def look(launch: Launch) -> None:
        kinds.setdefault(launch.key, launch)
        counts[launch.key] = counts.get(launch.key, 0) + 1

    with each_launch(look):
        step()
    return kinds, counts


@contextmanager
def nan_in_new_memory() -> Iterator[None]:
    """Fill what torch.empty and its kin return with NaN, so that unwritten results are seen."""

    def filled(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @wraps(allocate)
        def wrapper(*args: Any, **kwargs: Any) -> Tensor:
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return wrapper

    owners: list[tuple[Any, str]] = [(torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")]
    real = [getattr(owner, name) for owner, name in owners]
    for (owner, name), allocate in zip(owners, real, strict=True):
        setattr(owner, name, filled(allocate))
    try:
        yield
    finally:
        for (owner, name), allocate in zip(owners, real, strict=True):
            setattr(owner, name, allocate)
