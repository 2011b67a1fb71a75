"""Run mixed edges through the fused operators: read the modules' weights and update their running statistics."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fastdarts.mixed.statistics import buffer, update_running
from fastdarts.ops import operators
from fastdarts.ops.plan import MixedPlan, PlannedEdge, edge_ops
from fastdarts.primitives.modules import DilConv, FactorizedReduce, ReLUConvBN, SepConv, Zero
from fastdarts.primitives.table import CANDIDATES

Settings = tuple[type, bool, float, float | None, bool]
"""Settings of a batch norm: class, training, eps, momentum, track_running_stats."""


Signature = tuple[tuple[type, Any], ...]
"""Signature of an op: the classes and geometries of its layers."""


class Edge(Protocol):
    """Declare what the kernels need of a mixed op."""

    stride: int
    primitives: tuple[str, ...]
    _built: tuple[Signature, ...]
    _ops: nn.ModuleList
    _modules: dict[str, nn.Module | None]


@dataclass(frozen=True)
class OneOp:
    """Describe an edge that has one op, as those of a discrete cell have."""

    stride: int
    primitives: tuple[str]
    _ops: tuple[nn.Module]


class ReadEdge(NamedTuple):
    """Hold what a call needs of a mixed op."""

    edge: Edge
    fused: dict[int, tuple[list[Tensor], list[nn.BatchNorm2d]]]
    """Convolution weights and batch norms of the ops that a kernel computes, by column."""
    others: list[int]
    """Columns of the ops that their modules compute."""
    settings: frozenset[Settings]
    """Settings of all batch norms."""


class _Reading(threading.local):
    """Hold the mixed ops that this thread has read inside `reading_once`; None outside."""

    before: dict[Any, ReadEdge] | None = None


_reading = _Reading()


@contextmanager
def reading_once() -> Iterator[None]:
    """Cache what `read` returns, for passes inside: the caller promises not to change modules between them."""
    _reading.before = {}
    try:
        yield
    finally:
        _reading.before = None


@contextmanager
def reading_anew() -> Iterator[None]:
    """Leave the cache of `reading_once` aside, for a pass with other weights or hooks than the passes around it."""
    before, _reading.before = _reading.before, None
    try:
        yield
    finally:
        _reading.before = before


def read(edge: Edge, active: Sequence[int] | None = None) -> ReadEdge:
    """Sort the columns of mixed op `edge` into those that a kernel computes and those that their modules compute.

    Columns of `none` are in neither group. Only the columns in `active` are read; None reads all.
    """
    before = None if torch.compiler.is_compiling() else _reading.before
    if before is None:
        return _read(edge, active)
    key = (edge, None if active is None else tuple(active))
    found = before.get(key)
    if found is None:
        found = _read(edge, active)
        # A weight that is not a parameter, such as the output of a parametrization, may be a new tensor in each pass.
        if all(type(weight) is nn.Parameter for weights, _ in found.fused.values() for weight in weights):
            before[key] = found
    return found


def _read(edge: Edge, active: Sequence[int] | None) -> ReadEdge:
    fused, others = {}, []
    ops_of_edge = list(edge._modules["_ops"]._modules.values())  # type: ignore[union-attr]
    built = edge._built
    for column in range(len(ops_of_edge)) if active is None else sorted(active):
        op = ops_of_edge[column]
        if type(op) is Zero:
            continue
        if column < len(built) and _has_kernel(op, edge.primitives[column], built[column]):
            fused[column] = _contents(op)
        else:
            others.append(column)
    return ReadEdge(edge, fused, others, settings_of(fused))


def read_op(op: nn.Module, primitive: str, stride: int, built: Signature) -> ReadEdge:
    """Read an op of a discrete cell as an edge of its own: column 0 is computed by a kernel or by the module.

    Args:
        op: the module.
        primitive: its name as in a search: that of a pool without batch norm begins with "bare_".
        stride: of its windows.
        built: the signature that `op` had when the cell was built.
    """
    edge = OneOp(stride, (primitive,), (op,))
    fused = {0: _contents(op)} if _has_kernel(op, primitive, built) else {}
    others = [] if fused or type(op) is Zero else [0]
    return ReadEdge(edge, fused, others, settings_of(fused))  # type: ignore[arg-type]


def _has_kernel(op: nn.Module, primitive: str, built: Signature) -> bool:
    return type(op) in _MODULES.get(CANDIDATES[primitive].kind, ()) and _as_built(op, built)


def settings_of(fused: Mapping[int, tuple[list[Tensor], list[nn.BatchNorm2d]]]) -> frozenset[Settings]:
    """Return the settings of all batch norms of an edge, given the `fused` of its ReadEdge."""
    return frozenset(norm_settings(norm) for _, norms in fused.values() for norm in norms)


def refusal(edges: Sequence[ReadEdge], x: Tensor) -> str | None:
    """Return the reason why the kernels cannot compute `edges` for an input like x, or None if they can."""
    # torch has no public name for the second function.
    if torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():  # type: ignore[attr-defined,no-untyped-call]
        return "torch.jit.trace and torch.func see plain modules only"
    if torch.compiler.is_exporting():
        return "torch.export sees plain modules only"
    known = x.device.type in ("cpu", "cuda")
    reason = operators.unavailable(x.device, storage_dtype(x) if known else x.dtype)
    if reason is not None:
        return reason
    settings = {one for edge in edges for one in edge.settings}
    if len(settings) > 1:
        return "its batch norms differ in class, mode, eps, momentum or tracking"
    return next((norm_refusal(*one) for one in settings), None)


def storage_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype to which autocast casts x; it does not cast float64."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def mixed_nodes(
    edges: Sequence[ReadEdge],
    ends: Sequence[tuple[int, int]],
    states: Sequence[Tensor],
    weights: Tensor,
    active: Sequence[Sequence[int]] | None = None,
    K: int = 1,
    skip_zeros: bool = False,
    factors: Tensor | None = None,
    recompute: bool = False,
) -> Tensor:
    """Compute the nodes of a graph of mixed edges; return them as [N, nodes * C, H', W'].

    Args:
        edges: the mixed ops; edge e goes from state ends[e][0] to state ends[e][1] and uses row e of `weights`.
        ends: source and target state of each edge; states are numbered inputs first, then nodes.
        states: the inputs, [N, C, H, W] each.
        weights: op weights [edges, ops].
        active: the columns that run on each edge; None runs all.
        K: for partial channels, see `MixedPlan`; above 1 only on a CPU, and if every op has a kernel.
        skip_zeros: if `active` is None, do not run columns whose op weight is a constant 0.
        factors: a factor for each edge and sample [edges, N]; None for 1.
        recompute: on a CPU, keep less for the backward, see `operators.mixed_sum`.
    """
    dtype = storage_dtype(states[0])
    if not weights.is_floating_point():
        weights = weights.to(dtype)
    inputs = [state.to(dtype) for state in states]
    if active is None:
        values = _skippable(weights) if skip_zeros else [None] * len(edges)
        active = [_needed(edge, row) for edge, row in zip(edges, values, strict=True)]
    needed = [_only(edge, columns) for edge, columns in zip(edges, active, strict=True)]
    if not any(edge.others for edge in needed):
        return _run(needed, tuple(ends), inputs, weights, K, factors, recompute and inputs[0].device.type == "cpu")
    return _beside_modules(needed, ends, inputs, weights, factors)


class _Output(NamedTuple):
    """Represent a module's output as an edge of the plan: a skip connection from an additional input."""

    stride: int
    primitives: tuple[str, ...]


