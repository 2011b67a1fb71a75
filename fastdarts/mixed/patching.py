"""Fused kernels for networks written elsewhere: `patch` finds their mixed operations and lets the kernels compute them.

A patched module stays what it is: the same object with its modules, parameters, buffers, hooks and `state_dict`, of a
subclass of its class. Only its forward differs, and only for calls that the kernels can serve; others run its own.
"""

import copy
import copyreg
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from fastdarts.mixed import fused
from fastdarts.mixed.mixed_op import MixedOp, op_weights_row
from fastdarts.ops.plan import has_kernel
from fastdarts.primitives.modules import build_for_search
from fastdarts.primitives.table import CANDIDATES

OWN = "-"
"""In the place of a primitive's name: the op's own module computes it."""


@dataclass(frozen=True)
class PatchReport:
    """What `patch` did, by module name ("" is the model itself). As a string it tells the same in words."""

    replaced: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The primitives of each mixed operation that now runs fused, `OWN` for ops that their own modules compute."""
    left: dict[str, str] = field(default_factory=dict)
    """Modules that hold candidate operations and were left as they are, and why."""

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} mixed operations replaced, {len(self.left)} left"]
        for title, found in (("replaced", {n: _in_words(p) for n, p in self.replaced.items()}), ("left", self.left)):
            for text in dict.fromkeys(found.values()):
                names = [name or "the model itself" for name in found if found[name] == text]
                some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
                lines.append(f"{title}: {some}: {text}")
        return "\n".join(lines)


def _in_words(primitives: Sequence[str]) -> str:
    own = [str(column) for column, primitive in enumerate(primitives) if primitive == OWN]
    kept = f"; by their own modules: ops {', '.join(own)}" if own else ""
    return ", ".join(primitive for primitive in primitives if primitive != OWN) + kept


def patch(model: nn.Module) -> PatchReport:
    """Let the kernels compute every mixed operation of a model, in place; `unpatch` undoes it.

    A mixed operation is a module that holds nothing but one `ModuleList` of candidate ops and whose forward(x, weights)
    is their weighted sum. Ops are recognised by the layers they consist of, whatever classes and attributes are called.
    A copy of every module is then tried with random numbers in float64, in train and eval mode, with gradients: what is
    not the sum that the kernels would compute is left alone. An op without a kernel keeps its own module.

    Copies (`deepcopy`, pickles, replicas) are patched like their original; a network constructed anew is not.

    Returns: what was replaced, what was left, and why.
    """
    report = PatchReport()
    for name, module in list(model.named_modules()):
        if isinstance(module, MixedOp | _Patched):
            continue
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            layout = _layout(module)
        if isinstance(layout, str):
            report.left[name] = layout
        elif layout is not None:
            module.__dict__["_fastdarts_layout"] = layout
            module.__class__ = _patched_class(type(module))
            report.replaced[name] = tuple(op.primitive for op in layout.ops)
    return report


def unpatch(model: nn.Module) -> list[str]:
    """Give every patched module of a model its own forward back. Returns their names."""
    names = []
    for name, module in model.named_modules():
        if isinstance(module, _Patched):
            names.append(name)
            del module.__dict__["_fastdarts_layout"]
            cast(nn.Module, module).__class__ = module._fastdarts_original
    return names


class _Op(NamedTuple):
    primitive: str
    state: tuple[object, ...]
    """Of the op's modules: the kernels serve as long as it is the same."""


class _Layout(NamedTuple):
    """What a foreign mixed operation consists of."""

    list_name: str
    C: int
    stride: int
    ops: tuple[_Op, ...]
    state: tuple[object, ...]
    """Of the module itself."""


