"""The operators themselves: opcheck, derivatives against differences, projections against formulas, wrong arguments."""

import re
from collections.abc import Callable
from typing import Any

import formulas
import pytest
import torch
from criterion import assert_no_worse, assert_no_worse_than_plain, rounded_at_random
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from fastdarts.ops import functional, operators
from fastdarts.ops.plan import MixedPlan, PlannedEdge, decode, edge_ops, norm_count, param_count
from fastdarts.primitives.table import PRIMITIVES
from fastdarts.spaces.darts.genotype import edges_of

ALL_OPS = (*PRIMITIVES, "nor_conv_1x1", "bare_max_pool_3x3", "bare_avg_pool_3x3")
"""Every kind of op that has a kernel."""
CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(
    operators.unavailable(CPU, torch.float32) is not None, reason="needs the extension, which is not built"
)
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
TRAINING = pytest.mark.parametrize("training", [True, False], ids=["batch", "running"])


def one_edge(stride: int, primitives: tuple[str, ...] = ALL_OPS) -> MixedPlan:
    return MixedPlan(1, 1, (PlannedEdge(0, 1, stride, edge_ops(primitives)),))


def reduction_cell(primitives: tuple[str, ...], K: int = 1) -> MixedPlan:
    ends = edges_of(2)
    return MixedPlan(2, 2, tuple(PlannedEdge(s, t, 2 if s < 2 else 1, edge_ops(primitives)) for s, t in ends), K)