def _beside_modules(
    edges: Sequence[ReadEdge],
    ends: Sequence[tuple[int, int]],
    inputs: list[Tensor],
    weights: Tensor,
    factors: Tensor | None,
) -> Tensor:
    """Compute nodes when some edges have ops without a kernel: the outputs of their modules become additional inputs.

    Each call of the operator computes as many nodes as possible: all nodes before the first that needs a module's
    output of a node of the same call.
    """
    known, first, size = list(inputs), len(inputs), weights.shape[1]
    states = max(target for _, target in ends) + 1
    while first < states:
        waiting = [target for e, (source, target) in enumerate(ends) if edges[e].others and source >= len(known)]
        last = min(waiting, default=states)
        here = [e for e, (_, target) in enumerate(ends) if first <= target < last]
        # In the order of the edges, in which plain modules are called: some draw random numbers.
        outputs = {
            (e, column): edges[e].edge._ops[column](known[ends[e][0]]).to(known[0].dtype)
            for e in here
            for column in edges[e].others
        }
        beside = list(outputs)
        sources = sorted({ends[e][0] for e in here if ends[e][0] < first})
        entering = len(sources) + len(beside)
        place = {source: at for at, source in enumerate(sources)}
        place |= {state: entering + state - first for state in range(first, last)}
        local = [(place[ends[e][0]], place[ends[e][1]]) for e in here]
        local += [(len(sources) + at, place[ends[e][1]]) for at, (e, _) in enumerate(beside)]
        skip = _Output(1, ("skip_connect",) * size)
        planned = [edges[e] for e in here]
        planned += [ReadEdge(skip, {column: ([], [])}, [], frozenset()) for _, column in beside]  # type: ignore[arg-type]
        # weights[rows] would copy the list to the GPU and synchronise, which is not allowed in a captured step.
        order = [*here, *(e for e, _ in beside)]
        rows = torch.stack([weights[e] for e in order])
        own = None if factors is None else torch.stack([factors[e] for e in order])
        entered = [*(known[s] for s in sources), *(outputs[k] for k in beside)]
        made = _run(planned, tuple(local), entered, rows, factors=own)
        if len(here) == len(ends):
            return made
        known += made.chunk(last - first, dim=1)
        first = last
    return torch.cat(known[len(inputs) :], dim=1)


