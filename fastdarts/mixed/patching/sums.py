"""Sums of op outputs that are computed when they are read: a module's own forward writes them, kernels add them up.

The forward decides which ops run, with which weights and inputs, as it always did; see `outputs` for what it sees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastdarts.mixed import fused
from fastdarts.mixed.patching.calls import Call, Compute, Weight
from fastdarts.mixed.patching.outputs import Deferred, DeferredTensor, Output, Terms
from fastdarts.mixed.patching.recognition import leaves


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

    def output(self, terms: Terms, extras: Sequence[Weight] = ()) -> Output:
        """Make a deferred output."""
        return self.kind(self, terms, extras)

    def finish(self) -> None:
        """Run what was called and never read: it counts a batch."""
        for call in self.calls:
            norms = (leaf for leaf in leaves(call.module) if isinstance(leaf, nn.BatchNorm2d))
            if call.pending and any(norm.training and norm.track_running_stats for norm in norms):
                with torch.no_grad():
                    call.value()

    def add_up(self, terms: Terms, extras: Sequence[Weight]) -> Tensor:
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
            reason = self._obstacle(call, weight, seen)
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
            else:
                found.append(self._computed(group))
        if not found:
            return terms[0][0].zeros()
        total = found[0]
        for one in found[1:]:
            total = total + one
        return cast(Tensor, total)

    def _obstacle(self, call: Call, weight: Weight | None, seen: set[nn.Module]) -> str | None:
        """Say why no kernel computes a call as a part of a sum, or None; `seen` are the batch norms in it already."""
        if weight is None:
            return "its forward uses the outputs of the ops one by one"
        if not call.pending:
            return "its forward uses an op's output twice"
        if any(norm in seen for norm in _norms(call)):
            return "an op serves twice"
        return self.refusal(call)

    def _computed(self, group: Sequence[tuple[Call, Weight]]) -> Tensor:
        """Compute the sum of calls of one input by kernels."""
        calls = [call for call, _ in group]
        with calls[0].modes():
            out = self.compute(calls, [weight for _, weight in group])
        for call in calls:
            call.fused = True
        self.summed += len(calls)
        self.largest = max(self.largest, len(calls))
        return laid_out_as(calls[0].x, out) if self.keep_layout or not self.returning else out


def _merged(terms: Terms) -> list[tuple[Call, Weight | None]]:
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


def _is_constant_zero(weight: Weight | None) -> bool:
    if isinstance(weight, Tensor):
        return not weight.requires_grad and weight.device.type == "cpu" and weight.item() == 0
    return weight == 0
