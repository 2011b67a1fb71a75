"""Define the operators: schemas, fake implementations and autograd.

The CPU kernels are in csrc/mixed_sum.cpp and csrc/project.cpp, the GPU kernels in kernels/.

`fastdarts::mixed_sum` computes every node of a plan (`fastdarts.ops.plan`): a whole cell, one node of it, or the single
edge of a `MixedOp`. Op weights are inputs; the operators do not depend on the relaxation that computed them.
`fastdarts::project` preprocesses a cell's input.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastdarts.ops import extension, functional
from fastdarts.ops.gpu import TRITON, in_module
from fastdarts.ops.plan import MixedPlan, decode, norm_count, param_count, param_size

_library = torch.library.Library("fastdarts", "FRAGMENT")
_library.define(
    "mixed_sum(Tensor[] states, Tensor weights, Tensor[] params, Tensor? running, int[] plan, float eps, "
    "Tensor? affine=None, Tensor? factors=None, bool recompute=False) -> (Tensor out, Tensor saved, Tensor stats)"
)
_library.define(
    "project(Tensor x, Tensor[] params, Tensor? running, float eps, Tensor? affine=None) "
    "-> (Tensor out, Tensor saved, Tensor stats)"
)
_library.define(
    "project_backward(Tensor grad_out, Tensor x, Tensor[] params, Tensor saved, Tensor stats, bool training, "
    "float eps, bool need_x, bool need_params, Tensor? affine=None) -> (Tensor x, Tensor[] params, Tensor affine)"
)
_library.define(
    "mixed_sum_backward(Tensor grad_out, Tensor[] states, Tensor weights, Tensor[] params, Tensor out, Tensor saved, "
    "Tensor stats, int[] plan, bool training, float eps, int[] need_states, bool need_params, "
    "bool need_weights=True, Tensor? affine=None, Tensor? factors=None, bool recompute=False) "
    "-> (Tensor weights, Tensor[] states, Tensor[] params, Tensor affine)"
)

CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
"""Dtypes of the tensors that the CPU kernels take; bfloat16 is computed in float32."""

GPU_DTYPES = (*CPU_DTYPES, torch.float16)
"""Dtypes of the tensors that the GPU kernels (`fastdarts.kernels`) take; 16-bit types are computed in float32."""

if TRITON:
    for _operator in ("mixed_sum", "project"):
        for _name in (_operator, f"{_operator}_backward"):
            _library.impl(_name, in_module(_operator, _name), "CUDA")


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return the reason why no kernel takes tensors of this device and dtype, or None if one does."""
    if device.type == "cpu":
        if extension.UNAVAILABLE is not None:
            return extension.UNAVAILABLE
        if dtype not in CPU_DTYPES:
            return f"the CPU kernels take {', '.join(str(d).removeprefix('torch.') for d in CPU_DTYPES)}, not {dtype}"
        return None
    if device.type == "cuda":
        if not TRITON:
            return "Triton is not installed"
        if dtype not in GPU_DTYPES:
            return f"the GPU kernels take {', '.join(str(d).removeprefix('torch.') for d in GPU_DTYPES)}, not {dtype}"
        return None
    return f"there are no kernels for {device.type}"