def preprocess(module: nn.Module, x: Tensor, built: Signature) -> Tensor:
    """Preprocess a cell's input x with `operators.project`, or with `module` itself if the kernel cannot compute it.

    `built` is the signature that `module` had when the cell was built.
    """
    params, norms = preprocessing(module, built)
    if not params or norm_refusal(*norm_settings(norms[0])):
        out: Tensor = module(x)
        return out
    (norm,) = norms
    if norm.training:
        _check_values(x, stride=len(params))
    running = None if norm.training else running_statistics([norm])
    out, stats = operators.project(x.to(storage_dtype(x)), params, running, norm.eps, affine_numbers([norm]))
    if norm.training and norm.track_running_stats:
        update_running([norm], stats, out.shape[0] * out.shape[2] * out.shape[3])
    return out


def preprocessing(module: nn.Module, built: Signature) -> tuple[list[Tensor], list[nn.BatchNorm2d]]:
    """Return the weights and the batch norm of what preprocesses an input, empty lists where no kernel computes it."""
    has_kernel = type(module) in (FactorizedReduce, ReLUConvBN) and _as_built(module, built)
    return _contents(module) if has_kernel else ([], [])


def _run(
    edges: Sequence[ReadEdge],
    ends: tuple[tuple[int, int], ...],
    states: list[Tensor],
    weights: Tensor,
    K: int = 1,
    factors: Tensor | None = None,
    recompute: bool = False,
) -> Tensor:
    plan = plan_of(len(states), ends, edges, K)
    params = [param for edge in edges for params, _ in edge.fused.values() for param in params]
    norms = [norm for edge in edges for _, norms in edge.fused.values() for norm in norms]
    training, eps, running, affine = False, 1e-5, None, None
    if norms:
        training, eps = norms[0].training, norms[0].eps
        running = None if training else running_statistics(norms)
        affine = affine_numbers(norms)
    if training:
        _check_values(states[0], edges[0].edge.stride)
    out, stats = operators.mixed_sum(states, weights, params, running, plan, eps, affine, factors, recompute)
    if training and norms[0].track_running_stats:
        update_running(norms, stats, out.shape[0] * out.shape[2] * out.shape[3])
    return out


def _check_values(x: Tensor, stride: int) -> None:
    """Raise batch norm's own ValueError if x has one value per channel at `stride` and hence no variance."""
    if x.shape[0] == 1 and max(x.shape[2:]) <= stride:
        raise ValueError(f"batch norm needs more than one value per channel when training; got x {tuple(x.shape)}")