def arguments(
    plan: MixedPlan, C: int, size: tuple[int, int], dtype: torch.dtype, training: bool, columns: int = 11, N: int = 2
) -> tuple[list[Tensor], Tensor, list[Tensor], Tensor | None]:
    """states, weights, params, running of a plan."""
    compute = torch.promote_types(dtype, torch.float32)
    states = [torch.randn(N, C, *size).to(dtype) for _ in range(plan.inputs)]
    C //= plan.K
    params: list[Tensor] = []
    for edge in plan.edges:
        for _, c in edge.ops:
            for i in range(param_count(c, edge.stride)):
                if c.kind == "skip":
                    shape = (C // 2, C, 1, 1)
                elif c.kind == "pointwise":
                    shape = (C, C, 1, 1)
                else:
                    shape = (C, C, 1, 1) if i % 2 else (C, 1, c.kernel, c.kernel)
                params.append(torch.randn(shape, dtype=compute) / 2)
    norms = sum(norm_count(c, edge.stride) for edge in plan.edges for _, c in edge.ops)
    running = torch.stack([torch.randn(norms, C), torch.rand(norms, C) + 0.5], dim=1).to(compute)
    weights = torch.randn(len(plan.edges), columns + (plan.K > 1), dtype=compute).softmax(-1)
    return states, weights, params, None if training else running


def learned_norms(plan: MixedPlan, C: int, dtype: torch.dtype, N: int = 2) -> tuple[Tensor, Tensor | None]:
    """affine and, unless channels are partial, factors of a plan: 0 for some samples."""
    compute = torch.promote_types(dtype, torch.float32)
    norms = sum(norm_count(c, edge.stride) for edge in plan.edges for _, c in edge.ops)
    affine = torch.stack([1 + torch.randn(norms, C) / 3, torch.randn(norms, C)], dim=1).to(compute)
    if plan.K > 1:
        return affine, None
    return affine, torch.tensor([0.0, 1.25, 0.5])[torch.randint(3, (len(plan.edges), N))].to(compute)


def learned(tensors: list[Tensor]) -> list[Tensor]:
    return [t.clone().requires_grad_() for t in tensors]


@DTYPES
@TRAINING
@pytest.mark.parametrize(
    "plan",
    [one_edge(1), one_edge(2), reduction_cell(ALL_OPS), reduction_cell(ALL_OPS, K=3)],
    ids=["one", "two", "cell", "partial"],
)
def test_opcheck_mixed_sum(plan: MixedPlan, training: bool, dtype: torch.dtype) -> None:
    states, weights, params, running = arguments(plan, 6, (5, 4), dtype, training)
    affine, factors = learned_norms(plan, 6 // plan.K, dtype)
    for more in ((), (affine.requires_grad_(), factors), (None, None, True)):
        call = (learned(states), weights.requires_grad_(), learned(params), running, plan.encoded, 1e-5, *more)
        torch.library.opcheck(torch.ops.fastdarts.mixed_sum.default, call, test_utils=CHECKS)
        with torch.no_grad():
            out, saved, stats = torch.ops.fastdarts.mixed_sum(*call)
            for need, need_params in (([1] * len(states), True), ([1] + [0] * (len(states) - 1), False)):
                back = (torch.randn_like(out), states, weights.detach(), params, out, saved, stats, plan.encoded)
                rest = (
                    training,
                    1e-5,
                    need,
                    need_params,
                    need_params,
                    *(t.detach() if isinstance(t, Tensor) else t for t in more),
                )
                torch.library.opcheck(torch.ops.fastdarts.mixed_sum_backward.default, (*back, *rest), test_utils=CHECKS)


CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


def test_opcheck_compiled() -> None:
    """opcheck's slowest part, once for each operator: traced, with static and dynamic shapes."""
    plan = one_edge(2)
    states, weights, params, _ = arguments(plan, 4, (5, 4), torch.float32, True)
    call = (learned(states), weights.requires_grad_(), learned(params), None, plan.encoded, 1e-5)
    traced = ("test_aot_dispatch_static", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.fastdarts.mixed_sum.default, call, test_utils=traced)
    x, w = torch.randn(2, 3, 5, 4, requires_grad=True), torch.randn(4, 3, 1, 1, requires_grad=True)
    torch.library.opcheck(torch.ops.fastdarts.project.default, (x, [w], None, 1e-5), test_utils=traced)
    affine, factors = learned_norms(plan, 4, torch.float32)
    torch.library.opcheck(
        torch.ops.fastdarts.mixed_sum.default, (*call, affine.requires_grad_(), factors), test_utils=traced
    )


def projection(C_in: int, parts: int, dtype: torch.dtype, training: bool) -> tuple[Tensor, list[Tensor], Tensor | None]:
    compute = torch.promote_types(dtype, torch.float32)
    x = torch.randn(3, C_in, 5, 4).to(dtype)
    params = [torch.randn(6 // parts, C_in, 1, 1, dtype=compute) for _ in range(parts)]
    running = torch.stack([torch.randn(1, 6), torch.rand(1, 6) + 0.5], dim=1).to(compute)
    return x, params, None if training else running


@DTYPES
@TRAINING
@pytest.mark.parametrize("parts", [1, 2])
def test_opcheck_project(parts: int, training: bool, dtype: torch.dtype) -> None:
    x, params, running = projection(5, parts, dtype, training)
    affine = torch.randn(1, 2, 6, dtype=torch.promote_types(dtype, torch.float32))
    for more in ((), (affine.requires_grad_(),)):
        call = (x.clone().requires_grad_(), learned(params), running, 1e-5, *more)
        torch.library.opcheck(torch.ops.fastdarts.project.default, call, test_utils=CHECKS)
        with torch.no_grad():
            out, saved, stats = torch.ops.fastdarts.project(*call)
            for need_x, need_params in ((True, True), (True, False), (False, True)):
                back = (torch.randn_like(out), x, params, saved, stats, training, 1e-5, need_x, need_params)
                last = [t.detach() for t in more]
                torch.library.opcheck(torch.ops.fastdarts.project_backward.default, (*back, *last), test_utils=CHECKS)


def test_gradients_own_their_memory() -> None:
    """Where they are views, torch adds up those of a state's readers in new memory instead of in place."""
    plan = one_edge(1)
    states, weights, params, _ = arguments(plan, 16, (5, 4), torch.float32, True)
    out, saved, stats = torch.ops.fastdarts.mixed_sum(states, weights, params, None, plan.encoded, 1e-5)
    back = (torch.randn_like(out), states, weights, params, out, saved, stats, plan.encoded, True, 1e-5, [1], True)
    assert torch.ops.fastdarts.mixed_sum_backward(*back)[1][0]._base is None
    x, w = torch.randn(2, 3, 5, 4), [torch.randn(4, 3, 1, 1)]
    out, saved, stats = torch.ops.fastdarts.project(x, w, None, 1e-5)
    assert torch.ops.fastdarts.project_backward(out, x, w, saved, stats, True, 1e-5, True, True)[0]._base is None


@TRAINING
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "primitives",
    [
        ("sep_conv_3x3", "skip_connect"),
        ("max_pool_3x3", "avg_pool_3x3"),
        ("dil_conv_3x3", "none"),
        ("nor_conv_1x1", "bare_max_pool_3x3"),
        ("bare_avg_pool_3x3", "avg_pool_3x3"),
    ],
    ids=str,
)
def test_gradcheck_mixed_sum(primitives: tuple[str, ...], stride: int, training: bool) -> None:
    plan = one_edge(stride, primitives)
    states, weights, params, running = arguments(plan, 2, (3, 3), torch.float64, training, columns=2)
    affine, factors = learned_norms(plan, 2, torch.float64)

    def call(x: Tensor, w: Tensor, *p: Tensor) -> Tensor:
        return operators.mixed_sum([x], w, list(p), running, plan)[0]

    def with_learned_norms(x: Tensor, w: Tensor, a: Tensor, *p: Tensor) -> Tensor:
        return operators.mixed_sum([x], w, list(p), running, plan, affine=a, factors=factors)[0]

    inputs = (*learned(states), weights.requires_grad_(), *learned(params))
    more = (*inputs[:2], affine.requires_grad_(), *inputs[2:])
    for function, given in ((call, inputs), (with_learned_norms, more)):
        assert gradcheck(function, given, fast_mode=True)
        assert gradgradcheck(function, given, fast_mode=True)


@TRAINING
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_recomputed_convolutions_are_bit_for_bit_those_that_would_be_kept(dtype: torch.dtype, training: bool) -> None:
    names = ("sep_conv_3x3", "max_pool_3x3", "sep_conv_5x5", "dil_conv_3x3", "sep_conv_7x7")
    plan = reduction_cell(names)
    states, weights, params, running = arguments(plan, 6, (9, 8), dtype, training, N=3, columns=len(names))
    affine, factors = learned_norms(plan, 6, dtype, 3)
    leaves = [*learned(states), weights.requires_grad_(), affine.requires_grad_(), *learned(params)]
    made = []
    for recompute in (False, True):
        call = (leaves[:2], leaves[2], leaves[4:], running, plan, 1e-5, leaves[3], factors, recompute)
        out, stats = operators.mixed_sum(*call)
        made.append([out, stats, *torch.autograd.grad(out.double().sin().sum(), leaves)])
    assert all(map(torch.equal, *made))
    flat = (states, weights.detach(), params, running, plan.encoded, 1e-5, affine.detach(), factors)
    kept, less = (torch.ops.fastdarts.mixed_sum(*flat, recompute)[1].numel() for recompute in (False, True))
    assert less < 0.3 * kept  # of an edge's seven tensors, one; and the pools of a state


@pytest.mark.parametrize("K", [1, 2])
def test_gradcheck_of_a_cell(K: int) -> None:
    plan = reduction_cell(("dil_conv_3x3", "avg_pool_3x3", "skip_connect", "nor_conv_1x1", "bare_avg_pool_3x3"), K)
    states, weights, params, _ = arguments(plan, 2 * K, (3, 4), torch.float64, True, columns=5)

    def call(x: Tensor, y: Tensor, w: Tensor, *p: Tensor) -> Tensor:
        return operators.mixed_sum([x, y], w, list(p), None, plan)[0]

    inputs = (*learned(states), weights.requires_grad_(), *learned(params))
    assert gradcheck(call, inputs, fast_mode=True)
    assert gradgradcheck(call, inputs, fast_mode=True)


@TRAINING
@pytest.mark.parametrize("parts", [1, 2])
def test_gradcheck_project(parts: int, training: bool) -> None:
    x, params, running = projection(3, parts, torch.float64, training)

    def call(x: Tensor, affine: Tensor | None, *p: Tensor) -> Tensor:
        return operators.project(x, list(p), running, affine=affine)[0]

    for affine in (None, torch.randn(1, 2, 6, dtype=torch.float64, requires_grad=True)):
        assert gradcheck(call, (x.requires_grad_(), affine, *learned(params)), fast_mode=True)
        assert gradgradcheck(call, (x.requires_grad_(), affine, *learned(params)), fast_mode=True)


@DTYPES
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    ("C_in", "C", "size", "layout"),
    [
        (2, 8, (7, 5), "nchw"),  # of one channel batch norm takes the weights' size out: their gradients cancel
        (3, 10, (8, 8), "channel_slice"),
        (12, 16, (1, 2), "nchw"),
        (16, 36, (7, 5), "channels_last"),
        (33, 4, (8, 8), "channels_last"),
        (64, 20, (5, 9), "channel_slice"),
    ],
)
def test_project(C_in: int, C: int, size: tuple[int, int], layout: str, parts: int, dtype: torch.dtype) -> None:
    """Against the formula in float64, beside the plain functions in the same precision."""
    x = torch.randn(3, C_in + 2, *size).to(dtype)
    x = x[:, 1:-1] if layout == "channel_slice" else x[:, 1:-1].contiguous()
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    params = [
        torch.randn(C // parts, C_in, 1, 1, dtype=torch.promote_types(dtype, torch.float32)) for _ in range(parts)
    ]
    g = torch.randn(3, C, *(-(-side // parts) for side in size)).to(dtype)

    def results(f: Callable[[Tensor, list[Tensor]], Tensor], x: Tensor, params: list[Tensor]) -> dict[str, Tensor]:
        leaves = [x.detach().requires_grad_(), *learned(params)]
        with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype == torch.bfloat16):
            y = f(leaves[0], leaves[1:])
        grads = torch.autograd.grad(y, leaves, g.to(y.dtype))
        return {"y": y.detach()} | {f"d{i}": grad for i, grad in enumerate(grads)}

    def formula(x: Tensor, p: list[Tensor]) -> Tensor:
        if parts == 2:
            return formulas.factorized_reduce(x, *p)
        return formulas.batch_norm(formulas.dense(x.clamp(min=0), p[0]))

    eps, generator = torch.finfo(dtype).eps, torch.Generator().manual_seed(1)
    exact = [p.double() for p in params]
    moved = [
        results(
            formula,
            rounded_at_random(x.double(), eps, generator),
            [rounded_at_random(p, eps, generator) for p in exact],
        )
        for _ in range(2)
    ]
    ours = results(lambda x, p: operators.project(x, p, None)[0], x, params)
    assert ours["y"].dtype == dtype
    plain = results(lambda x, p: functional.project(x, p, None, 1e-5), x, params)
    assert_no_worse(ours, plain, results(formula, x.double(), exact), moved, eps)


def test_statistics_of_project() -> None:
    x, (w,), _ = projection(5, 1, torch.float64, True)
    y = formulas.dense(x.clamp(min=0), w)
    _, stats = operators.project(x, [w], None)
    torch.testing.assert_close(stats, torch.stack([y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)])[None])
    _, kept = operators.project(x, [w], stats + 1)
    assert torch.equal(kept, stats + 1)


@TRAINING
@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.parametrize(("C", "N", "images"), [(4, 2, 2), (2, 3, 3), (2, 8, 4), (1, 5, 5), (4, 3, 1), (5, 4, 1)])
def test_images_that_share_the_lanes(C: int, N: int, images: int, K: int, training: bool) -> None:
    """A line has 8 numbers in float64: where channels leave room for more of N images, these stand side by side."""
    names = ALL_OPS if C % 2 == 0 else tuple(name for name in ALL_OPS if name != "skip_connect")
    plan = reduction_cell(names, K)
    states, weights, params, running = arguments(plan, C * K, (5, 4), torch.float64, training, N=N)
    pools = 3 * 2  # of three states
    tensors = pools + sum(norm_count(c, edge.stride) for edge in plan.edges for _, c in edge.ops if not c.is_pool)
    _, saved, _ = torch.ops.fastdarts.mixed_sum(states, weights, params, running, plan.encoded, 1e-5)
    assert saved.numel() == tensors * N // images * 3 * 2 * 8
    affine, factors = learned_norms(plan, C, torch.float64, N)
    leaves = [*learned(states), weights.requires_grad_(), affine.requires_grad_(), *learned(params)]
    for last in ((), (leaves[3], factors)):
        call = (leaves[:2], leaves[2], leaves[4:], running, plan, 1e-5, *last)
        out, _ = operators.mixed_sum(*call)
        want = functional.mixed_sum(*call)
        torch.testing.assert_close(out, want, rtol=1e-10, atol=1e-10)
        g = torch.randn_like(out)
        ours, true = (torch.autograd.grad(y, leaves, g, allow_unused=True, materialize_grads=True) for y in (out, want))
        for a, b in zip(ours, true, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-7 if C == 1 else 1e-9)  # one channel: gradients cancel


@DTYPES
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("K", "size"), [(4, 4), (4, 8), (4, 16), (2, 4), (3, 5), (8, 1)])
def test_channels_that_pass_by(K: int, size: int, stride: int, dtype: torch.dtype) -> None:
    """Without batch norms, so that only roundings differ from float64: each of a handful moves a tensor by at most eps
    of its norm. Whole numbers, so that maxima meet their likes."""
    edges = [(s, t, stride if s < 2 else 1) for s, t in edges_of(2)]
    ops_of = {1: edge_ops(("skip_connect",)), 2: ()}
    plan = MixedPlan(2, 2, tuple(PlannedEdge(s, t, r, ops_of[r]) for s, t, r in edges), K)
    states = [torch.randn(4, 1 + K * size, 5, 6).round().to(dtype)[:, 1:] for _ in range(2)]
    weights = torch.randn(len(edges), 2, dtype=torch.promote_types(dtype, torch.float32))
    ours = learned([*states, weights])
    exact = [t.detach().double().requires_grad_() for t in ours]
    out, _ = operators.mixed_sum(ours[:2], ours[2], [], None, plan)
    want = functional.mixed_sum(exact[:2], exact[2], [], None, plan, 1e-5)
    g = torch.randn_like(out)
    got, true = torch.autograd.grad(out, ours, g), torch.autograd.grad(want, exact, g.double())
    for a, b in zip([out, *got], [want, *true], strict=True):
        assert (a.double() - b).norm() <= 8 * torch.finfo(dtype).eps * b.norm()


def test_partial_channels_must_divide() -> None:
    states = [torch.zeros(2, 5, 4, 4)] * 2
    with pytest.raises(ValueError, match="C must be a multiple of K = 2; got 5"):
        operators.mixed_sum(states, torch.zeros(5, 2), [], None, reduction_cell(("none",), K=2))


def test_running_statistics_of_any_layout() -> None:
    x, params, running = projection(5, 1, torch.float64, False)
    plan = one_edge(1)
    states, weights, more, many = arguments(plan, 6, (5, 4), torch.float64, False)
    assert running is not None
    assert many is not None
    for stored in (
        lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
        lambda t: t.repeat(2, 1, 2)[: len(t), :, : t.shape[2]],
    ):
        assert torch.equal(operators.project(x, params, stored(running))[0], operators.project(x, params, running)[0])
        want, _ = operators.mixed_sum(states, weights, more, many, plan)
        assert torch.equal(operators.mixed_sum(states, weights, more, stored(many), plan)[0], want)


def test_a_node_without_edges_is_zero() -> None:
    plan = MixedPlan(1, 2, (PlannedEdge(0, 2, 1, edge_ops(("skip_connect",))),))
    x = torch.randn(2, 3, 4, 5)
    out, _ = operators.mixed_sum([x], torch.ones(1, 1), [], None, plan)
    torch.testing.assert_close(out, torch.cat([torch.zeros_like(x), x], dim=1))


def test_plans_survive_their_encoding() -> None:
    cell = reduction_cell(("sep_conv_7x7", "dil_conv_5x5", "skip_connect", "nor_conv_1x1"), K=4)
    for plan in (one_edge(2), cell, one_edge(1, ("none",))):
        assert decode(plan.encoded) == plan


@pytest.mark.parametrize("K", [1, 2])
def test_gradients_that_are_not_asked_for(K: int) -> None:
    """Alphas alone, weights alone, an input alone: the same numbers as all of them together."""
    plan = reduction_cell(ALL_OPS, K)
    states, weights, params, _ = arguments(plan, 4 * K, (6, 5), torch.float64, True)
    everything = [*states, weights, *params]

    def gradients(wanted: set[int]) -> list[Tensor | None]:
        leaves = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(everything)]
        out, _ = operators.mixed_sum(leaves[:2], leaves[2], leaves[3:], None, plan)
        out.square().sum().backward()
        return [leaf.grad for leaf in leaves]

    every = gradients(set(range(len(everything))))
    for wanted in ({0}, {1}, {2}, set(range(3, len(everything))), {0, 2}, {5}):
        for i, grad in enumerate(gradients(wanted)):
            if i in wanted:
                torch.testing.assert_close(grad, every[i], rtol=1e-11, atol=1e-11)
            else:
                assert grad is None


@pytest.mark.parametrize("kind", ["expanded", "nchw", "slice", "half"])
def test_gradients_of_any_layout(kind: str) -> None:
    plan = one_edge(1)
    states, weights, params, _ = arguments(plan, 6, (5, 4), torch.float64, True)
    g = torch.randn(2, 12, 5, 4, dtype=torch.float64)
    g = {"expanded": torch.ones(()).double().expand(2, 6, 5, 4), "nchw": g[:, :6].clone(), "slice": g[:, 3:9]}.get(
        kind, g[:, ::2]
    )
    leaves = [*learned(states), weights.requires_grad_(), *learned(params)]
    out, _ = operators.mixed_sum(leaves[:1], leaves[1], leaves[2:], None, plan)
    want = torch.autograd.grad(functional.mixed_sum(leaves[:1], leaves[1], leaves[2:], None, plan, 1e-5), leaves, g)
    got = torch.autograd.grad(out, leaves, g)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def wrong_calls() -> list[Any]:
    plan = one_edge(2)
    (x,), weights, params, _ = arguments(plan, 4, (5, 4), torch.float32, True)
    stats = torch.zeros(10, 2, 4)
    fine: dict[str, Any] = {"states": [x], "weights": weights, "params": params, "running": None, "plan": plan}

    def case(error: type[Exception], message: str, **change: Any) -> Any:
        return pytest.param(fine | change, error, message, id=message)

    return [
        case(TypeError, "states must share dtype and device; got", states=[x, x.double()]),
        case(TypeError, "no kernel for torch.float16 on cpu: the CPU kernels take float32", states=[x.half()]),
        case(TypeError, "no kernel for torch.int64 on cpu: the CPU kernels take float32", states=[x.long()]),
        case(TypeError, "no kernel for torch.float32 on meta", states=[x.to("meta")]),
        case(TypeError, "params must be torch.float64 on cpu to go with x of torch.float64", states=[x.double()]),
        case(TypeError, "got torch.float64 on cpu", params=[params[0].double(), *params[1:]]),
        case(TypeError, "got torch.float32 on meta", params=[params[0].to("meta"), *params[1:]]),
        case(TypeError, "weights must be floating-point on cpu; got torch.int64 on cpu", weights=weights.long()),
        case(TypeError, "weights must be floating-point on cpu; got torch.float32 on meta", weights=weights.to("meta")),
        case(TypeError, "running must be floating-point on cpu; got", running=stats.long()),
        case(ValueError, "plan has 1 inputs; got 2", states=[x, x]),
        case(ValueError, "states must be [N, C, H, W]", states=[x[0]]),
        case(ValueError, "not be empty; got [0, 4, 5, 4]", states=[x[:0]]),
        case(ValueError, "weights must be [edges, ops]; got [11]", weights=weights[0]),
        case(ValueError, "no column 10 in weights", weights=weights[:, :10]),
        case(ValueError, "parameters; got", params=params[1:]),
        case(ValueError, "has 4 elements", params=[params[0][:1], *params[1:]]),
        case(ValueError, "running must be [", running=stats[:3]),
        case(ValueError, "needs an even number of channels; got 3", states=[x[:, :3]]),
    ]


@pytest.mark.parametrize(("call", "error", "message"), wrong_calls())
def test_wrong_arguments(call: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        operators.mixed_sum(**call)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out, saved, stats: (out, saved.double(), stats), "saved must be dense Float"),
        (lambda out, saved, stats: (out, saved[::2], stats), "saved"),
        (lambda out, saved, stats: (out, saved, stats[1:]), "stats must be dense Float"),
        (lambda out, saved, stats: (out, saved, stats.double()), "stats must be dense Float"),
        (lambda out, saved, stats: (out, saved, stats.transpose(0, 2)), "stats must be dense Float"),
        (lambda out, saved, stats: (out[:, :2], saved, stats), "out"),
    ],
)
def test_a_backward_looks_at_what_it_gets(change: Callable[..., Any], message: str) -> None:
    plan = one_edge(1)
    states, weights, params, _ = arguments(plan, 4, (5, 4), torch.float32, True)
    made = torch.ops.fastdarts.mixed_sum(states, weights, params, None, plan.encoded, 1e-5)
    out, saved, stats = change(*made)
    rest = [weights, params, out, saved, stats, plan.encoded, True, 1e-5, [1], True]
    with pytest.raises(ValueError, match=message):
        torch.ops.fastdarts.mixed_sum_backward(out, states, *rest)


