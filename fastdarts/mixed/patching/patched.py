"""Patched modules: a subclass of each module's class, whose forwards have kernels compute the weighted sums."""

import copyreg
import functools
import inspect
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from fastdarts.mixed import fused
from fastdarts.mixed.mixed_op import op_weights_row
from fastdarts.mixed.patching.calls import ChangedInPlaceError
from fastdarts.mixed.patching.kernels import by_kernels, kernel_refusal, read
from fastdarts.mixed.patching.outputs import evaluated
from fastdarts.mixed.patching.proxies import proxied
from fastdarts.mixed.patching.recognition import OWN, Op, own_state, paths_of, recognise, state_of
from fastdarts.mixed.patching.report import Calls
from fastdarts.mixed.patching.sums import Session, laid_out_as

PATIENCE = 3
"""Calls in a row that a patched module may run by its own modules before a warning says so."""


NOTHING = "it added up no outputs of ops that kernels compute"
"""The reason for a call that had none; of a forward that runs one op at a time, this may come often."""

LOOKS = 32
"""Ops that a patched module looks at again because they have changed; later changes are left to the modules."""

TRANSFORMED = "torch.compile, torch.jit.trace and torch.func see its own forward"


class Direct(NamedTuple):
    """A forward that is the weighted sum of all ops and nothing else."""

    names: tuple[str, ...]
    """Names of the positional arguments, x and weights first."""
    defaults: dict[str, Any]
    """Default values of the other arguments."""
    state: object
    """The module's own, with which it was tried."""

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        """Return x and weights, or None where a call gives more than that."""
        if len(args) == 2 and not kwargs:
            return args[0], args[1]
        given = dict(zip(self.names, args, strict=False)) | kwargs
        more = given.keys() - self.names[:2]
        if len(given) < len(args) + len(kwargs) or not set(self.names[:2]) <= given.keys():
            return None
        if any(name not in self.defaults or given[name] is not self.defaults[name] for name in more):
            return None
        return given[self.names[0]], given[self.names[1]]


class Layout(NamedTuple):
    """Hold the parts of a foreign mixed operation."""

    ops: dict[str, Op]
    """Its candidates, by their paths in the module."""
    direct: Direct | None
    """None: the module's own forward runs, on ops whose outputs are deferred."""
    skip_zeros: bool = False
    keep_layout: bool = False
    as_tensors: bool = False
    """True if deferred outputs must pass for tensors."""

    def module_at(self, module: nn.Module, path: str) -> nn.Module | None:
        """Return the op that is at a path now."""
        part: nn.Module | None = module
        for name in path.split("."):
            part = None if part is None else part._modules.get(name)
        return part


class _Running(threading.local):
    """The modules whose own forwards run in this thread with deferred outputs, innermost last."""

    def __init__(self) -> None:
        self.stack: list[nn.Module] = []


_running = _Running()


class Patched(nn.Module):
    """The base that comes before a module's own class."""

    _fastdarts_original: type[nn.Module]
    _fastdarts_layout: Layout
    _fastdarts_calls: Calls

    def __reduce_ex__(self, protocol: Any) -> Any:
        """For copies and pickles, which look classes up by name: make the patched class from the module's own."""
        reduced: Any = super().__reduce_ex__(protocol)
        make, arguments, *rest = reduced
        if make is copyreg.__newobj__:  # type: ignore[attr-defined]
            return _new_patched, (self._fastdarts_original, *arguments[1:]), *rest
        return reduced


def patch_module(module: nn.Module, layout: Layout) -> None:
    """Let the kernels compute a module's sums."""
    module.__dict__.update(_fastdarts_layout=layout, _fastdarts_calls=Calls())
    module.__class__ = patched_class(type(module))


def unpatch_module(module: nn.Module) -> None:
    """Give a patched module its class back."""
    for name in [name for name in module.__dict__ if name.startswith("_fastdarts")]:
        del module.__dict__[name]
    module.__class__ = cast(Patched, module)._fastdarts_original


_classes: dict[type[nn.Module], type[Patched]] = {}


def patched_class(original: type[nn.Module]) -> type[Patched]:
    """Return the one subclass of a class whose instances run fused; it goes by the class's own name."""
    if original not in _classes:
        members: dict[str, Any] = {"_fastdarts_original": original, "__doc__": original.__doc__}
        members |= {"__module__": original.__module__, "__qualname__": original.__qualname__}
        members |= {name: _method(original, name) for name in forwards_of(original)}
        _classes[original] = cast(type[Patched], type(original.__name__, (Patched, original), members))
    return _classes[original]


def forwards_of(original: type[nn.Module]) -> list[str]:
    """List the methods of a class that compute its outputs: forward and what is called forward_something."""
    names = [name for name in dir(original) if name == "forward" or name.startswith("forward_")]
    own = [name for name in names if inspect.isfunction(getattr(original, name))]
    return [name for name in own if getattr(original, name) is not getattr(nn.Module, name, None)]


def _new_patched(original: type[nn.Module], *arguments: Any) -> nn.Module:
    cls = patched_class(original)
    return cast(nn.Module, cls.__new__(cls, *arguments))


def _method(original: type[nn.Module], name: str) -> Callable[..., Any]:
    own = getattr(original, name)

    @functools.wraps(own)
    def method(self: Patched, *args: Any, **kwargs: Any) -> Any:
        if any(module is self for module in _running.stack):  # called by another of its forwards
            return own(self, *args, **kwargs)
        return _call(self, own, name, args, kwargs)

    return method


