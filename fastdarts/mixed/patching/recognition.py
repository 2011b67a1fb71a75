"""Recognise candidate operations by their layers, whatever their classes and attributes are called."""

import copy
import inspect
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fastdarts.mixed import fused
from fastdarts.ops.plan import has_kernel
from fastdarts.primitives.modules import build_for_search
from fastdarts.primitives.table import CANDIDATES

OWN = "-"
"""In the place of a primitive's name: the op's own module computes it."""

State = tuple[object, ...]
"""List what a module's result depends on beside its tensors and modes: classes and plain attributes."""

CONTAINERS = nn.ModuleList | nn.ModuleDict


class Op(NamedTuple):
    """A candidate op of a mixed operation, as it was when it was recognised."""

    primitive: str
    C: int
    stride: int
    state: State
    """Kernels serve as long as this is the op's state."""
    biased: bool = False
    """True if convolutions of it have biases, which the batch norm behind them takes away again."""
    more: int = 0
    """Arguments that its forward demands after x; None does for them."""


def paths_of(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the children of a module and of the lists and dictionaries in it, with their dotted names."""
    for name, child in module._modules.items():
        if isinstance(child, CONTAINERS):
            yield from paths_of(child, f"{prefix}{name}.")
        elif child is not None:
            yield prefix + name, child


def recognise(op: nn.Module, C: int) -> Op:
    """Name the primitive that an op is, or OWN.

    Its layers must be a primitive's, and its results those of the primitive's module, in train and eval mode.

    Args:
        op: a candidate op.
        C: channels to try an op with that has no batch norm to tell its own.
    """
    state = state_of(op)
    if state is None:
        return Op(OWN, 0, 0, ())
    C = next((leaf.num_features for leaf in leaves(op) if isinstance(leaf, nn.BatchNorm2d)), C)
    if (state, C) not in _recognised:
        if len(_recognised) > 4096:
            _recognised.clear()
        with seeded():
            stride, name = next(
                ((stride, name) for stride in (1, 2) if (name := _primitive(op, C, stride)) != OWN), (0, OWN)
            )
            if name != OWN and not _computes(op, name, C, stride):
                stride, name = 0, OWN
        biased = name != OWN and any(map(_has_bias, leaves(op)))
        _recognised[state, C] = Op(name, C, stride, state, biased, _demanded(op))
    return _recognised[state, C]


_recognised: dict[tuple[State, int], Op] = {}


def _primitive(op: nn.Module, C: int, stride: int) -> str:
    """Name the primitive whose layers an op has, or OWN."""
    layers = leaves(op)
    if layers == [op] and not (op._parameters or op._buffers):
        return _without_layers(op, C, stride)
    signature = tuple(map(_signature, layers))
    for name, c in CANDIDATES.items():
        buildable = C > 0 and not (C % 2 and stride == 2 and c.kind == "skip")
        if has_kernel(c) and buildable and signature == _reference_signature(name, C, stride):
            return name
    return OWN


def _without_layers(op: nn.Module, C: int, stride: int) -> str:
    """Tell `none` and the identity, which have many names, by what they do."""
    x = torch.randn(2, max(C, 1), 6, 6, dtype=torch.float64)
    size = 6 // stride
    try:
        with torch.no_grad():
            out = unwatched_copy(op)(x.clone(), *[None] * _demanded(op))
    except Exception:
        return OWN
    if not isinstance(out, Tensor) or out.shape != (*x.shape[:2], size, size):
        return OWN
    if stride == 1 and torch.equal(out, x):
        return "skip_connect"
    return OWN if out.any() else "none"


def _computes(op: nn.Module, name: str, C: int, stride: int) -> bool:
    """True if an op's outputs, gradients and buffers are those of a primitive's module with its numbers."""
    C = max(C, 1)
    g = torch.randn(2, C, 6 // stride, 6 // stride, dtype=torch.float64)
    for training in (True, False):
        theirs, copied = (unwatched_copy(op).train(training) for _ in range(2))
        x = torch.randn(2, C, 6, 6, dtype=torch.float64)
        before = state_of(theirs)
        try:
            found = results(theirs, theirs, (x, *[None] * _demanded(op)), g)
        except Exception:
            return False
        if state_of(theirs) != before:  # it counts its calls, or says what it saw
            return False
        if not agree(found, results(copied, twin(copied, name, C, stride), (x,), g)):
            return False
    return True


def _demanded(op: nn.Module) -> int:
    """Count the arguments that an op's forward demands after x."""
    parameters = list(inspect.signature(op.forward).parameters.values())[1:]
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters)


