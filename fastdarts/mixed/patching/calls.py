"""Calls of candidate ops that are computed later: while a patched module's own forward runs, its ops only note them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fastdarts.mixed.patching.recognition import Op


class ChangedInPlaceError(RuntimeError):
    """An input changed between an op's call and the sum of its output, which would be another sum."""


@dataclass(eq=False)
class Call:
    """One call of a candidate op, computed later."""

    module: nn.Module
    op: Op
    x: Tensor
    more: tuple[None, ...] = ()
    grad: bool = field(default_factory=torch.is_grad_enabled)
    autocast: tuple[bool, torch.dtype | None] = field(init=False)
    version: int = field(init=False)
    fused: bool = False
    """True once a kernel has computed it, as a part of a sum."""
    _value: Tensor | None = None

    def __post_init__(self) -> None:
        self.version = _version(self.x)
        self.autocast = _autocast(self.x)

    @property
    def pending(self) -> bool:
        """True if nothing has computed it yet."""
        return not self.fused and self._value is None

    @contextmanager
    def modes(self) -> Iterator[None]:
        """Compute inside as where the op was called: with or without gradients and autocast."""
        enabled, dtype = self.autocast
        other = self.autocast != _autocast(self.x)
        cast_or_not = torch.autocast(self.x.device.type, dtype, enabled) if other else nullcontext()
        with torch.set_grad_enabled(self.grad), cast_or_not:
            yield

    def check(self) -> None:
        """ChangedInPlaceError if the input is no longer what the op was called with."""
        if _version(self.x) != self.version:
            raise ChangedInPlaceError(
                f"the input of {type(self.module).__name__} was changed in place before the weighted sum was complete; "
                "fastdarts.unpatch the module, or give that op a copy of its input"
            )

    def value(self) -> Tensor:
        """Compute the output by the op's own module, once."""
        if self._value is None:
            self.check()
            with self.modes(), _other_buffers(self.module) if self.fused else nullcontext():
                self._value = self.module(self.x, *self.more)
        return self._value

    def zeros(self) -> Tensor:
        """Return zeros in the shape of the output."""
        return self.x.new_zeros(self.shape)

    @property
    def shape(self) -> torch.Size:
        """Return the output's shape, without computing it."""
        height, width = (-(-side // self.op.stride) for side in self.x.shape[2:])
        return torch.Size((*self.x.shape[:2], height, width))


@contextmanager
def _other_buffers(module: nn.Module) -> Iterator[None]:
    """Give a module copies of its buffers: a sum has counted the batch, and backward passes need what they saved."""
    kept = [(part._buffers, dict(part._buffers)) for part in module.modules()]
    for buffers, before in kept:
        buffers.update({name: None if buffer is None else buffer.clone() for name, buffer in before.items()})
    try:
        yield
    finally:
        for buffers, before in kept:
            buffers.update(before)


def _autocast(x: Tensor) -> tuple[bool, torch.dtype | None]:
    if x.device.type not in ("cpu", "cuda"):
        return False, None
    return torch.is_autocast_enabled(x.device.type), torch.get_autocast_dtype(x.device.type)


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


Weight = float | Tensor
Compute = Callable[[Sequence[Call], Sequence[Weight]], Tensor]
"""Adds up calls of one input and stride with their weights."""
