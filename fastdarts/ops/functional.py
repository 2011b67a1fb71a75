"""Compute what the operators compute in plain torch functions, differentiable any number of times."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdarts.ops.plan import MixedPlan, norm_count, param_count
from fastdarts.primitives.table import Candidate


@dataclass(frozen=True)
class _Norms:
    """Batch norms, one after the other: statistics [norms, 2, C] (None: the batch's), weights and biases likewise."""

    running: Tensor | None
    affine: Tensor | None
    eps: float

    def after(self, first: int) -> "_Norms":
        """Return the norms from number `first` on."""
        running, affine = (None if t is None else t[first:] for t in (self.running, self.affine))
        return _Norms(running, affine, self.eps)

    def apply(self, y: Tensor, i: int) -> Tensor:
        mean, var = (None, None) if self.running is None else self.running[i]
        weight, bias = (None, None) if self.affine is None else self.affine[i]
        return F.batch_norm(y, mean, var, weight, bias, training=self.running is None, eps=self.eps)


def mixed_sum(
    states: list[Tensor],
    weights: Tensor,
    params: list[Tensor],
    running: Tensor | None,
    plan: MixedPlan,
    eps: float,
    affine: Tensor | None = None,
    factors: Tensor | None = None,
) -> Tensor:
    """Return the nodes [N, nodes * C, H', W'] of a plan; arguments as for `fastdarts.ops.operators.mixed_sum`."""
    known = list(states)
    size = states[0].shape[1] // plan.K
    norms = _Norms(running, affine, eps)
    totals: dict[int, Tensor] = {}
    made: list[Tensor] = []
    for node in range(plan.inputs, plan.inputs + plan.nodes):
        for e, edge in enumerate(plan.edges):
            if edge.node != node:
                continue
            for column, c in edge.ops:
                p, n = _offsets(plan, e, column)
                convolutions = params[p : p + param_count(c, edge.stride)]
                x = known[edge.source][:, :size]
                term = weights[e, column] * _op(c, edge.stride, x, convolutions, norms.after(n))
                if factors is not None:
                    term = term * factors[e, :, None, None, None].to(term)
                totals[node] = totals[node] + term if node in totals else term
        own = totals[node] if node in totals else _zeros([x[:, :size] for x in states], weights, plan)
        here = [e for e, edge in enumerate(plan.edges) if edge.node == node] if plan.K > 1 else []
        passing = [passed_by(known[plan.edges[e].source], plan.K, plan.edges[e].stride) for e in here]
        known.append(shuffled(own, passing, weights[here, -1]) if here else own)
        made.append(known[-1])
    return torch.cat(made, dim=1)


def passed_by(state: Tensor, K: int, stride: int) -> Tensor:
    """Return the channels of `state` after the first 1/K, which bypass the ops; at stride 2 max-pooled 2x2."""
    rest = state[:, state.shape[1] // K :]
    return F.max_pool2d(rest, 2, ceil_mode=True) if stride == 2 else rest


def shuffled(own: Tensor, passing: Sequence[Tensor], factors: Tensor) -> Tensor:
    """Return a node of PC-DARTS: concatenate the ops' output and the sum of the bypassing channels, then shuffle.

    The result has K groups of C/K channels; group 0 is `own`. Channel j of group g becomes channel j * K + g.

    Args:
        own: the ops' output, [N, C/K, H, W].
        passing: the bypassing channels of each edge, [N, C - C/K, H, W] each.
        factors: the weight of each tensor of `passing`, [len(passing)].
    Returns:
        [N, C, H, W], channels-last.
    """
    terms = [f * x for f, x in zip(factors.to(own.dtype), passing, strict=True)]
    groups = torch.cat([own, sum(terms[1:], terms[0])], dim=1).permute(0, 2, 3, 1).unflatten(3, (-1, own.shape[1]))
    return groups.transpose(3, 4).flatten(3).permute(0, 3, 1, 2)


def _zeros(states: list[Tensor], weights: Tensor, plan: MixedPlan) -> Tensor:
    """Return a node without ops: zeros that depend on the op weights, so that these get zero gradients."""
    edge = next(edge for edge in plan.edges if edge.source < plan.inputs)
    x = states[edge.source]
    return 0 * weights.sum() * torch.zeros_like(x[:, :, :: edge.stride, :: edge.stride])


def project(
    x: Tensor, params: list[Tensor], running: Tensor | None, eps: float, affine: Tensor | None = None
) -> Tensor:
    """Preprocess x: [N, C_in, H, W] -> [N, C, H', W']; arguments as for `fastdarts.ops.operators.project`."""
    x = F.relu(x)
    y = F.conv2d(x, params[0]) if len(params) == 1 else factorized_reduce(x, params)
    return _Norms(running, affine, eps).apply(y, 0)


def factorized_reduce(x: Tensor, params: list[Tensor]) -> Tensor:
    """Apply two 1x1 convolutions of stride 2, the second shifted one pixel down and right; zero-pad odd sides."""
    x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    return torch.cat([F.conv2d(x, params[0], stride=2), F.conv2d(x[:, :, 1:, 1:], params[1], stride=2)], dim=1)


def _offsets(plan: MixedPlan, edge_index: int, column: int) -> tuple[int, int]:
    """Return the index of an op's first parameter and of its first batch norm."""
    param = norm = 0
    for e, edge in enumerate(plan.edges):
        for col, c in edge.ops:
            if (e, col) == (edge_index, column):
                return param, norm
            param += param_count(c, edge.stride)
            norm += norm_count(c, edge.stride)
    raise KeyError((edge_index, column))


def _op(c: Candidate, stride: int, x: Tensor, params: list[Tensor], norms: _Norms) -> Tensor:
    def stage(y: Tensor, depthwise: Tensor, pointwise: Tensor, s: int, i: int) -> Tensor:
        C = y.shape[1]
        y = F.conv2d(F.relu(y), depthwise.view(C, 1, c.kernel, c.kernel), None, s, c.padding, c.dilation, C)
        return norms.apply(F.conv2d(y, pointwise.view(C, C, 1, 1)), i)

    match c.kind:
        case "max_pool" | "avg_pool":
            if c.kind == "max_pool":
                y = F.max_pool2d(x, c.kernel, stride, c.padding)
            else:
                y = F.avg_pool2d(x, c.kernel, stride, c.padding, count_include_pad=False)
            return norms.apply(y, 0) if c.norm else y
        case "pointwise":
            C = x.shape[1]
            return norms.apply(F.conv2d(F.relu(x), params[0].view(C, C, 1, 1), None, stride), 0)
        case "skip" if stride == 1:
            return x
        case "skip":
            return norms.apply(factorized_reduce(F.relu(x), params), 0)
        case "dil_conv":
            return stage(x, params[0], params[1], stride, 0)
        case "sep_conv":
            return stage(stage(x, params[0], params[1], stride, 0), params[2], params[3], 1, 1)
        case _:
            raise ValueError(f"no formula for {c.name}")