def twin(op: nn.Module, name: str, C: int, stride: int) -> nn.Module:
    """Build the plain module of a primitive around an op's own tensors: it computes what the kernels do."""
    made = build_for_search(name, max(C, 1), stride).double().train(op.training)
    norm_tensors = ("affine", "weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    norm_attributes = (*norm_tensors, "track_running_stats", "eps", "momentum")
    for mine, theirs in zip(leaves(made), leaves(op), strict=False):  # an op without layers has a leaf of its own
        if isinstance(theirs, nn.Conv2d):
            mine.weight = theirs.weight
            mine.bias = theirs.bias  # type: ignore[assignment]
        elif isinstance(theirs, nn.BatchNorm2d):
            mine.training = theirs.training
            for name in norm_attributes:
                setattr(mine, name, getattr(theirs, name))
    return made


class Results(NamedTuple):
    """Holds the results of a call: tensors by name, None for a gradient that nothing computed."""

    tensors: dict[str, Tensor | None]


def results(
    holder: nn.Module, call: Callable[..., Any], arguments: Sequence[object], g: Tensor | None = None
) -> Results:
    """Call a module and return its outputs, gradients, and what it leaves of arguments and buffers.

    Args:
        holder: the module whose parameters get gradients and whose buffers are read.
        call: computes the outputs from the arguments.
        arguments: floating-point tensors get gradients if they want them.
        g: gradient of the output; None: numbers that depend on its shape only.
    """
    leaf = [a.detach().clone().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a for a in arguments]
    # Not leaves, so that a module that works in place is found out instead of stopped.
    given = [a * 1 if isinstance(a, Tensor) and a.requires_grad else a for a in leaf]
    out = call(*given)
    outputs = [o for o in tree_leaves(out) if isinstance(o, Tensor)]
    found: dict[str, Tensor | None] = {f"output {i}": o.detach().clone() for i, o in enumerate(outputs)}
    found |= {f"output {o!r}": None for o in tree_leaves(out) if not isinstance(o, Tensor)}
    wanted = {f"argument {i}": a for i, a in enumerate(leaf) if isinstance(a, Tensor) and a.requires_grad}
    wanted |= {f"parameter {name}": p for name, p in holder.named_parameters() if p.requires_grad}
    differentiable = [o for o in outputs if o.requires_grad]
    if differentiable and wanted:
        ends = [
            torch.linspace(-1, 2, o.numel(), dtype=o.dtype).reshape(o.shape).cos() if g is None else g
            for o in differentiable
        ]
        gradients = torch.autograd.grad(differentiable, list(wanted.values()), ends, allow_unused=True)
        found |= {f"gradient of {name}": gradient for name, gradient in zip(wanted, gradients, strict=True)}
    found |= {f"argument {i} afterwards": a.detach() for i, a in enumerate(given) if isinstance(a, Tensor)}
    found |= {f"buffer {name}": b.clone() for name, b in holder.named_buffers()}
    return Results(found)


def first_difference(ours: Results, theirs: Results) -> str | None:
    """Name the first tensor that differs by more than rounding, or None."""
    if ours.tensors.keys() != theirs.tensors.keys():
        return min(ours.tensors.keys() ^ theirs.tensors.keys())
    for name, b in theirs.tensors.items():
        a = ours.tensors[name]
        if (a is None) != (b is None):
            return f"{name} (nothing against zeros)"
        if a is None or b is None:
            continue
        if a.shape != b.shape or not torch.allclose(a.double(), b.double(), rtol=1e-9, atol=1e-9, equal_nan=True):
            return name
    return None


def agree(ours: Results, theirs: Results) -> bool:
    """True if two calls gave the same but for rounding."""
    return first_difference(ours, theirs) is None


@contextmanager
def seeded() -> Iterator[None]:
    """Begin random numbers anew inside, of torch and of Python; put the callers' back afterwards."""
    state = random.getstate()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        random.seed(0)
        try:
            yield
        finally:
            random.setstate(state)


def unwatched_copy(module: nn.Module) -> nn.Module:
    """Copy a module, in float64 on the CPU, without hooks."""
    copied = copy.deepcopy(module).to("cpu", torch.float64)
    for part in copied.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks):
            hooks.clear()
    return copied


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """Yield as `modules()` does, but a part that serves in several places comes in each of them."""
    yield module
    for child in module._modules.values():
        if child is not None:
            yield from _parts(child)


