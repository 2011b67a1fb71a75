"""Try out a mixed operation before it is patched: its own forward against sums as the kernels would compute them."""

import builtins
import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from fastdarts.mixed.patching.calls import Call, ChangedInPlaceError, Weight
from fastdarts.mixed.patching.patched import Direct, forwards_of, patched_class, run_deferred
from fastdarts.mixed.patching.recognition import (
    CONTAINERS,
    OWN,
    Op,
    Results,
    first_difference,
    own_state,
    paths_of,
    results,
    seeded,
    unwatched_copy,
)
from fastdarts.mixed.patching.sums import Session

IN_PLACE = "an op changes its input in place, on which the others depend"

AFTERWARDS = "argument 0 afterwards"
"""The name of what a call leaves of x."""

SIZE = 6
"""Height and width of the images."""

MULTIPLES = (1, 2, 4, 8, 3, 16)
"""Channels of a module's input, in those of its ops: with partial channels there are more."""


class Verdict(NamedTuple):
    """Say how a mixed operation can be served."""

    direct: Direct | None = None
    """As one weighted sum, in place of its forward; None: its own forward runs and defers its ops' outputs."""
    reason: str | None = None
    """Why not at all."""
    untried: str | None = None
    """Why its forward could not be tried; it is served all the same, as its own lines run."""
    random: bool = False
    """True if its forward draws random numbers."""
    as_tensors: bool = False
    """True if deferred outputs must pass for tensors."""


def verdict(module: nn.Module, ops: dict[str, Op]) -> Verdict:
    """Find out how a module's sums can be computed by kernels without changing a result.

    Its forwards run on random numbers in float64, in train and eval mode, with weights of all kinds: random ones, one
    that is 1 and the others 0, all 0, each with and without gradients. Outputs, all gradients (also which are None),
    buffers and random numbers drawn must be those of the module as it is.
    """
    key = _key(module, ops)
    if key is None:
        return _verdict(module, ops)
    if key not in _verdicts:
        if len(_verdicts) > 1024:
            _verdicts.clear()
        _verdicts[key] = _verdict(module, ops)
    return _verdicts[key]


_verdicts: dict[object, Verdict] = {}


def _key(module: nn.Module, ops: dict[str, Op]) -> object | None:
    """Equal for modules that pass or fail the trial alike; None where that cannot be told."""
    state = own_state(module)
    if state is None or any(op.primitive == OWN and op.state == () for op in ops.values()):
        return None
    if "forward" in module.__dict__ or module._parameters or module._buffers:
        return None
    return type(module), state, tuple(ops.items())


def _verdict(module: nn.Module, ops: dict[str, Op]) -> Verdict:
    reason = untried = None
    for name in forwards_of(type(module)):
        with seeded():
            own = getattr(type(module), name)
            arguments = _arguments(module, own, ops)
            if isinstance(arguments, str):
                untried = untried or arguments
                continue
            plain = name == "forward" and len(arguments.weights) == 1 and not arguments.more
            if plain and _may_be_direct(module, own, ops):
                trial = _Trial()
                if trial.difference(module, own, partial(_weighted_sum, ops), arguments) is None and not trial.in_place:
                    return Verdict(_direct(module, own), random=trial.random)
            for as_tensors in (False, True):
                trial = _Trial()
                difference = _deferred_difference(trial, module, own, arguments, ops, as_tensors)
                if difference is None:
                    return Verdict(random=trial.random, as_tensors=as_tensors)
                reason = reason or difference
    if reason is None and untried is not None:
        return Verdict(untried=untried, as_tensors=True)
    return Verdict(reason=reason or "it has no forward")


