"""The operators: schema, fakes and autograd. CPU kernels stand in csrc/mixed_sum.cpp.

`fastdarts::mixed_sum` computes every node of a plan, where a plan (`fastdarts.plan`) is a whole cell, one node of it, or the one
edge of a `MixedOp`. Op weights are given numbers, whatever relaxation made them.
"""

from typing import Any

import torch
from torch import Tensor

from fastdarts import functional
from fastdarts.plan import MixedPlan, decode, norm_count

try:
    from fastdarts import _C
except ImportError:  # built without a compiler: the plain modules serve
    _C = None  # type: ignore[assignment]

_library = torch.library.Library("fastdarts", "FRAGMENT")
_library.define(
    "mixed_sum(Tensor[] states, Tensor weights, Tensor[] params, Tensor? running, int[] plan, float eps) "
    "-> (Tensor out, Tensor saved, Tensor stats)"
)
_library.define(
    "mixed_sum_backward(Tensor grad_out, Tensor[] states, Tensor weights, Tensor[] params, Tensor out, Tensor saved, "
    "Tensor stats, int[] plan, bool training, float eps, int[] need_states, bool need_params) "
    "-> (Tensor weights, Tensor[] states, Tensor[] params)"
)

CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
"""What the CPU kernels store; bfloat16 is computed in float32."""


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why no kernel can serve tensors like these, or None."""
    if device.type == "cpu":
        if _C is None:
            return "fastdarts._C is not built in this installation"
        if dtype not in CPU_DTYPES:
            return f"the CPU kernels take {', '.join(str(d).removeprefix('torch.') for d in CPU_DTYPES)}, not {dtype}"
        return None
    return f"there are no kernels for {device.type}"


def mixed_sum(
    states: list[Tensor], weights: Tensor, params: list[Tensor], running: Tensor | None, plan: MixedPlan, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """All nodes of a plan: s_j = sum over edges (i, j) and ops o of weights[edge, o] * op_o(s_i) (DARTS, equation 2).

    Args:
        states: the plan's inputs, [N, C, H, W] each, any layout (channels-last costs no copy); float32, float64 or bfloat16.
        weights: [edges, ops].
        params: the convolutions' weights in plan order, each op's as its reference module registers them.
        running: None to normalise by the batch, or the running statistics [norms, 2 (mean, variance), C].
        plan: which ops run on which edge.
        eps: of the batch norms.
    Returns:
        The nodes, [N, nodes * C, H', W'] channels-last in the states' dtype, and the statistics [norms, 2, C] used:
        means and biased variances.
    """
    out, _, stats = torch.ops.fastdarts.mixed_sum(states, weights, params, running, plan.encoded, eps)
    return out, stats


def _saved_tensors(plan: MixedPlan) -> int:
    """Batch-norm inputs kept for the backward: one a batch norm, but a state's pools only once."""
    pools = {(edge.source, edge.stride, c) for edge in plan.edges for _, c in edge.ops if c.is_pool}
    return len(pools) + sum(norm_count(c, edge.stride) for edge in plan.edges for _, c in edge.ops if not c.is_pool)


@torch.library.register_fake("fastdarts::mixed_sum", lib=_library)
def _(
    states: list[Tensor], weights: Tensor, params: list[Tensor], running: Tensor | None, plan: list[int], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    decoded, x = decode(plan), states[0]
    source = next(edge for edge in decoded.edges if edge.source < decoded.inputs)
    N, C = x.shape[:2]
    H, W = (-(-size // source.stride) for size in states[source.source].shape[2:])
    out = x.new_empty((N, decoded.nodes * C, H, W)).contiguous(memory_format=torch.channels_last)
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    line = 64 // compute.itemsize
    saved = x.new_empty((_saved_tensors(decoded) * N * H * W * (-(-C // line) * line),))
    norms = sum(norm_count(c, edge.stride) for edge in decoded.edges for _, c in edge.ops)
    return out, saved, x.new_empty((norms, 2, C), dtype=compute)


@torch.library.register_fake("fastdarts::mixed_sum_backward", lib=_library)
def _(
    grad_out: Tensor,
    states: list[Tensor],
    weights: Tensor,
    params: list[Tensor],
    out: Tensor,
    saved: Tensor,
    stats: Tensor,
    plan: list[int],
    training: bool,
    eps: float,
    need_states: list[int],
    need_params: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    def like(t: Tensor, needed: bool) -> Tensor:
        return torch.empty_like(t) if needed else t.new_empty((0,))

    grads = [like(x, bool(need)) for x, need in zip(states, need_states, strict=True)]
    return (
        weights.new_empty(weights.shape),
        [g.contiguous(memory_format=torch.channels_last) if g.dim() == 4 else g for g in grads],
        [like(p.contiguous(), need_params) for p in params],
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    states, weights, params, running, plan, eps = inputs
    out, saved, stats = output
    ctx.mark_non_differentiable(saved, stats)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(weights, out, saved, stats, *states, *params)
    ctx.inputs, ctx.plan, ctx.eps, ctx.training = len(states), plan, eps, running is None


def _backward(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Any, ...]:
    weights, out, saved, stats, *rest = ctx.saved_tensors
    states, params = rest[: ctx.inputs], rest[ctx.inputs :]
    need_states, need_weights, need_params, *_rest = ctx.needs_input_grad
    if grad_out is None:
        return [None] * len(states), None, [None] * len(params), None, None, None
    if torch.is_grad_enabled():  # somebody wants derivatives of the gradients
        d_weights, d_states, d_params = _differentiable_backward(ctx, grad_out, states, weights, params, stats)
    else:
        d_weights, d_states, d_params = torch.ops.fastdarts.mixed_sum_backward(
            grad_out,
            states,
            weights,
            params,
            out,
            saved,
            stats,
            ctx.plan,
            ctx.training,
            ctx.eps,
            [int(need) for need in need_states],
            any(need_params),
        )
    return (
        [d if need else None for d, need in zip(d_states, need_states, strict=True)],
        d_weights if need_weights else None,
        [d if need else None for d, need in zip(d_params, need_params, strict=True)],
        None,
        None,
        None,
    )


def _differentiable_backward(
    ctx: Any, grad_out: Tensor, states: list[Tensor], weights: Tensor, params: list[Tensor], stats: Tensor
) -> tuple[Any, list[Any], list[Any]]:
    """The gradients as a function torch can differentiate again: through the plain formulas."""
    inputs = [weights, *states, *params]
    wanted = [t for t in inputs if t.requires_grad]
    compute = stats.dtype  # as the kernels: storage may be narrower than arithmetic
    out = functional.mixed_sum(
        [x.to(compute) for x in states],
        weights.to(compute),
        [p.to(compute) for p in params],
        None if ctx.training else stats,
        decode(ctx.plan),
        ctx.eps,
    )
    found = iter(torch.autograd.grad(out, wanted, grad_out.to(compute), create_graph=True, allow_unused=True))
    grads = [next(found) if t.requires_grad else None for t in inputs]
    return grads[0], grads[1 : 1 + len(states)], grads[1 + len(states) :]


torch.library.register_autograd("fastdarts::mixed_sum", _backward, setup_context=_setup_context, lib=_library)