def leaves(module: nn.Module) -> list[nn.Module]:
    """List the layers of an op in order of registration, which a trial shows to be the order of their use."""
    return [part for part in _parts(module) if not part._modules]


# What a layer computes, apart from its numbers and from what a kernel reads at each call.
_LAYERS: dict[type, Callable[[dict[str, Any]], tuple[object, ...]]] = {
    **fused.GEOMETRY,
    nn.Conv2d: lambda own: (own["in_channels"], own["out_channels"], *fused.GEOMETRY[nn.Conv2d](own)),
    nn.BatchNorm2d: lambda own: (own["num_features"],),
    nn.ReLU: lambda own: (own["inplace"],),
}


def _signature(layer: nn.Module) -> tuple[object, ...]:
    """Describe a layer; equal for layers that compute the same, whether their sizes are numbers or pairs."""
    # That a relu works in place is part of its state, not of its signature: inside an op it does no harm. Nor is it
    # part of a signature that a batch norm is affine: kernels take both.
    values = _LAYERS[type(layer)](layer.__dict__) if type(layer) in _LAYERS and type(layer) is not nn.ReLU else ()
    return type(layer), *((v, v) if type(v) is int else v for v in values)


def _has_bias(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.bias is not None


@lru_cache(maxsize=1024)
def _reference_signature(name: str, C: int, stride: int) -> tuple[tuple[object, ...], ...]:
    with torch.device("meta"):
        return tuple(map(_signature, leaves(build_for_search(name, C, stride))))


def state_of(op: nn.Module) -> State | None:
    """Return what an op's result depends on beside tensors and modes; None if that is unknown or a hook looks on."""
    states: list[object] = []
    for part in _parts(op):
        own, kind = part.__dict__, type(part)
        values = _LAYERS[kind](own) if kind in _LAYERS else own_state(part)
        if values is None or "forward" in own or fused.watched(part):
            return None
        # Replicas of nn.DataParallel hold their weights as plain attributes.
        states += kind, values, own["_parameters"].get("bias", own.get("bias")) is None, len(own["_modules"])
    return tuple(states)


# The last two are those of nn.DataParallel's replicas.
_MODULE_ATTRIBUTES = frozenset((*nn.Module().__dict__, "_former_parameters", "_is_replica"))
_PLAIN = int | float | str | torch.dtype | torch.device | None


def own_state(module: nn.Module) -> State | None:
    """Return the attributes that a class of someone's own gave its module; None if not all are plain values.

    A function of its arguments alone is one."""
    own = module.__dict__
    names = [name for name in own if name not in _MODULE_ATTRIBUTES and not name.startswith("_fastdarts")]
    if not names:
        return ()
    if not all(_is_plain(own[name]) for name in names):
        return None
    return tuple((name, _frozen(own[name])) for name in sorted(names))


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(_is_plain(k) and _is_plain(v) for k, v in value.items())
    if isinstance(value, FunctionType):  # that reads its arguments alone, such as an identity in place of a dropout
        return not (value.__closure__ or value.__code__.co_names or value.__defaults__ or value.__kwdefaults__)
    return isinstance(value, _PLAIN)


def _frozen(value: object) -> object:
    if isinstance(value, tuple | list):
        return tuple(map(_frozen, value))
    if isinstance(value, dict):
        return tuple((_frozen(k), _frozen(v)) for k, v in value.items())
    return value.__code__ if isinstance(value, FunctionType) else value