class _Patched(nn.Module):
    """Stands before a module's own class among its bases."""

    _fastdarts_original: type[nn.Module]
    _fastdarts_layout: _Layout

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        layout = self._fastdarts_layout
        if len(args) == 2 and not kwargs and _serves(layout, *args):
            x, weights = args
            edge = _read(self, layout)
            if edge is not None and fused.refusal([edge], x) is None:
                return fused.mixed_nodes([edge], [(0, 1)], [x], op_weights_row(weights, x))
        return super().forward(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """For copies and pickles, which look classes up by name: the patched class is made from the module's own."""
        reduced: Any = super().__reduce_ex__(protocol)
        make, arguments, *rest = reduced
        if make is copyreg.__newobj__:  # type: ignore[attr-defined]
            return _new_patched, (self._fastdarts_original, *arguments[1:]), *rest
        return reduced


_classes: dict[type[nn.Module], type[_Patched]] = {}


def _patched_class(original: type[nn.Module]) -> type[_Patched]:
    """The one subclass of a class whose instances run fused; it goes by the class's own name."""
    if original not in _classes:
        names = {"__module__": original.__module__, "__qualname__": original.__qualname__, "__doc__": original.__doc__}
        members = {"_fastdarts_original": original, **names}
        _classes[original] = cast(type[_Patched], type(original.__name__, (_Patched, original), members))
    return _classes[original]


def _new_patched(original: type[nn.Module], *arguments: Any) -> nn.Module:
    cls = _patched_class(original)
    return cast(nn.Module, cls.__new__(cls, *arguments))


def _serves(layout: _Layout, x: Any, weights: Any) -> bool:
    """Whether x and weights are what the kernels take; only the module itself knows what to make of anything else."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() != 4 or x.shape[1] != layout.C or 0 in x.shape:
        return False
    if isinstance(weights, Tensor):
        return weights.shape == (len(layout.ops),) and weights.device == x.device and weights.is_floating_point()
    return (
        isinstance(weights, Sequence)
        and len(weights) == len(layout.ops)
        and all(w.dim() == 0 and w.device == x.device if isinstance(w, Tensor) else type(w) is float for w in weights)
    )


@dataclass(frozen=True)
class _Edge:
    """What `fused` asks of a MixedOp."""

    stride: int
    primitives: tuple[str, ...]
    _ops: Sequence[nn.Module]


def _read(module: nn.Module, layout: _Layout) -> fused.ReadEdge | None:
    """As `fused.read`, or None if the module is no longer what it was when it was patched."""
    ops = list(cast(nn.ModuleList, module._modules[layout.list_name]))
    if len(ops) != len(layout.ops) or _own_state(module) != layout.state:
        return None
    contents, others = {}, []
    for column, (op, known) in enumerate(zip(ops, layout.ops, strict=True)):
        if known.primitive == OWN or _state(op) != known.state:
            others.append(column)
        elif known.primitive != "none":
            leaves = _leaves(op)
            norms = [leaf for leaf in leaves if isinstance(leaf, nn.BatchNorm2d)]
            if any(norm.running_mean is None for norm in norms):  # in eval mode it would use the batch
                others.append(column)
            else:
                contents[column] = [leaf.weight for leaf in leaves if isinstance(leaf, nn.Conv2d)], norms
    edge = _Edge(layout.stride, tuple(op.primitive for op in layout.ops), ops)
    return fused.ReadEdge(cast(MixedOp, edge), contents, others, fused.settings_of(contents))


def _layout(module: nn.Module) -> _Layout | str | None:
    """How a mixed operation is made; a reason not to touch it; or None for any other module."""
    lists = [(name, child) for name, child in module._modules.items() if isinstance(child, nn.ModuleList)]
    if len(lists) != 1 or len(lists[0][1]) < 2:
        return None
    list_name, ops = lists[0]
    C = next((leaf.num_features for op in ops for leaf in _leaves(op) if isinstance(leaf, nn.BatchNorm2d)), 0)
    recognised = {stride: [_primitive(op, C, stride) for op in ops] for stride in (1, 2)}
    stride = max(recognised, key=lambda stride: sum(name != OWN for name in recognised[stride]))
    names = recognised[stride]
    if all(name in (OWN, "none", "skip_connect") for name in names):
        known = [_primitive(op, C, s, affine=True) for op in ops for s in (1, 2)] if C else []
        if all(name in (OWN, "none", "skip_connect") for name in known):
            return None
        return "its batch norms have scales and shifts, for which there are no kernels"
    if len(module._modules) > 1 or module._parameters or module._buffers:
        return "it holds more than its candidate ops"
    state = _own_state(module)
    if state is None:
        return "it has attributes other than plain values, on which its forward may depend"
    reason = _difference(module, list_name, C, stride, names)
    if reason is not None:
        return reason
    known_ops = tuple(_Op(name, _state(op) or ()) for name, op in zip(names, ops, strict=True))
    return _Layout(list_name, C, stride, known_ops, state)


def _primitive(op: nn.Module, C: int, stride: int, affine: bool = False) -> str:
    """The name of the primitive that an op is by its layers, or OWN."""
    leaves = _leaves(op)
    if _state(op) is None or any(isinstance(leaf, nn.BatchNorm2d) and leaf.affine != affine for leaf in leaves):
        return OWN
    if leaves == [op] and not (op._parameters or op._buffers):
        return _without_layers(op, C, stride)
    signature = tuple(map(_signature, leaves))
    for name, c in CANDIDATES.items():
        buildable = C > 0 and not (C % 2 and stride == 2 and c.kind == "skip")
        if has_kernel(c) and buildable and signature == _reference_signature(name, C, stride):
            return name
    return OWN


def _without_layers(op: nn.Module, C: int, stride: int) -> str:
    """`none` and the identity have many names; they are known by what they do."""
    x = torch.randn(2, max(C, 1), 6, 6, dtype=torch.float64)
    size = 6 // stride
    try:
        with torch.no_grad():
            out = _unwatched_copy(op)(x.clone())
    except Exception:
        return OWN
    if not isinstance(out, Tensor) or out.shape != (*x.shape[:2], size, size):
        return OWN
    if stride == 1 and torch.equal(out, x):
        return "skip_connect"
    return OWN if out.any() else "none"


def _difference(module: nn.Module, list_name: str, C: int, stride: int, names: Sequence[str]) -> str | None:
    """Why a module is not the weighted sum that the kernels compute, or None: tried in float64 with random numbers."""
    for training in (True, False):
        x = torch.randn(2, C, 6, 6, dtype=torch.float64)
        weights = torch.randn(len(names), dtype=torch.float64)
        g = torch.randn(2, C, 6 // stride, 6 // stride, dtype=torch.float64)
        try:
            theirs = _tried(_unwatched_copy(module).train(training), x, weights, g)
        except Exception as error:
            return f"forward(x, weights) fails on a copy of it: {type(error).__name__}: {error}"
        copied = cast(nn.ModuleList, _unwatched_copy(module).train(training)._modules[list_name])
        ops = [_twin(op, name, C, stride) for op, name in zip(copied, names, strict=True)]
        ours = _tried(partial(_weighted_sum, ops), x, weights, g)
        if not all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(theirs, ours, strict=True)):
            return "its forward(x, weights) is not the weighted sum of its ops"
    return None


def _weighted_sum(ops: Sequence[nn.Module], x: Tensor, weights: Tensor) -> Tensor:
    return torch.stack([weight * op(x) for weight, op in zip(weights, ops, strict=True)]).sum(0)


def _tried(forward: Callable[[Tensor, Tensor], Tensor], x: Tensor, weights: Tensor, g: Tensor) -> list[Tensor]:
    """Output and gradients of x and of the op weights, and x as the forward leaves it."""
    # Not leaves, so that an op that works in place is found out instead of stopped.
    x, weights = x.clone().requires_grad_() * 1, weights.clone().requires_grad_()
    out = forward(x, weights)
    gradients = torch.autograd.grad(out, (x, weights), g, allow_unused=True, materialize_grads=True)
    return [out.detach(), *gradients, x.detach()]


def _twin(op: nn.Module, name: str, C: int, stride: int) -> nn.Module:
    """The plain module of a primitive with an op's numbers, which is what the kernels compute; an OWN op itself."""
    if name == OWN:
        return op
    twin = build_for_search(name, C, stride).double().train(op.training)
    for mine, theirs in zip(_leaves(twin), _leaves(op), strict=True):
        if isinstance(theirs, nn.Conv2d):
            mine.weight = theirs.weight
        elif isinstance(theirs, nn.BatchNorm2d):
            for name in (
                "running_mean",
                "running_var",
                "num_batches_tracked",
                "track_running_stats",
                "eps",
                "momentum",
            ):
                setattr(mine, name, getattr(theirs, name))
    return twin


def _unwatched_copy(module: nn.Module) -> nn.Module:
    """In float64 on the CPU, without hooks."""
    twin = copy.deepcopy(module).to("cpu", torch.float64)
    for part in twin.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks):
            hooks.clear()
    return twin


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """As `modules()`, but a part that serves in several places comes in each of them."""
    yield module
    for child in module._modules.values():
        if child is not None:
            yield from _parts(child)