@pytest.mark.parametrize("change", [lambda t: t.double(), lambda t: t.flatten()[:-1]])
@pytest.mark.parametrize("which", [1, 2])
def test_a_backward_of_project_looks_at_what_it_gets(which: int, change: Callable[[Tensor], Tensor]) -> None:
    made = list(torch.ops.fastdarts.project(X, [W], None, 1e-5))
    made[which] = change(made[which])
    with pytest.raises(ValueError, match=r"project_backward: (saved|stats)"):
        torch.ops.fastdarts.project_backward(made[0], X, [W], made[1], made[2], True, 1e-5, True, True)


X, W = torch.zeros(2, 3, 5, 4), torch.zeros(4, 3, 1, 1)


@pytest.mark.parametrize(
    ("x", "params", "running", "error", "message"),
    [
        (X.long(), [W], None, TypeError, "no kernel for torch.int64 on cpu"),
        (X.double(), [W], None, TypeError, "params must be torch.float64 on cpu to go with x of torch.float64"),
        (X, [W.to("meta")], None, TypeError, "got torch.float32 on meta"),
        (X, [W], torch.zeros(1, 2, 4).long(), TypeError, "running must be floating-point on cpu"),
        (X[0], [W], None, ValueError, "x must be a non-empty [N, C, H, W]; got [3, 5, 4]"),
        (X[:0], [W], None, ValueError, "x must be a non-empty [N, C, H, W]; got [0, 3, 5, 4]"),
        (X, [], None, ValueError, "one weight, or two for a factorised reduction; got 0"),
        (X, [W] * 3, None, ValueError, "one weight, or two for a factorised reduction; got 3"),
        (X, [W[:, :2]], None, ValueError, "weights must be [C_out, 3, 1, 1]; got [4, 2, 1, 1]"),
        (X, [W, W[:2]], None, ValueError, "weights must be [C_out, 3, 1, 1]; got [2, 3, 1, 1]"),
        (X, [W], torch.zeros(1, 2, 3), ValueError, "running must be [1, 2, 4]"),
        (X, [W], torch.zeros(1, 1, 4), ValueError, "running must be [norms, 2 (mean, variance), C]; got (1, 1, 4)"),
        (X, [W], torch.zeros(2, 4), ValueError, "running must be [norms, 2 (mean, variance), C]; got (2, 4)"),
    ],
)
def test_wrong_arguments_of_project(
    x: Tensor, params: list[Tensor], running: Tensor | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        operators.project(x, params, running)


@pytest.mark.parametrize(
    "code",
    [
        [],
        [1],
        [0, 1, 1, 0],
        [1, 1, 0, 0],
        [1, 1, 1, 1, 0, 1, 3, 0],
        [1, 1, 1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 0, 2, 1, 0],
        [1, 1, 1, 1, 0, 1, 1, 1, 0, 9, 3, 1, 1],
        [1, 1, 1, 1, 0, 1, 1, 1, 0, 4, 9, 1, 1],
        [1, 1, 1, 1, 0, 1, 1, 1, 0, 6, 3, 1, 1],
        [1, 1, 1, 1, 0, 1, 1, 1, 0, 6, 1, 1, 0],
        [1, 1, 1, 1, 0, 1, 1, 1, 0, 1, 3, 1, 2],
        [1, 1, 1, 1, 0, 1, 1, 1, 0, 3, 1, 1, 0],
        [1, 1, 1, 1, 0, 1, 1, 1, -1, 1, 3, 1, 1],
        [1, 1, 1, 1, 0, 1, 1, 2, 0, 3, 1, 1, 1, 0, 1, 3, 1, 1],
        [1, 1, 1, 1, 0, 1, 1, 0, 5],
        [1, 1, 1, 1 << 40, 0, 1, 1, 0],
        [1, 1, 1 << 40, 1, 0, 1, 1, 0],
        [1, 1 << 40, 1, 1, 0, 1, 1, 0],
        [1 << 62, 1 << 62, 1, 1, 0, 1 << 62, 1, 0],
    ],
    ids=str,
)
def test_plans_that_make_no_sense(code: list[int]) -> None:
    """The operator itself, past the checks in Python, its fake and `decode`: the same error, never a crash."""
    with pytest.raises(ValueError, match="plan") as told:
        decode(code)
    for device in (CPU, torch.device("meta")):
        arguments = [torch.zeros(2, 4, 5, 5, device=device)], torch.zeros(1, 8, device=device), [], None, code, 1e-5
        with pytest.raises(ValueError, match=re.escape(str(told.value)) if len(code) > 4 else "plan|inputs"):
            torch.ops.fastdarts.mixed_sum(*arguments)


def test_nodes_of_more_elements_than_there_are_numbers() -> None:
    code = [1, 2**20 - 1, 1, 1, 0, 1, 1, 0]
    x = torch.zeros(1).expand(1 << 10, 1 << 10, 1 << 10, 1 << 10)
    for states in ([x], [x.to("meta")]):
        with pytest.raises(ValueError, match="mixed_sum: out would have too many elements"):
            torch.ops.fastdarts.mixed_sum(states, states[0].new_zeros(1, 8), [], None, code, 1e-5)


def test_plans_of_python_and_of_csrc_have_the_same_rules() -> None:
    """Single numbers of a good plan changed: accepted by both or by none."""
    plan = one_edge(2)
    states, weights, params, _ = arguments(plan, 4, (5, 4), torch.float32, True)
    for at in range(len(plan.encoded)):
        for number in (-1, 0, 1, 2, 3, 5, 6, 2**20, -(2**63)):
            code = [*plan.encoded[:at], number, *plan.encoded[at + 1 :]]
            told = []
            for device in (CPU, torch.device("meta")):
                try:
                    on = [[t.to(device) for t in tensors] for tensors in (states, [weights], params)]
                    torch.ops.fastdarts.mixed_sum(on[0], on[1][0], on[2], None, code, 1e-5)
                    told.append("")
                except ValueError as error:
                    told.append(str(error))
            assert told[0] == told[1], (at, number)


DIRECT = {
    "running": ("running must be [10, 2, 4]", lambda call: call | {"running": torch.zeros(10, 1, 4)}),
    "running_of_another": ("running must be [10, 2, 4]", lambda call: call | {"running": torch.zeros(10, 3, 4)}),
    "running_of_fewer": ("running must be [10, 2, 4]", lambda call: call | {"running": torch.zeros(9, 2, 4)}),
    "running_flat": ("running must be [10, 2, 4]", lambda call: call | {"running": torch.zeros(80)}),
    "running_whole": ("running must be floating", lambda call: call | {"running": torch.zeros(10, 2, 4).long()}),
    "eps": ("eps must be a finite number, 0 or more", lambda call: call | {"eps": -1e-5}),
    "eps_nan": ("eps must be a finite number, 0 or more", lambda call: call | {"eps": float("nan")}),
    "params_meta": ("params must be floating", lambda call: call | {"params": [p.to("meta") for p in call["params"]]}),
    "states_meta": ("weights must be floating", lambda call: call | {"states": [x.to("meta") for x in call["states"]]}),
    "weights_meta": ("weights must be floating", lambda call: call | {"weights": call["weights"].to("meta")}),
}


@pytest.mark.parametrize("case", list(DIRECT))
def test_direct_calls_with_wrong_arguments(case: str) -> None:
    """Past `operators.mixed_sum`, which checks as well."""
    plan = one_edge(2)
    states, weights, params, _ = arguments(plan, 4, (5, 4), torch.float32, True)
    call = {"states": states, "weights": weights, "params": params, "running": None, "plan": plan.encoded, "eps": 1e-5}
    message, change = DIRECT[case]
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        torch.ops.fastdarts.mixed_sum(**change(call))


@pytest.mark.parametrize(
    ("running", "eps", "message"),
    [
        (torch.zeros(1, 1, 4), 1e-5, "running must be [1, 2, 4]"),
        (torch.zeros(1, 3, 4), 1e-5, "running must be [1, 2, 4]"),
        (torch.zeros(8), 1e-5, "running must be [1, 2, 4]"),
        (None, -1.0, "eps must be a finite number, 0 or more"),
    ],
)
def test_direct_calls_of_project_with_wrong_arguments(running: Tensor | None, eps: float, message: str) -> None:
    for device in (CPU, torch.device("meta")):
        given = None if running is None else running.to(device)
        with pytest.raises(ValueError, match=re.escape(message)):
            torch.ops.fastdarts.project(X.to(device), [W.to(device)], given, eps)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (9, 8)], ids=str)