class _Arguments(NamedTuple):
    """Arguments that a forward takes."""

    x: Tensor
    weights: tuple[int, ...]
    """Shape of the op weights: [ops], or [edges, ops] of a cell; (): the forward takes none."""
    more: tuple[object, ...]
    """Further arguments that it demands."""

    def variants(self) -> Iterator[tuple[bool, tuple[Any, ...]]]:
        """Yield train or eval mode, and arguments."""
        for training, weights in self._weights():
            x = torch.randn_like(self.x).requires_grad_()
            yield training, (x, *weights, *self.more)

    def _weights(self) -> Iterator[tuple[bool, tuple[Tensor, ...]]]:
        if not self.weights:
            yield from ((True, ()), (False, ()))
            return
        dense, one_hot, zeros = (
            make(self.weights, dtype=torch.float64) for make in (torch.randn, torch.zeros, torch.zeros)
        )
        one_hot[..., self.weights[-1] // 2] = 1
        kinds = [(True, row, learned) for row in (dense, one_hot, zeros) for learned in (True, False)]
        for training, row, learned in [*kinds, (False, dense, True), (False, one_hot, False)]:
            yield training, (row.clone().requires_grad_(learned),)


def _arguments(module: nn.Module, own: Callable[..., Any], ops: dict[str, Op]) -> _Arguments | str:
    """Find arguments that a forward takes, or say what it does with those that were tried."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = list(inspect.signature(own).parameters.values())[1:]
    positional = [parameter for parameter in parameters if parameter.kind in kinds]
    demanded = sum(parameter.default is inspect.Parameter.empty for parameter in positional)
    C = max(op.C for op in ops.values())
    shapes = _weight_shapes(module, len(ops)) if len(positional) > 1 else [()]
    error = None
    for filler in (0, None, 1.0, True) if demanded > 2 else (None,):
        for shape in shapes:
            for multiple in MULTIPLES:
                x = torch.randn(2, C * multiple, SIZE, SIZE, dtype=torch.float64)
                found = _Arguments(x, shape, (filler,) * (demanded - 2))
                training, given = next(found.variants())
                given = tuple(a.detach() if isinstance(a, Tensor) else a for a in given)
                try:
                    out = own(unwatched_copy(module).train(training), *given)
                except Exception as caught:
                    error = error or caught
                    continue
                if isinstance(out, Tensor | tuple | list):
                    return found
    return f"its {own.__name__} fails on a copy of it: {type(error).__name__}: {error}"


def _weight_shapes(module: nn.Module, ops: int) -> list[tuple[int, ...]]:
    """List the shapes that op weights may have: [ops], or [edges, ops] for a module with a list for each edge."""
    containers = [child for child in module.modules() if isinstance(child, CONTAINERS)]
    largest = max(map(len, containers), default=ops)
    edges = [len(one) for one in containers if all(isinstance(child, CONTAINERS) for child in one.children())]
    return list(dict.fromkeys([(largest,), (ops,), *((count, largest) for count in edges if count)]))


def _may_be_direct(module: nn.Module, own: Callable[..., Any], ops: dict[str, Op]) -> bool:
    """True if a forward can depend on nothing but its arguments, its ops and plain attributes."""
    containers = [child for child in module._modules.values() if child is not None]
    if len(containers) != 1 or not isinstance(containers[0], nn.ModuleList) or None in containers[0]._modules.values():
        return False
    if module._parameters or module._buffers or own_state(module) is None or "forward" in module.__dict__:
        return False
    if len({op.stride for op in ops.values() if op.primitive != OWN}) > 1:
        return False
    if len({op.C for op in ops.values() if op.C}) > 1 or len(list(paths_of(module))) != len(ops):
        return False
    return _is_closed(own)


def _is_closed(function: Callable[..., Any]) -> bool:
    """True if a function reads no variables from around it but modules, functions and classes."""
    code = function.__code__
    kinds = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)
    read = [function.__globals__[name] for name in code.co_names if name in function.__globals__]
    if any(name not in ("__class__",) for name in code.co_freevars):
        return False
    return all(isinstance(value, kinds) or value is builtins for value in read)


def _direct(module: nn.Module, own: Callable[..., Any]) -> Direct:
    parameters = list(inspect.signature(own).parameters.values())[1:]
    defaults = {p.name: p.default for p in parameters[2:] if p.default is not inspect.Parameter.empty}
    positional = [p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    return Direct(tuple(positional), defaults, own_state(module))


def _weighted_sum(ops: dict[str, Op], module: nn.Module, x: Tensor, weights: Tensor) -> Tensor:
    """Add up the ops' outputs; those that kernels compute come before the others."""
    terms = [(weight, *item) for weight, item in zip(weights, paths_of(module), strict=True)]
    terms.sort(key=lambda term: ops[term[1]].primitive == OWN)
    return torch.stack([weight * op(x) for weight, _, op in terms]).sum(0)


def _deferred_difference(
    trial: "_Trial",
    module: nn.Module,
    own: Callable[..., Any],
    arguments: _Arguments,
    ops: dict[str, Op],
    as_tensors: bool,
) -> str | None:
    """Say where a forward changes if its ops' outputs are deferred, or what it does with them; None if all is well."""
    known = {path: op for path, op in ops.items() if op.primitive != OWN}
    sessions: list[Session] = []

    def deferred(copied: nn.Module, *given: Any) -> Any:
        sessions.append(Session(_by_modules, as_tensors=as_tensors))
        copied.__class__ = patched_class(type(module))  # whose attributes are deferred
        return run_deferred(copied, own, given, {}, sessions[-1], known)

    difference = trial.difference(module, own, deferred, arguments)
    if difference is not None:
        return difference
    # A forward that runs but one of its ops has sums of one.
    if not any(session.largest > 1 or (session.largest == len(session.calls) == 1) for session in sessions):
        reasons = [reason for session in sessions for reason in session.reasons]
        return next(iter(reasons), "its forward adds up no weighted outputs of its ops")
    return None


def _by_modules(calls: Sequence[Call], weights: Sequence[Weight]) -> Tensor:
    terms = [weight * call.module(call.x, *call.more) for call, weight in zip(calls, weights, strict=True)]
    return torch.stack(terms).sum(0)


class _Trial:
    """A comparison of a forward with another computation, each on a copy of the module."""

    random = False
    """True if the forward drew random numbers."""
    in_place = False
    """True if the forward changed its arguments."""

    def difference(
        self, module: nn.Module, own: Callable[..., Any], other: Callable[..., Any], arguments: _Arguments
    ) -> str | None:
        """Say where the two differ, or None."""
        theirs, ours = unwatched_copy(module), unwatched_copy(module)
        compared, failed = False, ""
        for number, (training, given) in enumerate(arguments.variants()):
            first = self._run(theirs.train(training), own, given, number)
            second = self._run(ours.train(training), other, given, number)
            if isinstance(first, Results) and not torch.equal(cast(Tensor, first.tensors[AFTERWARDS]), given[0]):
                self.in_place = True
            if isinstance(first, str) and isinstance(second, str):
                failed = first
                continue  # the module refuses such weights itself
            if isinstance(second, str) and second.startswith(ChangedInPlaceError.__name__):
                return IN_PLACE
            if isinstance(first, str) or isinstance(second, str):
                return f"its forward fails if outputs of its ops are deferred: {second}"
            compared = True
            difference = first_difference(second, first)
            if difference is not None and difference == AFTERWARDS:
                return IN_PLACE
            if difference is not None:
                return f"its forward is not a sum of its ops' outputs: with it another {difference}"
        return None if compared else f"its {own.__name__} fails on a copy of it: {failed}"

    def _run(self, copied: nn.Module, call: Callable[..., Any], given: tuple[Any, ...], seed: int) -> Results | str:
        with seeded():
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            try:
                found = results(copied, partial(call, copied), given)
            except Exception as error:
                return f"{type(error).__name__}: {error}"
            self.random |= not torch.equal(before, torch.get_rng_state())
            found.tensors["random numbers drawn"] = torch.rand(())
        return found
