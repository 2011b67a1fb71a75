"""Cases for the Triton kernels: plans with random numbers, and the plain formulas' results for them."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fastdarts.ops import functional
from fastdarts.ops.plan import MixedPlan, PlannedEdge, edge_ops, norm_count
from fastdarts.primitives.table import PRIMITIVES

EPS = 1e-5
BARE = ("nor_conv_1x1", "bare_max_pool_3x3", "bare_avg_pool_3x3")
EVERY = (*PRIMITIVES, *BARE)


@dataclass
class Case:
    plan: MixedPlan
    states: list[Tensor]
    weights: Tensor
    params: list[Tensor]
    running: Tensor | None
    grad: Tensor  # of the output
    affine: Tensor | None = None
    factors: Tensor | None = None

    def to(self, dtype: torch.dtype, compute: torch.dtype | None = None) -> "Case":
        """Storage in dtype; weights, params and statistics in the type that goes with it."""
        compute = compute or (torch.float64 if dtype == torch.float64 else torch.float32)
        running = None if self.running is None else self.running.to(compute)
        params = [p.to(compute) for p in self.params]
        return Case(
            self.plan,
            [s.to(dtype) for s in self.states],
            self.weights.to(compute),
            params,
            running,
            self.grad.to(dtype),
            *(None if t is None else t.to(compute) for t in (self.affine, self.factors)),
        )

    def on(self, device: torch.device) -> "Case":
        running = None if self.running is None else self.running.to(device)
        states, params = [s.to(device) for s in self.states], [p.to(device) for p in self.params]
        learned = (None if t is None else t.to(device) for t in (self.affine, self.factors))
        return Case(self.plan, states, self.weights.to(device), params, running, self.grad.to(device), *learned)


def make_case(
    primitives: tuple[str, ...] = EVERY,
    inputs: int = 1,
    nodes: int = 1,
    stride: int = 1,
    C: int = 4,
    size: tuple[int, int, int] = (2, 6, 5),
    training: bool = True,
    found: bool = False,
) -> Case:
    """A cell of `nodes` nodes with every edge, in float64 but of numbers that every type can hold to its precision.

    found: as in a found network, with batch norms that learn and factors of edges.
    """
    N, H, W = size
    pairs = [(i, j) for j in range(inputs, inputs + nodes) for i in range(j)]
    plan = MixedPlan(
        inputs, nodes, tuple(PlannedEdge(i, j, stride if i < inputs else 1, edge_ops(primitives)) for i, j in pairs)
    )
    params: list[Tensor] = []
    for edge in plan.edges:
        for _, c in edge.ops:
            if c.kind in ("sep_conv", "dil_conv"):
                for _ in range(2 if c.kind == "sep_conv" else 1):
                    params += [torch.randn(C, 1, c.kernel, c.kernel) / c.kernel, torch.randn(C, C, 1, 1) / C**0.5]
            elif c.kind == "pointwise":
                params.append(torch.randn(C, C, 1, 1) / C**0.5)
            elif c.kind == "skip" and edge.stride == 2:
                params += [torch.randn(C // 2, C, 1, 1) / C**0.5 for _ in range(2)]
    norms = sum(norm_count(c, edge.stride) for edge in plan.edges for _, c in edge.ops)
    running = None if training else torch.stack([0.1 * torch.randn(norms, C), 0.5 + torch.rand(norms, C)], dim=1)
    grad = torch.randn(N, nodes * C, -(-H // stride), -(-W // stride))
    states = [torch.randn(N, C, H, W) for _ in range(inputs)]
    affine = torch.stack([1 + torch.randn(norms, C) / 3, torch.randn(norms, C) / 2], dim=1) if found else None
    factors = torch.tensor([0.0, 0.5, 1.25])[torch.randint(3, (len(plan.edges), N))] if found else None
    weights = torch.randn(len(plan.edges), len(primitives)).softmax(-1)
    return Case(plan, states, weights, params, running, grad, affine, factors)


def plain(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """Output and gradients by the plain formulas, everything in dtype."""
    case = case.to(dtype, dtype)
    learned = [] if case.affine is None else [case.affine]
    inputs = [t.detach().requires_grad_() for t in (*case.states, case.weights, *case.params, *learned)]
    count, last = len(case.states), len(case.states) + 1 + len(case.params)
    states, weights, params = inputs[:count], inputs[count], inputs[count + 1 : last]
    affine = inputs[last] if learned else None
    out = functional.mixed_sum(states, weights, params, case.running, case.plan, EPS, affine, case.factors)
    grads = torch.autograd.grad(out, inputs, case.grad, allow_unused=True, materialize_grads=True)
    named = _named(out.detach(), list(grads[:count]), grads[count], list(grads[count + 1 : last]))
    return named | ({"d_affine": grads[last]} if learned else {})


def fused(case: Case) -> dict[str, Tensor]:
    """The same by the kernels."""
    from fastdarts.kernels.mixed_sum import mixed_sum, mixed_sum_backward

    args = case.states, case.weights, case.params
    training, code = case.running is None, case.plan.encoded
    out, saved, stats = mixed_sum(*args, case.running, code, EPS, case.affine, case.factors)
    needs = ([1] * len(case.states), True, True)
    d_weights, d_states, d_params, d_affine = mixed_sum_backward(
        case.grad, *args, out, saved, stats, code, training, EPS, *needs, case.affine, case.factors
    )
    named = _named(out, d_states, d_weights, d_params)
    return named if case.affine is None else named | {"d_affine": d_affine}


def _named(out: Tensor, states: list[Tensor], weights: Tensor, params: list[Tensor]) -> dict[str, Tensor]:
    named = {"out": out, "d_weights": weights}
    named |= {f"d_state_{i}": t for i, t in enumerate(states)}
    return named | {f"d_param_{i}": t for i, t in enumerate(params)}


Results = dict[str, Tensor]


def assert_no_worse(ours: Results, plain: Results, true: Results, eps: float, moved: Sequence[Results] = ()) -> None:
    """Errors at most twice those of the plain formulas in the same type, plus a few roundings of the largest value.

    moved: what the truth becomes with rounded inputs, which counts as an error of the plain formulas.
    In float64 the plain formulas are the truth: there only roundings of sums in another order are left, of both.
    """
    wrong = []
    for name, t in true.items():
        mine, *others = ((other[name].double() - t).abs().max().item() for other in (ours, plain, *moved))
        theirs = max(others)
        allowed = 2 * theirs + (8 if theirs else 64) * eps * t.abs().max().item()
        if not mine <= allowed:
            wrong.append(f"{name}: {mine:.2e}, plain {theirs:.2e}, allowed {allowed:.2e}")
    if wrong:
        pytest.fail("; ".join(wrong))