def mixed_sum(
    states: list[Tensor],
    weights: Tensor,
    params: list[Tensor],
    running: Tensor | None,
    plan: MixedPlan,
    eps: float = 1e-5,
    affine: Tensor | None = None,
    factors: Tensor | None = None,
    recompute: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute all nodes of a plan: s_j = sum over edges e = (i, j) and ops o of factors[e] * weights[e, o] * op_o(s_i).

    Source: Liu et al., DARTS, equation 2; the factors are drop path's (Larsson et al., FractalNet, section 3).

    Args:
        states: the plan's inputs, [N, C, H, W] each, in any layout; float32, float64, bfloat16, on a GPU also float16.
        weights: op weights [edges, ops]; with partial channels (`plan.K` > 1) [edges, ops + 1].
        params: convolution weights in plan order, those of an op in the order its reference module registers them.
        running: None to normalise by the batch, or the running statistics [norms, 2 (mean, variance), C / plan.K].
        plan: the edges, and the ops that run on each.
        eps: eps of the batch norms.
        affine: the batch norms' weights and biases [norms, 2 (weight, bias), C / plan.K]; None for norms without.
        factors: a factor for each edge and sample [edges, N], which gets no gradient; None for 1. Batch statistics are
            those of all samples. Not together with partial channels.
        recompute: on a CPU, compute separable convolutions once more in the backward in the place of keeping what they
            made.
    Returns:
        The nodes, [N, nodes * C, H', W'] channels-last in the states' dtype, and the statistics [norms, 2, C / plan.K]
        that were used: means and biased variances.
    Raises:
        TypeError: dtypes or devices differ, or have no kernel.
        ValueError: wrong shapes.
    """
    _check(states, params, weights=weights, running=running, affine=affine, factors=factors)
    if torch.compiler.is_compiling():
        arguments = (states, weights, params, running, plan.encoded, eps, affine, factors, recompute)
        out, _, stats = torch.ops.fastdarts.mixed_sum(*arguments)
    else:
        settings = (len(states), running, plan.encoded, eps, factors, recompute)
        out, _, stats = _MixedSum.apply(weights, *states, *params, affine, settings)
    return out, stats


def project(
    x: Tensor, params: list[Tensor], running: Tensor | None, eps: float = 1e-5, affine: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Preprocess a cell's input: relu, pointwise convolution, batch norm.

    Args:
        x: [N, C_in, H, W], in any layout; float32, float64, bfloat16, on a GPU also float16.
        params: one weight [C, C_in, 1, 1]; or the two [C / 2, C_in, 1, 1] of a factorised reduction, which halves
            H and W (rounded up; see `fastdarts.primitives.modules.FactorizedReduce`).
        running: None to normalise by the batch, or the running statistics [1, 2 (mean, variance), C].
        eps: eps of the batch norm.
        affine: the batch norm's weight and bias [1, 2 (weight, bias), C]; None for one without.
    Returns:
        [N, C, H', W'] channels-last in x's dtype, and the statistics [1, 2, C] that were used: mean and biased
        variance.
    Raises:
        TypeError: dtypes or devices differ, or have no kernel.
        ValueError: wrong shapes.
    """
    _check([x], params, running=running, affine=affine)
    if torch.compiler.is_compiling():
        out, _, stats = torch.ops.fastdarts.project(x, params, running, eps, affine)
    else:
        out, _, stats = _Project.apply(x, *params, affine, (running, eps))
    return out, stats


def _check(states: list[Tensor], params: list[Tensor], **others: Tensor | None) -> None:
    """Validate dtypes, devices and the shape of `running`; the operators check all other shapes."""
    (dtype, device), *more = {(state.dtype, state.device): None for state in states}
    if more:
        raise TypeError(f"states must share dtype and device; got {_on(dtype, device)} and {_on(*more[0])}")
    reason = unavailable(device, dtype)
    if reason is not None:
        raise TypeError(f"no kernel for {_on(dtype, device)}: {reason}")
    compute = _compute_dtype(dtype)
    wrong = {(param.dtype, param.device) for param in params} - {(dtype, device), (compute, device)}
    if wrong:
        raise TypeError(f"params must be {_on(compute, device)} to go with x of {dtype}; got {_on(*wrong.pop())}")
    for name, tensor in others.items():
        if tensor is not None and (tensor.device != device or not tensor.is_floating_point()):
            raise TypeError(f"{name} must be floating-point on {device}; got {_on(tensor.dtype, tensor.device)}")
    running = others["running"]
    if running is not None and (running.dim() != 3 or running.shape[1] != 2):
        raise ValueError(f"running must be [norms, 2 (mean, variance), C]; got {tuple(running.shape)}")


def _on(dtype: torch.dtype, device: torch.device) -> str:
    return f"{dtype} on {device}"


def _compute_dtype(storage: torch.dtype) -> torch.dtype:
    return torch.float64 if storage == torch.float64 else torch.float32


def _line(storage: torch.dtype) -> int:
    """Return the number of elements of the compute dtype in a cache line."""
    return 64 // _compute_dtype(storage).itemsize


def _padded_channels(storage: torch.dtype, C: int) -> int:
    """Return the channels of a saved tensor: C rounded up to whole cache lines."""
    return -(-C // _line(storage)) * _line(storage)


def _images_in_line(x: Tensor, C: int) -> int:
    """Return the number of images that share a cache line of padded channels.

    On CPUs it is the largest divisor of N that fits (csrc/fold.h), on other devices 1.
    """
    N = x.shape[0]
    most = max(_line(x.dtype) // C, 1) if x.device.type == "cpu" else 1
    return max(images for images in range(1, most + 1) if N % images == 0)


def _empty_image(x: Tensor, C: int, H: int, W: int) -> Tensor:
    return x.new_empty((x.shape[0], H, W, C)).permute(0, 3, 1, 2)


def _saved_tensors(plan: MixedPlan, recompute: bool) -> int:
    """Count the batch-norm inputs saved for the backward: one per batch norm, but equal pools of a state share one."""
    pools = {(edge.source, edge.stride, c.kind) for edge in plan.edges for _, c in edge.ops if c.is_pool}
    ops = [(c, edge.stride) for edge in plan.edges for _, c in edge.ops if not c.is_pool]
    return len(pools) + sum(norm_count(c, stride) for c, stride in ops if not (recompute and c.kind == "sep_conv"))


MOST_ELEMENTS = 2**51
"""Largest tensor that an operator makes; csrc/plan.h has the same limit."""


def _check_call(name: str, like: Tensor, eps: float, **others: Tensor | list[Tensor] | None) -> None:
    """Raise TypeError or ValueError unless the tensors of a direct call are on one device and eps fits."""
    if not 0 <= eps < float("inf"):
        raise ValueError(f"{name}: eps must be a finite number, 0 or more; got {eps}")
    for argument, given in others.items():
        for t in given if isinstance(given, (list, tuple)) else [given]:
            if t is not None and (t.device != like.device or not t.is_floating_point()):
                raise TypeError(
                    f"{name}: {argument} must be floating-point on {like.device}; got {_on(t.dtype, t.device)}"
                )


def _check_sizes(name: str, argument: str, got: Sequence[int], want: Sequence[int]) -> None:
    if tuple(got) != tuple(want):
        raise ValueError(f"{name}: {argument} must be {list(want)}; got {list(got)}")


def _check_affine(name: str, x: Tensor, affine: Tensor | None, norms: int, C: int) -> None:
    if affine is not None:
        _check_call(name, x, 0, affine=affine)
        _check_sizes(name, "affine", affine.shape, (norms, 2, C))


def _check_factors(x: Tensor, factors: Tensor | None, plan: MixedPlan) -> None:
    if factors is None:
        return
    _check_call("mixed_sum", x, 0, factors=factors)
    _check_sizes("mixed_sum", "factors", factors.shape, (len(plan.edges), x.shape[0]))
    if plan.K > 1:
        raise ValueError(f"mixed_sum: factors and partial channels do not go together; got K = {plan.K}")


def _check_most(name: str, sizes: Sequence[int]) -> None:
    elements = math.prod(sizes)
    if isinstance(elements, int) and elements > MOST_ELEMENTS:  # not a size that is only a symbol
        raise ValueError(f"{name} would have too many elements")


def _read_call(
    code: list[int], states: list[Tensor], weights: Tensor, params: list[Tensor], eps: float
) -> tuple[MixedPlan, int, int, int, int]:
    """Return the plan of a direct call, its batch norms and the ops' C, H, W; errors as csrc/mixed_sum.cpp has them."""
    plan, name = decode(code), "mixed_sum"
    if len(states) != plan.inputs:
        raise ValueError(f"{name}: plan has {plan.inputs} inputs; got {len(states)}")
    x = states[0]
    _check_call(name, x, eps, states=states, weights=weights, params=params)
    if x.dim() != 4:
        raise ValueError(f"{name}: states must be [N, C, H, W]; got {list(x.shape)}")
    if x.shape[1] % plan.K != 0:
        raise ValueError(f"{name}: C must be a multiple of K = {plan.K}; got {x.shape[1]}")
    for t in states:
        if t.dim() != 4 or t.shape[:2] != x.shape[:2] or t.dtype != x.dtype or t.numel() == 0:
            raise ValueError(f"{name}: states must share N, C and dtype and not be empty; got {list(t.shape)}")
    C = x.shape[1] // plan.K
    ends = [[-(-s // e.stride) for s in states[e.source].shape[2:]] for e in plan.edges if e.source < plan.inputs]
    if not ends:
        raise ValueError(f"{name}: no edge leaves an input")
    H, W = ends[0]
    if any(end != [H, W] for end in ends):
        raise ValueError(f"{name}: the edges from the inputs end in different sizes")
    _check_most(f"{name}: out", (x.shape[0], plan.nodes, plan.K, C, H, W))
    columns = weights.shape[1] - (plan.K > 1) if weights.dim() == 2 else -1
    if columns < 0 or len(weights) != len(plan.edges):
        raise ValueError(f"{name}: weights must be [edges, ops]; got {list(weights.shape)}")
    needed = sum(param_count(c, edge.stride) for edge in plan.edges for _, c in edge.ops)
    if len(params) != needed:
        raise ValueError(f"{name}: plan needs {needed} parameters; got {len(params)}")
    param = norms = 0
    for edge in plan.edges:
        for column, c in edge.ops:
            if column >= columns:
                raise ValueError(f"{name}: no column {column} in weights, which have {columns} for the ops")
            if c.kind == "skip" and edge.stride == 2 and C % 2 != 0:
                raise ValueError(f"{name}: a factorised reduction needs an even number of channels; got {C}")
            for i in range(param_count(c, edge.stride)):
                size = param_size(c, i, C)
                if params[param].numel() != size:
                    raise ValueError(f"{name}: parameter {param} has {params[param].numel()} elements, not {size}")
                param += 1
            norms += norm_count(c, edge.stride)
    return plan, norms, C, H, W


@torch.library.register_fake("fastdarts::mixed_sum", lib=_library)
def _(
    states: list[Tensor],
    weights: Tensor,
    params: list[Tensor],
    running: Tensor | None,
    plan: list[int],
    eps: float,
    affine: Tensor | None = None,
    factors: Tensor | None = None,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    decoded, norms, C, H, W = _read_call(plan, states, weights, params, eps)
    x, N = states[0], states[0].shape[0]
    _check_affine("mixed_sum", x, affine, norms, C)
    _check_factors(x, factors, decoded)
    if running is not None:
        _check_call("mixed_sum", x, eps, running=running)
        _check_sizes("mixed_sum", "running", running.shape, (norms, 2, C))
    images = _images_in_line(x, C)
    saved_sizes = (_saved_tensors(decoded, recompute), N // images, H, W, _padded_channels(x.dtype, C * images))
    _check_most("mixed_sum: saved", saved_sizes)
    saved = x.new_empty((math.prod(saved_sizes),))
    out = _empty_image(x, decoded.nodes * decoded.K * C, H, W)
    return out, saved, x.new_empty((norms, 2, C), dtype=_compute_dtype(x.dtype))


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
    need_weights: bool = True,
    affine: Tensor | None = None,
    factors: Tensor | None = None,
    recompute: bool = False,
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    name = "mixed_sum_backward"
    decoded, norms, C, H, W = _read_call(plan, states, weights, params, eps)
    _check_call(name, states[0], eps, grad_out=grad_out, out=out, saved=saved, stats=stats)
    for argument, given in (("out", out), ("grad_out", grad_out)):
        _check_sizes(name, argument, given.shape, (states[0].shape[0], decoded.nodes * decoded.K * C, H, W))
    _check_sizes(name, "stats", stats.shape, (norms, 2, C))
    if len(need_states) != len(states):
        raise ValueError(f"{name}: need_states must have {len(states)} numbers; got {len(need_states)}")
    _check_affine("mixed_sum", states[0], affine, norms, C)
    _check_factors(states[0], factors, decoded)
    return (
        weights.new_empty(weights.shape),
        [
            _empty_image(x, *x.shape[1:]) if need else x.new_empty((0,))
            for x, need in zip(states, need_states, strict=True)
        ],
        [_like_param(p, need_params) for p in params],
        _like_affine(affine, need_params, stats),
    )


def _read_project(x: Tensor, params: list[Tensor], eps: float) -> tuple[int, int, int, int]:
    """Return the sizes of a projection's output; errors as csrc/project.cpp has them."""
    _check_call("project", x, eps, x=x, params=params)
    if x.dim() != 4 or x.numel() == 0:
        raise ValueError(f"project: x must be a non-empty [N, C, H, W]; got {list(x.shape)}")
    if len(params) not in (1, 2):
        raise ValueError(f"project: one weight, or two for a factorised reduction; got {len(params)}")
    for p in params:
        if p.shape != params[0].shape or p.dim() != 4 or p.shape[1:] != (x.shape[1], 1, 1) or p.shape[0] == 0:
            raise ValueError(f"project: weights must be [C_out, {x.shape[1]}, 1, 1]; got {list(p.shape)}")
    stride = len(params)
    H, W = (-(-size // stride) for size in x.shape[2:])
    return x.shape[0], stride * params[0].shape[0], H, W


@torch.library.register_fake("fastdarts::project", lib=_library)
def _(
    x: Tensor, params: list[Tensor], running: Tensor | None, eps: float, affine: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    N, C, H, W = _read_project(x, params, eps)
    _check_affine("project", x, affine, 1, C)
    if running is not None:
        _check_call("project", x, eps, running=running)
        _check_sizes("project", "running", running.shape, (1, 2, C))
    _check_most("project: saved", (N, H, W, _padded_channels(x.dtype, C)))
    saved = x.new_empty((N * H * W * _padded_channels(x.dtype, C),))
    return _empty_image(x, C, H, W), saved, x.new_empty((1, 2, C), dtype=_compute_dtype(x.dtype))


@torch.library.register_fake("fastdarts::project_backward", lib=_library)
def _(
    grad_out: Tensor,
    x: Tensor,
    params: list[Tensor],
    saved: Tensor,
    stats: Tensor,
    training: bool,
    eps: float,
    need_x: bool,
    need_params: bool,
    affine: Tensor | None = None,
) -> tuple[Tensor, list[Tensor], Tensor]:
    name = "project_backward"
    N, C, H, W = _read_project(x, params, eps)
    _check_call(name, x, eps, grad_out=grad_out, saved=saved, stats=stats)
    _check_sizes(name, "grad_out", grad_out.shape, (N, C, H, W))
    _check_sizes(name, "stats", stats.shape, (1, 2, C))
    _check_affine("project", x, affine, 1, C)
    dx = _empty_image(x, *x.shape[1:]) if need_x else x.new_empty((0,))
    return dx, [_like_param(p, need_params) for p in params], _like_affine(affine, need_params, stats)


def _like_param(p: Tensor, needed: bool) -> Tensor:
    return torch.empty_like(p, memory_format=torch.contiguous_format) if needed else p.new_empty((0,))


def _like_affine(affine: Tensor | None, needed: bool, stats: Tensor) -> Tensor:
    return stats.new_empty((0,)) if affine is None or not needed else _like_param(affine, True)


@lru_cache(maxsize=1024)
def _reads_nodes(plan: tuple[int, ...]) -> bool:
    decoded = decode(list(plan))
    return any(edge.source >= decoded.inputs for edge in decoded.edges)


def _with_defaults(inputs: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """Return `count` inputs: torch leaves out the last ones where they are the schema's defaults, None or False."""
    return (*inputs, *[None] * (count - len(inputs)))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    states, weights, params, running, plan, eps, affine, factors, recompute = _with_defaults(inputs, 9)
    out, saved, stats = output
    ctx.mark_non_differentiable(saved, stats)
    ctx.set_materialize_grads(False)
    # If no edge starts at a node, the backward needs only the output's shape; do not keep its memory alive.
    nodes = out if _reads_nodes(tuple(plan)) else out.new_empty(()).expand(out.shape)
    ctx.save_for_backward(weights, nodes, saved, stats, affine, factors, *states, *params)
    ctx.inputs, ctx.plan, ctx.eps, ctx.training, ctx.recompute = (
        len(states),
        plan,
        eps,
        running is None,
        bool(recompute),
    )


def _backward(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Any, ...]:
    need_states, need_weights, need_params, _, _, _, need_affine, _, _ = _with_defaults(ctx.needs_input_grad, 9)
    gradients = _gradients(ctx, grad_out, need_states, need_weights, need_params, bool(need_affine))
    states, weights, params, affine = gradients
    return (states, weights, params, None, None, None, affine, None, None)[: len(ctx.needs_input_grad)]


def _gradients(
    ctx: Any,
    grad_out: Tensor | None,
    need_states: Sequence[bool],
    need_weights: bool,
    need_params: Sequence[bool],
    need_affine: bool,
) -> tuple[list[Tensor | None], Tensor | None, list[Tensor | None], Tensor | None]:
    """Return the gradients of states, op weights, params and affine, None for those that are not needed."""
    weights, out, saved, stats, affine, factors, *rest = ctx.saved_tensors
    states, params = rest[: ctx.inputs], rest[ctx.inputs :]
    if grad_out is None:
        return [None] * len(states), None, [None] * len(params), None
    if torch.is_grad_enabled():  # create_graph=True: the gradients must be differentiable
        d_weights, d_states, d_params, d_affine = _differentiable_backward(ctx, grad_out)
    else:
        d_weights, d_states, d_params, d_affine = torch.ops.fastdarts.mixed_sum_backward(
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
            any(need_params) or need_affine,
            need_weights,
            affine,
            factors,
            ctx.recompute,
        )
    return (
        [d if need else None for d, need in zip(d_states, need_states, strict=True)],
        d_weights if need_weights else None,
        [d if need else None for d, need in zip(d_params, need_params, strict=True)],
        d_affine if need_affine else None,
    )


def _differentiable_backward(ctx: Any, grad_out: Tensor) -> tuple[Any, list[Any], list[Any], Any]:
    """Compute the gradients of op weights, states, params and affine differentiably, by plain torch functions."""
    weights, _, _, stats, affine, factors, *rest = ctx.saved_tensors
    compute = stats.dtype  # compute as the kernels do, in a dtype that may be wider than that of the states
    weights, affine, *rest = inputs = _aliases([weights, affine, *rest])
    out = functional.mixed_sum(
        [x.to(compute) for x in rest[: ctx.inputs]],
        weights.to(compute),
        [p.to(compute) for p in rest[ctx.inputs :]],
        None if ctx.training else stats,
        decode(ctx.plan),
        ctx.eps,
        None if affine is None else affine.to(compute),
        factors,
    )
    d_weights, d_affine, *grads = _grads(out, inputs, grad_out)
    return d_weights, grads[: ctx.inputs], grads[ctx.inputs :], d_affine


def _aliases(inputs: list[Any]) -> list[Any]:
    """Return aliases of an operator's inputs to differentiate by.

    A state may depend on the same weights through other paths, which must not enter the operator's gradient.
    """
    return [t.view_as(t) if t is not None and t.requires_grad else t for t in inputs]


def _grads(out: Tensor, inputs: list[Tensor | None], grad_out: Tensor) -> list[Tensor | None]:
    """Return grad_out * d out / d inputs, differentiable; None for inputs that need no gradient."""
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    if out.requires_grad:
        grads = torch.autograd.grad(out, wanted, grad_out.to(out.dtype), create_graph=True, materialize_grads=True)
    else:  # out depends on none of the inputs that require gradients
        grads = tuple(map(torch.zeros_like, wanted))
    found = iter(grads)
    return [next(found) if t is not None and t.requires_grad else None for t in inputs]


torch.library.register_autograd("fastdarts::mixed_sum", _backward, setup_context=_setup_context, lib=_library)


class _MixedSum(torch.autograd.Function):
    """Differentiate `mixed_sum` in eager calls.

    The autograd of `register_autograd` flattens lists as pytrees, which takes milliseconds for a network's weights.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        *tensors, affine, (inputs, running, plan, eps, factors, recompute) = rest
        arguments = (tensors[:inputs], weights, tensors[inputs:], running, plan, eps, affine, factors, recompute)
        output = torch.ops.fastdarts.mixed_sum.default(*arguments)
        _setup_context(ctx, arguments, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        need_weights, *needs, need_affine = ctx.needs_input_grad[:-1]
        need_states, need_params = needs[: ctx.inputs], needs[ctx.inputs :]
        states, weights, params, affine = _gradients(ctx, grad_out, need_states, need_weights, need_params, need_affine)
        return weights, *states, *params, affine, None


def _setup_project(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, params, running, eps, affine = _with_defaults(inputs, 5)
    _, saved, stats = output
    ctx.mark_non_differentiable(saved, stats)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(saved, stats, x, affine, *params)
    ctx.eps, ctx.training = eps, running is None


def _project_backward(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Any, ...]:
    need_x, need_params, _, _, need_affine = _with_defaults(ctx.needs_input_grad, 5)
    dx, d_params, d_affine = _project_gradients(ctx, grad_out, need_x, need_params, bool(need_affine))
    return (dx, d_params, None, None, d_affine)[: len(ctx.needs_input_grad)]


def _project_gradients(
    ctx: Any, grad_out: Tensor | None, need_x: bool, need_params: Sequence[bool], need_affine: bool
) -> tuple[Tensor | None, list[Tensor | None], Tensor | None]:
    """Return the gradients of x, params and affine, None for those that are not needed."""
    saved, stats, x, affine, *params = ctx.saved_tensors
    if grad_out is None:
        return None, [None] * len(params), None
    if torch.is_grad_enabled():
        compute = stats.dtype
        running = None if ctx.training else stats
        x, affine, *params = inputs = _aliases([x, affine, *params])
        learned = None if affine is None else affine.to(compute)
        out = functional.project(x.to(compute), [p.to(compute) for p in params], running, ctx.eps, learned)
        dx, d_affine, *d_params = _grads(out, inputs, grad_out)
    else:
        needs = (need_x, any(need_params) or need_affine)
        dx, d_params, d_affine = torch.ops.fastdarts.project_backward(
            grad_out, x, params, saved, stats, ctx.training, ctx.eps, *needs, affine
        )
    return (
        dx if need_x else None,
        [d if need else None for d, need in zip(d_params, need_params, strict=True)],
        d_affine if need_affine else None,
    )


torch.library.register_autograd("fastdarts::project", _project_backward, setup_context=_setup_project, lib=_library)


class _Project(torch.autograd.Function):
    """Differentiate `project` in eager calls; see `_MixedSum`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        *params, affine, (running, eps) = rest
        arguments = (x, params, running, eps, affine)
        output = torch.ops.fastdarts.project.default(*arguments)
        _setup_project(ctx, arguments, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        need_x, *need_params, need_affine = ctx.needs_input_grad[:-1]
        dx, d_params, d_affine = _project_gradients(ctx, grad_out, need_x, need_params, need_affine)
        return dx, *d_params, d_affine, None