def test_an_input_that_no_edge_leaves_may_have_any_size(size: tuple[int, int]) -> None:
    """Partial channels let it pass nothing."""
    plan = MixedPlan(2, 1, (PlannedEdge(0, 2, 2, edge_ops(("skip_connect", "avg_pool_3x3"))),), K=2)
    states, weights, params, _ = arguments(plan, 8, (5, 4), torch.float64, True, columns=2)
    leaves = learned([states[0], torch.randn(2, 8, *size).double(), weights, *params])
    out, _ = operators.mixed_sum(leaves[:2], leaves[2], leaves[3:], None, plan)
    want = functional.mixed_sum(leaves[:2], leaves[2], leaves[3:], None, plan, 1e-5)
    torch.testing.assert_close(out, want)
    got = torch.autograd.grad(out.sum(), leaves)
    assert torch.equal(got[1], torch.zeros_like(leaves[1]))


def test_the_factors_of_partial_channels_are_no_column_of_an_op() -> None:
    plan = MixedPlan(1, 1, (PlannedEdge(0, 1, 1, ((1, edge_ops(("skip_connect",))[0][1]),)),), K=2)
    with pytest.raises(ValueError, match="no column 1 in weights, which have 1 for the ops"):
        operators.mixed_sum([torch.zeros(2, 4, 5, 5)], torch.zeros(1, 2), [], None, plan)


