"""Outputs of ops that are computed later, as a forward sees them: they may be multiplied and added up.

`*` with a number and `+` are written down; anything else (`torch.cat`, a method) first has the sum computed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fastdarts.mixed.patching.calls import Call, Weight

Terms = Sequence[tuple[Call, Weight | None]]
"""Calls with their weights; None: not multiplied yet."""


class Adds(Protocol):
    """Makes outputs and computes sums, for one run of a forward."""

    def output(self, terms: Terms, extras: Sequence[Weight] = ()) -> Output:
        """Make an output of the same run."""

    def add_up(self, terms: Terms, extras: Sequence[Weight]) -> Tensor:
        """Compute a sum."""


class Output:
    """An op's output, or a sum of such with weights; computed when it is read, and then as that tensor."""

    def __init__(self, session: Adds, terms: Terms, extras: Sequence[Weight] = ()) -> None:
        self.__dict__.update(_session=session, _terms=tuple(terms), _extras=tuple(extras))
        self.__dict__.update(_tensor=None, _recorded=torch.is_grad_enabled())

    if TYPE_CHECKING:
        _session: Adds
        _terms: tuple[tuple[Call, Weight | None], ...]
        _extras: tuple[Weight, ...]
        _tensor: Tensor | None
        _recorded: bool

    def fastdarts_value(self) -> Tensor:
        """Compute the tensor, once."""
        if self._tensor is None:
            if self._recorded and not torch.is_grad_enabled():
                _check_function()
            with torch.set_grad_enabled(self._recorded):
                self.__dict__["_tensor"] = self._session.add_up(self._terms, self._extras)
        return cast(Tensor, self._tensor)

    def _open(self) -> bool:
        """True if terms may still be added: nothing has been computed, and gradients are as they were."""
        return self._tensor is None and self._recorded == torch.is_grad_enabled()

    def _shape(self) -> torch.Size:
        return self._terms[0][0].shape if self._tensor is None else self._tensor.shape

    def __mul__(self, other: Any) -> Any:
        if self._open() and len(self._terms) == 1 and not self._extras and _is_scalar(other):
            ((call, weight),) = self._terms
            scalar = other.reshape(()) if isinstance(other, Tensor) else float(other)
            return self._session.output([(call, scalar if weight is None else weight * scalar)])
        return self.fastdarts_value() * evaluated(other)

    __rmul__ = __mul__

    def __add__(self, other: Any) -> Any:
        if self._open():
            if isinstance(other, Output) and other._open() and other._shape() == self._shape():
                return self._session.output(self._terms + other._terms, self._extras + other._extras)
            if isinstance(other, int | float) and other == 0:
                return self
            if _is_scalar(other) or (isinstance(other, Tensor) and other.shape == self._shape()):
                return self._session.output(self._terms, (*self._extras, other))
        return self.fastdarts_value() + evaluated(other)

    __radd__ = __add__
    __iadd__ = __add__

    @property
    def shape(self) -> torch.Size:
        return self._shape()

    @property
    def ndim(self) -> int:
        return 4

    def dim(self) -> int:
        return 4

    def size(self, dim: int | None = None) -> Any:
        return self._shape() if dim is None else self._shape()[dim]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not kwargs and len(args) == 2:
            a, b = args
            if func in _PRODUCTS:
                return a * b if isinstance(a, Output) else b * a
            if func in _SUMS:
                return a + b if isinstance(a, Output) else b + a
        if func is torch.stack and args and isinstance(args[0], list | tuple):
            stacked = _stacked(args[0], *args[1:], **(kwargs or {}))
            if stacked is not None:
                return stacked
        return func(*evaluated(args), **evaluated(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fastdarts_value(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.fastdarts_value(), name, value)

    def __repr__(self) -> str:
        return repr(self.fastdarts_value())


class Deferred(Output):
    """An output that is no tensor, which costs least."""


class DeferredTensor(Output, Tensor):  # type: ignore[misc, override]
    """An output that passes for a tensor, for forwards that ask with isinstance."""

    @staticmethod
    def __new__(cls, session: Adds, terms: Terms, extras: Sequence[Weight] = ()) -> DeferredTensor:
        call = terms[0][0]
        return Tensor._make_wrapper_subclass(cls, call.shape, dtype=call.x.dtype, device=call.x.device)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise TypeError(f"{func} takes no deferred outputs")


def _check_function() -> None:
    """TypeError inside an autograd.Function: it would take what is deferred for no tensor, and give no gradient."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is torch.autograd.Function.apply.__func__.__code__:
            raise TypeError("an autograd.Function takes no deferred outputs")
        frame = frame.f_back


class DeferredStack:
    """`torch.stack` of op outputs along a new first axis, which is to be summed over."""

    def __init__(self, items: Sequence[Output]) -> None:
        self._items = list(items)

    def fastdarts_value(self) -> Tensor:
        """Compute the tensor."""
        return torch.stack([item.fastdarts_value() for item in self._items])

    def __mul__(self, other: Any) -> Any:
        count = len(self._items)
        if isinstance(other, Tensor) and other.dim() == 5 and other.shape == (count, 1, 1, 1, 1):
            return DeferredStack([item * weight for item, weight in zip(self._items, other, strict=True)])
        return self.fastdarts_value() * evaluated(other)

    __rmul__ = __mul__

    def sum(self, *args: Any, **kwargs: Any) -> Any:
        axes = (*args, *kwargs.values())
        if len(axes) == 1 and kwargs.keys() <= {"dim", "axis"} and axes[0] in (0, -5, (0,), [0]):
            return sum(self._items[1:], self._items[0])
        return self.fastdarts_value().sum(*args, **kwargs)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self._items), *self._items[0].shape))

    @property
    def ndim(self) -> int:
        return 5

    def dim(self) -> int:
        return 5

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS and len(args) == 2 and not kwargs:
            a, b = args
            return a * b if isinstance(a, DeferredStack) else b * a
        if func is torch.sum and args and isinstance(args[0], DeferredStack):
            return args[0].sum(*args[1:], **(kwargs or {}))
        return func(*evaluated(args), **evaluated(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fastdarts_value(), name)


def _stacked(items: Sequence[Any], dim: int = 0, out: object = None) -> DeferredStack | None:
    if dim not in (0, -5) or out is not None or not all(isinstance(item, Output) for item in items):
        return None
    return DeferredStack(items) if len({item.shape for item in items}) == 1 else None


def _is_scalar(value: object) -> bool:
    if isinstance(value, Output):
        return False
    if isinstance(value, Tensor):
        return value.numel() == 1 and value.dim() <= 4 and value.is_floating_point()
    return isinstance(value, int | float)


def evaluated(tree: Any) -> Any:
    """Replace what is deferred in a nest of tuples, lists and dictionaries by tensors."""
    return tree_map_only((Output, DeferredStack), lambda one: one.fastdarts_value(), tree)


_PRODUCTS = {torch.mul, torch.multiply, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, Tensor.multiply}
_SUMS = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__}


def _forwarded(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any) -> Any:
        return getattr(self.fastdarts_value(), name)(*evaluated(args))

    method.__name__ = name
    return method


for _name in (
    *("__sub__", "__rsub__", "__truediv__", "__rtruediv__", "__pow__", "__neg__", "__abs__", "__matmul__", "__bool__"),
    *("__getitem__", "__setitem__", "__len__", "__iter__", "__float__", "__int__", "__eq__", "__ne__"),
    *("__lt__", "__le__", "__gt__", "__ge__", "__isub__", "__imul__", "__itruediv__", "__invert__"),
):
    for _class in (Output, DeferredStack):
        setattr(_class, _name, _forwarded(_name))
for _class in (Output, DeferredStack):
    _class.__hash__ = object.__hash__  # type: ignore[method-assign]
for _name in ("__add__", "__radd__"):
    setattr(DeferredStack, _name, _forwarded(_name))