def _call(module: Patched, own: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    layout = module._fastdarts_layout
    if layout.direct is not None and name == "forward" and own_state(module) == layout.direct.state:
        given = layout.direct.bind(args, kwargs)
        out = None if given is None else _direct(module, layout, *given)
        if out is not None:
            _count(module, None)
            return out
    reason = _unobservable() or module.__dict__.get("_fastdarts_broken")
    if reason is not None:
        _count(module, reason)
        return own(module, *args, **kwargs)
    args, kwargs = (evaluated(args), evaluated(kwargs)) if _running.stack else (args, kwargs)
    session = Session(by_kernels, kernel_refusal, layout.skip_zeros, layout.keep_layout, layout.as_tensors)
    try:
        out = run_deferred(module, own, args, kwargs, session, known_ops(module, layout))
    except ChangedInPlaceError:
        raise
    except Exception as error:
        out = own(module, *args, **kwargs)  # an error of the caller's comes again, and from here
        module.__dict__["_fastdarts_broken"] = f"its forward fails on deferred outputs: {type(error).__name__}: {error}"
        _count(module, module.__dict__["_fastdarts_broken"])
        return out
    _count(
        module,
        None if session.summed else next(iter(session.reasons), NOTHING),
    )
    return out


def run_deferred(
    module: nn.Module,
    own: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    session: Session,
    known: dict[str, Op],
) -> Any:
    """Run a module's own forward with the outputs of its known ops deferred; return what it returns, computed."""
    _running.stack.append(module)
    try:
        with proxied(session, module, known):
            returned = own(module, *args, **kwargs)
        session.returning = True
        out = evaluated(returned)
        session.finish()
    finally:
        _running.stack.pop()
    return out


def known_ops(module: nn.Module, layout: Layout) -> dict[str, Op]:
    """Return the ops that are what they were recognised as; look again at those that have changed."""
    known = {}
    for path, op in layout.ops.items():
        part = layout.module_at(module, path)
        if part is not None:
            found = _as_it_is(module, part, op)
            if found.primitive != OWN:
                known[path] = found
    return known


def _as_it_is(module: nn.Module, part: nn.Module, op: Op) -> Op:
    state = state_of(part)
    if state == op.state and op.primitive != OWN:
        return op
    unknown = Op(OWN, 0, 0, ())
    if state is None or state == op.state or torch.compiler.is_compiling():
        return unknown
    seen = module.__dict__.setdefault("_fastdarts_seen", {})
    key = id(part), state
    if key not in seen:
        if len(seen) >= LOOKS:
            return unknown
        seen[key] = recognise(part, op.C)
    return seen[key]


def _direct(module: nn.Module, layout: Layout, x: Any, weights: Any) -> Tensor | None:
    """Compute the weighted sum of all ops, or None where the kernels do not take these arguments."""
    children = dict(paths_of(module))
    if list(children) != list(layout.ops) or not _fits(layout, x, weights):
        return None
    ops = [_as_it_is(module, part, layout.ops[path]) for path, part in children.items()]
    edge = read(list(children.values()), ops)
    if not edge.read.fused or fused.refusal([edge.read], x) is not None:
        return None
    out = edge.mixed(x, op_weights_row(weights, x), layout.skip_zeros)
    return laid_out_as(x, out) if layout.keep_layout else out


def _fits(layout: Layout, x: Any, weights: Any) -> bool:
    """True if x and weights are what the kernels take; only the module knows what to make of anything else."""
    C = max(op.C for op in layout.ops.values())
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() != 4 or x.shape[1] != C or 0 in x.shape:
        return False
    if isinstance(weights, Tensor):
        return weights.shape == (len(layout.ops),) and weights.device == x.device and weights.is_floating_point()
    return (
        isinstance(weights, Sequence)
        and len(weights) == len(layout.ops)
        and all(w.dim() == 0 and w.device == x.device if isinstance(w, Tensor) else type(w) is float for w in weights)
    )


def _unobservable() -> str | None:
    """Say why no forward may run on deferred outputs now, or None."""
    if torch.compiler.is_compiling():
        return TRANSFORMED
    # torch has no public names for these.
    if torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():  # type: ignore[attr-defined,no-untyped-call]
        return TRANSFORMED
    hooks = nn.modules.module
    if hooks._global_forward_hooks or hooks._global_forward_pre_hooks:
        return "hooks look at all modules"
    return None


def _count(module: nn.Module, reason: str | None) -> None:
    """Count a call, fused or not for a reason; warn once of a kind of module that stays slow."""
    if torch.compiler.is_compiling():
        return
    own = module.__dict__
    calls: Calls = own["_fastdarts_calls"]
    if reason is None:
        calls.fused += 1
        own["_fastdarts_streak"] = 0
        return
    calls.plain[reason] += 1
    own["_fastdarts_streak"] = own.get("_fastdarts_streak", 0) + 1
    kind = type(module).__name__, reason
    patience = PATIENCE if reason != NOTHING else 100
    if own["_fastdarts_streak"] >= patience and reason != TRANSFORMED and kind not in _warned:
        _warned.add(kind)
        warnings.warn(
            f"a patched {kind[0]} runs by its own modules, at their speed: {reason} (PatchReport.calls() counts)",
            UserWarning,
            stacklevel=2,
        )


_warned: set[tuple[str, str]] = set()