def _leaves(module: nn.Module) -> list[nn.Module]:
    """The layers of an op, in order of registration, which the trial shows to be the order of their use."""
    return [part for part in _parts(module) if not part._modules]


# What a layer computes, apart from its numbers and from what a kernel reads at each call.
_LAYERS: dict[type, Callable[[dict[str, Any]], tuple[object, ...]]] = {
    **fused.GEOMETRY,
    nn.Conv2d: lambda own: (own["in_channels"], own["out_channels"], *fused.GEOMETRY[nn.Conv2d](own)),
    nn.BatchNorm2d: lambda own: (own["num_features"],),
    nn.ReLU: lambda _: (),
}


def _signature(layer: nn.Module) -> tuple[object, ...]:
    """Equal for layers that compute the same, whether their sizes were given as numbers or as pairs."""
    values = _LAYERS[type(layer)](layer.__dict__) if type(layer) in _LAYERS else ()
    bias = isinstance(layer, nn.Conv2d) and layer.bias is not None
    return type(layer), bias, *((value, value) if type(value) is int else value for value in values)


@lru_cache(maxsize=1024)
def _reference_signature(name: str, C: int, stride: int) -> tuple[tuple[object, ...], ...]:
    with torch.device("meta"):
        return tuple(map(_signature, _leaves(build_for_search(name, C, stride))))


def _state(op: nn.Module) -> tuple[object, ...] | None:
    """What an op's result depends on beside tensors and modes; None where that cannot be told or a hook looks on."""
    states: list[object] = []
    for part in _parts(op):
        own, kind = part.__dict__, type(part)
        values = _LAYERS[kind](own) if kind in _LAYERS else _own_state(part)
        if values is None or "forward" in own or fused.watched(part):
            return None
        states += kind, values, own["_parameters"].get("bias") is None
    return tuple(states)


# The last two are those of nn.DataParallel's replicas.
_MODULE_ATTRIBUTES = frozenset((*nn.Module().__dict__, "_fastdarts_layout", "_former_parameters", "_is_replica"))


def _own_state(module: nn.Module) -> tuple[object, ...] | None:
    """The attributes that a class of someone's own gave its module; None if they are not all plain values."""
    own = module.__dict__
    names = own.keys() - _MODULE_ATTRIBUTES
    if not names:
        return ()
    return (
        tuple((name, _frozen(own[name])) for name in sorted(names)) if all(_is_plain(own[n]) for n in names) else None
    )


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, int | float | str)


def _frozen(value: object) -> object:
    return tuple(map(_frozen, value)) if isinstance(value, tuple | list) else value