def plan_of(inputs: int, ends: tuple[tuple[int, int], ...], edges: Sequence[ReadEdge], K: int = 1) -> MixedPlan:
    """Return the plan of `edges` with the ops that kernels compute; see `mixed_nodes`."""
    return _plan(inputs, ends, tuple((e.edge.stride, e.edge.primitives, tuple(e.fused)) for e in edges), K)


@lru_cache(maxsize=1024)
def _plan(
    inputs: int,
    ends: tuple[tuple[int, int], ...],
    edges: tuple[tuple[int, tuple[str, ...], tuple[int, ...]], ...],
    K: int,
) -> MixedPlan:
    planned = tuple(
        PlannedEdge(source, node, stride, edge_ops(primitives, columns))
        for (source, node), (stride, primitives, columns) in zip(ends, edges, strict=True)
    )
    return MixedPlan(inputs, max(node for _, node in ends) + 1 - inputs, planned, K)


def _skippable(weights: Tensor) -> list[list[float] | None]:
    """Return each edge's op weights as floats, so that zero-weight ops can be skipped; None where reading is unsafe.

    They are read only on a CPU, from plain tensors without gradient, outside of compilation.
    """
    plain = type(weights) in (Tensor, nn.Parameter) and weights.device.type == "cpu"
    if weights.requires_grad or not plain or torch.compiler.is_compiling():
        return [None] * len(weights)
    return weights.tolist()


def _needed(edge: ReadEdge, values: list[float] | None) -> Sequence[int]:
    """Return the columns of an edge, without those whose value is 0; all of them if `values` is None."""
    columns = range(len(edge.edge._ops))
    return columns if values is None else [column for column in columns if values[column] != 0.0]


def _only(edge: ReadEdge, columns: Sequence[int]) -> ReadEdge:
    """Return the edge with only the ops in `columns`, in the edge's order."""
    fused = {column: contents for column, contents in edge.fused.items() if column in columns}
    return ReadEdge(edge.edge, fused, [column for column in edge.others if column in columns], edge.settings)


# The module classes that the kernels compute; a pool's Sequential holds the pool and its batch norm.
_MODULES: dict[str, tuple[type, ...]] = {
    "max_pool": (nn.Sequential, nn.MaxPool2d),
    "avg_pool": (nn.Sequential, nn.AvgPool2d),
    "pointwise": (ReLUConvBN,),
    "skip": (nn.Identity, FactorizedReduce),
    "sep_conv": (SepConv,),
    "dil_conv": (DilConv,),
}


def _contents(op: nn.Module) -> tuple[list[Tensor], list[nn.BatchNorm2d]]:
    """Return the convolution weights and batch norms of a reference module, in the operators' order.

    Reads the modules' dictionaries, because a step needs 1,400 weights and attribute look-up would take milliseconds.
    """
    match op:
        case SepConv():
            layers = op._modules["op"]._modules  # type: ignore[union-attr]
            params = [_weight(layers["1"]), _weight(layers["2"]), _weight(layers["5"]), _weight(layers["6"])]
            return params, [layers["3"], layers["7"]]  # type: ignore[list-item]
        case ReLUConvBN():
            layers = op._modules["op"]._modules  # type: ignore[union-attr]
            return [_weight(layers["1"])], [layers["2"]]  # type: ignore[list-item]
        case DilConv():
            layers = op._modules["op"]._modules  # type: ignore[union-attr]
            return [_weight(layers["1"]), _weight(layers["2"])], [layers["3"]]  # type: ignore[list-item]
        case FactorizedReduce():
            layers = op._modules
            return [_weight(layers["conv_1"]), _weight(layers["conv_2"])], [layers["bn"]]  # type: ignore[list-item]
        case nn.Sequential():
            return [], [op._modules["1"]]  # type: ignore[list-item]
    return [], []


def _convolution(own: dict[str, Any]) -> tuple[Any, ...]:
    return own["kernel_size"], own["stride"], own["padding"], own["dilation"], own["groups"], own["padding_mode"]