@DTYPES
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("spread", [0.0, 1e-3], ids=["constant", "nearly"])
def test_constant_channels_of_project(spread: float, parts: int, dtype: torch.dtype) -> None:
    """Variance 0: what the statistics do not see of the rounding of y, batch norm multiplies by 316."""
    x = (0.7 + spread * torch.randn(3, 5, 8, 6)).to(dtype)
    compute = torch.promote_types(dtype, torch.float32)
    params = [torch.rand(6 // parts, 5, 1, 1, dtype=compute) for _ in range(parts)]
    g = torch.randn(3, 6, 8 // parts, 6 // parts)

    def results(f: Callable[..., Tensor], dtype: torch.dtype, compute: torch.dtype) -> list[Tensor]:
        leaves = [x.to(dtype).requires_grad_(), *learned([p.to(compute) for p in params])]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = f(leaves[0], leaves[1:])
        return [y.detach(), *torch.autograd.grad(y, leaves, g.to(y.dtype))]

    ours = results(lambda x, p: operators.project(x, p, None)[0], dtype, compute)
    plain = results(lambda x, p: functional.project(x, p, None, 1e-5), dtype, compute)
    true = results(lambda x, p: functional.project(x, p, None, 1e-5), torch.float64, torch.float64)
    for i, (a, b, t) in enumerate(zip(ours, plain, true, strict=True)):
        assert_no_worse_than_plain(a, b, t, dtype, str(i))
