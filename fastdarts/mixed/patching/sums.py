"""Sums of op outputs that are computed when they are read: a module's own forward writes them, kernels add them up.

While a patched module's own forward runs, its candidate ops give an `Output` each. What the forward does with them by
`*` and `+` is written down; anything else (`torch.cat`, a method, a function) first has the sum computed. So the
forward decides which ops run, with which weights and inputs, as it always did.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from fastdarts.mixed import fused
from fastdarts.mixed.patching.recognition import Op, leaves


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


def _is_constant_zero(weight: Weight | None) -> bool:
    if isinstance(weight, Tensor):
        return not weight.requires_grad and weight.device.type == "cpu" and weight.item() == 0
    return weight == 0


def _autocast(x: Tensor) -> tuple[bool, torch.dtype | None]:
    if x.device.type not in ("cpu", "cuda"):
        return False, None
    return torch.is_autocast_enabled(x.device.type), torch.get_autocast_dtype(x.device.type)


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


Weight = float | Tensor
Compute = Callable[[Sequence[Call], Sequence[Weight]], Tensor]
"""Adds up calls of one input and stride with their weights."""


class Session:
    """One run of a module's own forward: the calls of its ops, and how many of them kernels computed."""

    def __init__(
        self,
        compute: Compute,
        refusal: Callable[[Call], str | None] = lambda _: None,
        skip_zeros: bool = False,
        keep_layout: bool = True,
        as_tensors: bool = False,
    ) -> None:
        self.compute = compute
        self.refusal = refusal
        self.skip_zeros = skip_zeros
        self.keep_layout = keep_layout
        self.kind: type[Output] = DeferredTensor if as_tensors else Deferred
        self.returning = False
        """True once the forward has come to its end: no line of it sees the sums that are computed now."""
        self.calls: list[Call] = []
        self.reasons: dict[str, None] = {}
        """Why ops of weighted sums were computed by their modules."""
        self.summed = 0
        """Ops that kernels computed."""
        self.largest = 0
        """Most of them in one sum."""

    def output(self, terms: Sequence[tuple[Call, Weight | None]], extras: Sequence[Weight] = ()) -> Output:
        """Make a deferred output."""
        return self.kind(self, terms, extras)

    def finish(self) -> None:
        """Run what was called and never read: it counts a batch."""
        for call in self.calls:
            norms = (leaf for leaf in leaves(call.module) if isinstance(leaf, nn.BatchNorm2d))
            if call.pending and any(norm.training and norm.track_running_stats for norm in norms):
                with torch.no_grad():
                    call.value()

    def add_up(self, terms: Sequence[tuple[Call, Weight | None]], extras: Sequence[Weight]) -> Tensor:
        """Compute a sum of calls with weights, and of tensors and numbers."""
        found: list[Weight] = list(extras)
        groups: dict[Any, list[tuple[Call, Weight]]] = {}
        seen: set[nn.Module] = set()
        for call, weight in _merged(terms):
            call.check()
            if weight is None and (len(terms) > 1 or self.returning):
                weight = 1.0
            if self.skip_zeros and _is_constant_zero(weight):
                call.fused = True
                continue
            if weight is None:
                reason: str | None = "its forward uses the outputs of the ops one by one"
            elif not call.pending:
                reason = "its forward uses an op's output twice"
            elif any(norm in seen for norm in _norms(call)):
                reason = "an op serves twice"
            else:
                reason = self.refusal(call)
            if reason is None and weight is not None:
                seen.update(_norms(call))
                key = (
                    _identity(call.x),
                    call.op.stride,
                    fused.settings_of({0: ([], _norms(call))}),
                    (call.grad, call.autocast),
                )
                groups.setdefault(key, []).append((call, weight))
            else:
                self.reasons[str(reason)] = None
                found.append(call.value() if weight is None else weight * call.value())
        _join_bare(groups)
        for group in groups.values():
            if all(call.op.primitive in ("none", "skip_connect") and call.op.stride == 1 for call, _ in group):
                found += [weight * call.value() for call, weight in group]
                continue
            calls = [call for call, _ in group]
            with calls[0].modes():
                out = self.compute(calls, [weight for _, weight in group])
            found.append(laid_out_as(calls[0].x, out) if self.keep_layout or not self.returning else out)
            for call in calls:
                call.fused = True
            self.summed += len(calls)
            self.largest = max(self.largest, len(calls))
        if not found:
            return terms[0][0].zeros()
        total = found[0]
        for one in found[1:]:
            total = total + one
        return cast(Tensor, total)


def _merged(terms: Sequence[tuple[Call, Weight | None]]) -> list[tuple[Call, Weight | None]]:
    """Add the weights of terms with the same call."""
    if len({call for call, _ in terms}) == len(terms):
        return list(terms)
    weights: dict[Call, Weight] = {}
    for call, weight in terms:
        one = 1.0 if weight is None else weight
        weights[call] = weights[call] + one if call in weights else one
    return list(weights.items())


def _identity(x: Tensor) -> object:
    """Equal for tensors that are the same slice of the same tensor: a forward may slice anew for each op."""
    if type(x) is not Tensor:
        return id(x)
    chain: list[object] = []
    step = x.grad_fn
    while step is not None and step.name() in ("SliceBackward0", "SelectBackward0", "AliasBackward0"):
        chain.append(step.name())
        step = step.next_functions[0][0]
    if x.requires_grad and (step is None or not chain):
        return id(x)
    return x.data_ptr(), x.shape, x.stride(), tuple(chain), id(step)


def _norms(call: Call) -> list[nn.BatchNorm2d]:
    return [leaf for leaf in leaves(call.module) if isinstance(leaf, nn.BatchNorm2d)]


def _join_bare(groups: dict[Any, list[tuple[Call, Weight]]]) -> None:
    """Move ops without batch norms into a group of the same input that has some."""
    for key in [key for key in groups if not key[2]]:
        others = [other for other in groups if other != key and (other[:2], other[3]) == (key[:2], key[3])]
        if others:
            groups[others[0]] += groups.pop(key)


def laid_out_as(x: Tensor, out: Tensor) -> Tensor:
    """Lay a sum out as the modules would for an input: forwards go on with views and random numbers of it."""
    return out if x.stride(1) == 1 and x.shape[1] > 1 else out.contiguous()


class Output:
    """An op's output, or a sum of such with weights; computed when it is read, and then as that tensor."""

    def __init__(
        self, session: Session, terms: Sequence[tuple[Call, Weight | None]], extras: Sequence[Weight] = ()
    ) -> None:
        self.__dict__.update(_session=session, _terms=tuple(terms), _extras=tuple(extras))
        self.__dict__.update(_tensor=None, _recorded=torch.is_grad_enabled())

    if TYPE_CHECKING:
        _session: Session
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
    def __new__(
        cls, session: Session, terms: Sequence[tuple[Call, Weight | None]], extras: Sequence[Weight] = ()
    ) -> DeferredTensor:
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