def _max_pool(own: dict[str, Any]) -> tuple[Any, ...]:
    window = own["kernel_size"], own["stride"], own["padding"]
    return *window, own["dilation"], own["ceil_mode"], own["return_indices"]


def _avg_pool(own: dict[str, Any]) -> tuple[Any, ...]:
    window = own["kernel_size"], own["stride"], own["padding"]
    return *window, own["ceil_mode"], own["count_include_pad"], own["divisor_override"]


GEOMETRY: dict[type, Callable[[dict[str, Any]], tuple[Any, ...]]] = {
    nn.Conv2d: _convolution,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _avg_pool,
}
"""For each class of layers, a function from attributes to geometry: all that determines the computation apart from
weights. The kernels check the numbers of channels."""


def _layers(op: nn.Module) -> list[nn.Module]:
    if type(op) in GEOMETRY:  # a pool without a norm
        return [op]
    return [layer for layer in (op._modules.get("op") or op)._modules.values() if layer is not None]


def signature(op: nn.Module) -> Signature:
    """Return the classes and geometries of an op's layers."""
    layers = ((type(layer), layer.__dict__) for layer in _layers(op))
    return tuple((kind, GEOMETRY[kind](own) if kind in GEOMETRY else None) for kind, own in layers)


def _as_built(op: nn.Module, built: Signature) -> bool:
    """Return True if the op still computes what it did when it was built, and if nothing observes its layers.

    That is, it has the layers of its signature `built`, without hooks, biases or overridden forwards. Which batch norms
    have kernels is decided by `refusal`.
    """
    layers = _layers(op)
    if len(layers) != len(built):
        return False
    for layer, (kind, geometry) in zip(layers, built, strict=True):
        own = layer.__dict__
        if kind is nn.BatchNorm2d:
            if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
                return False
            batch_alone = layer.training and not layer.track_running_stats
            if not batch_alone and own["_buffers"].get("running_mean") is None:
                return False
        elif kind is nn.Conv2d:
            if type(layer) is not kind and not (isinstance(layer, kind) and "parametrizations" in own["_modules"]):
                return False
            if own["_parameters"].get("bias") is not None:
                return False
        elif type(layer) is not kind:
            return False
        if geometry is not None and GEOMETRY[kind](own) != geometry:
            return False
    inner = op._modules.get("op") or op
    return not any("forward" in part.__dict__ or watched(part) for part in (op, inner, *layers))


def _weight(module: nn.Module | None) -> Tensor:
    weight = module._parameters.get("weight")  # type: ignore[union-attr]
    return module.weight if weight is None else weight  # type: ignore[union-attr,return-value]


def running_statistics(norms: list[nn.BatchNorm2d]) -> Tensor:
    """Return the running statistics of batch norms, [norms, 2 (mean, variance), C]."""
    return torch.stack([torch.stack([buffer(n, "running_mean"), buffer(n, "running_var")]) for n in norms])


def affine_numbers(norms: list[nn.BatchNorm2d]) -> Tensor | None:
    """Return the weights and biases of batch norms [norms, 2, C], 1 and 0 for one without; None if none has them."""
    learned = next((norm._parameters["weight"] for norm in norms if norm.affine), None)
    if learned is None:
        return None
    fixed = {"weight": torch.ones_like(learned), "bias": torch.zeros_like(learned)}
    return torch.stack(
        [norm._parameters[name] if norm.affine else one for norm in norms for name, one in fixed.items()]  # type: ignore[misc]
    ).unflatten(0, (-1, 2))


def watched(module: nn.Module) -> bool:
    """Return True if the module has hooks, which require that it is called."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def norm_settings(norm: nn.BatchNorm2d) -> Settings:
    """Return the settings of a batch norm."""
    return type(norm), norm.training, norm.eps, norm.momentum, norm.track_running_stats


def norm_refusal(kind: type, training: bool, eps: float, momentum: float | None, _: bool) -> str | None:
    """Return the reason why no kernel computes batch norms with these settings, or None if one does."""
    if kind is not nn.BatchNorm2d:
        return f"its batch norms are {kind.__name__}"
    return "its batch norms average without momentum" if momentum is None else None
