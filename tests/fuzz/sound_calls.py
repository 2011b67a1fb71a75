"""Arguments that fit each operator, drawn at random, and those of its backward."""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdarts.ops.cell_plan import NAMES, CellPlan, Term
from fastdarts.ops.mbconv import KERNELS
from fastdarts.ops.plan import KIND_CODES, MixedPlan, PlannedEdge, decode, norm_count, param_count, param_size
from fastdarts.primitives.table import CANDIDATES

OPS = [c for c in CANDIDATES.values() if c.kind in KIND_CODES]
FLOATS = (torch.float32, torch.float64)
STATES = (*FLOATS, torch.bfloat16)
Call = dict[str, Any]


class Operator(NamedTuple):
    """Draw the arguments of an operator and of the one that follows it."""

    name: str
    draw: Callable[[random.Random], Call]
    """Draws arguments that fit."""
    after: Callable[[random.Random, Call, Any], tuple[str, Call]] | None
    """Returns the operator to be called after it, such as its backward, with arguments that fit, given the arguments
    and the result; None for none."""


def random_plan(draw: random.Random, columns: int, K: int, even: bool) -> MixedPlan:
    """A plan that makes sense, but for sizes: its first input has them, the others may or may not."""
    inputs, nodes = draw.randint(1, 3), draw.randint(1, 3)
    strides = [draw.choice((1, 2)) for _ in range(inputs)]
    edges = []
    for _ in range(draw.randint(1, 5)):
        node = draw.randrange(inputs, inputs + nodes)
        source = draw.randrange(node)
        stride = strides[source] if source < inputs else 1
        chosen = draw.sample(range(columns), draw.randint(0, columns))
        fit = [c for c in OPS if even or stride == 1 or c.kind != "skip"]
        edges.append(PlannedEdge(source, node, stride, tuple((column, draw.choice(fit)) for column in chosen)))
    edges.append(PlannedEdge(0, inputs, strides[0], ()))
    return MixedPlan(inputs, nodes, tuple(edges), K)


def params_of(plan: MixedPlan, C: int, dtype: torch.dtype) -> list[Tensor]:
    """Random convolution weights for all ops of a plan."""
    return [
        torch.randn(param_size(c, i, C), dtype=dtype)
        for edge in plan.edges
        for _, c in edge.ops
        for i in range(param_count(c, edge.stride))
    ]


def norms_of(plan: MixedPlan) -> int:
    """Number of batch norms of a plan."""
    return sum(norm_count(c, edge.stride) for edge in plan.edges for _, c in edge.ops)


def mixed_sum_call(draw: random.Random) -> Call:
    """Arguments that fit."""
    K, C, columns = draw.choice((1, 1, 2, 3)), draw.choice((1, 2, 3, 4, 6, 16, 17)), draw.randint(0, 5)
    plan = random_plan(draw, columns, K, C % 2 == 0)
    dtype = draw.choice(STATES)
    compute = torch.promote_types(dtype, torch.float32)
    N, H, W = draw.randint(1, 4), draw.randint(1, 5), draw.randint(1, 5)
    strides = {edge.source: edge.stride for edge in plan.edges}
    states = []
    for i in range(plan.inputs):
        stride = strides.get(i, draw.randint(1, 3))
        h, w = (max(1, size * stride - draw.randint(0, stride - 1)) for size in (H, W))
        states.append(torch.randn(N, C * K, h, w).to(dtype))
    params, norms = params_of(plan, C, compute), norms_of(plan)
    running = draw.choice((None, torch.rand(norms, 2, C, dtype=compute) + 0.5))
    weights = torch.randn(len(plan.edges), columns + (K > 1), dtype=compute)
    factors = None if K > 1 else draw.choice((None, torch.rand(len(plan.edges), N, dtype=compute).round()))
    return {
        "states": states,
        "weights": weights,
        "params": params,
        "running": running,
        "plan": plan.encoded,
        "eps": 1e-5,
        "affine": draw.choice((None, torch.randn(norms, 2, C, dtype=compute))),
        "factors": factors,
    }


def project_call(draw: random.Random) -> Call:
    C_in, C, parts = draw.choice((1, 3, 8, 16, 33)), draw.choice((1, 4, 16, 20)), draw.choice((1, 2))
    dtype = draw.choice(STATES)
    compute = torch.promote_types(dtype, torch.float32)
    x = torch.randn(draw.randint(1, 3), C_in, draw.randint(1, 6), draw.randint(1, 6)).to(dtype)
    params = [torch.randn(C, C_in, 1, 1, dtype=compute) for _ in range(parts)]
    running = draw.choice((None, torch.rand(1, 2, C * parts, dtype=compute) + 0.5))
    affine = draw.choice((None, torch.randn(1, 2, C * parts, dtype=compute)))
    return {"x": x, "params": params, "running": running, "eps": 1e-5, "affine": affine}


def mixed_sum_backward(draw: random.Random, call: Call, result: Any) -> tuple[str, Call]:
    out, saved, stats = result
    call = dict(call)
    training = call.pop("running") is None
    more = {
        "out": out,
        "saved": saved,
        "stats": stats,
        "training": training,
        "need_states": [draw.randint(0, 1) for _ in call["states"]],
        "need_params": draw.random() < 0.7,
        "need_weights": draw.random() < 0.7,
    }
    return "mixed_sum_backward", {"grad_out": torch.randn_like(out), **call, **more}


def project_backward(draw: random.Random, call: Call, result: Any) -> tuple[str, Call]:
    out, saved, stats = result
    call = dict(call)
    training = call.pop("running") is None
    more = {"saved": saved, "stats": stats, "training": training, "need_x": True, "need_params": draw.random() < 0.7}
    return "project_backward", {"grad_out": torch.randn_like(out), **call, **more}


def mbconv_call(draw: random.Random) -> Call:
    C, O, stride = draw.choice((1, 3, 8, 17)), draw.choice((2, 8, 16)), draw.choice((1, 1, 2))  # noqa: E741
    dtype = draw.choice(STATES)
    compute = torch.promote_types(dtype, torch.float32)
    kernels, params = [draw.choice(KERNELS) for _ in range(draw.randint(1, 3))], []
    for kernel in kernels:
        M = draw.choice((1, 4, 6, 16, 24))
        shapes = ((M, C), (M,), (M,), (M, kernel**2), (M,), (M,), (O, M), (O,), (O,))
        params += [torch.randn(shape, dtype=compute) for shape in shapes]
    x = torch.randn(draw.randint(1, 3), C, draw.randint(1, 7), draw.randint(1, 7)).to(dtype)
    return {
        "x": x.contiguous(memory_format=torch.channels_last),
        "params": params,
        "weights": torch.rand(len(kernels), dtype=compute),
        "kernels": kernels,
        "stride": stride,
        "shortcut": stride == 1 and C == O,
        "six": draw.random() < 0.5,
        "eps": 1e-5,
    }


def mbconv_backward(draw: random.Random, call: Call, result: Any) -> tuple[str, Call]:
    out, saved, stats = result
    more = {"saved": saved, "stats": stats, "need_params": draw.random() < 0.7}
    return "mbconv_sum_backward", {"grad": torch.randn_like(out), **call, **more}


def cell_plan(draw: random.Random) -> CellPlan:
    """A recurrent cell of up to three nodes, each with some terms or none."""
    count, number, nodes = draw.randint(1, 3), 0, []
    for node in range(count):
        terms = []
        for _ in range(draw.randint(0, 3)):
            terms.append(Term(draw.randint(0, node), draw.randrange(1, len(NAMES)), number))
            number += 1
        nodes.append(tuple(terms))
    outputs = draw.sample(range(1, count + 1), draw.randint(1, count))
    return CellPlan(tuple(nodes), tuple(sorted(outputs)), norm=draw.random() < 0.5)


def recurrent_call(draw: random.Random) -> Call:
    plan, d, B = cell_plan(draw), draw.choice((1, 3, 16, 21)), draw.randint(2, 5)
    like: Call = {"dtype": draw.choice(FLOATS)}
    masked = draw.random() < 0.5
    count = max((term.weight for terms in plan.nodes for term in terms), default=0) + 1
    return {
        "x": torch.randn(draw.randint(1, 3), B, d, **like),
        "hidden": torch.randn(B, d, **like),
        "mask_x": torch.rand(B, d, **like) if masked else None,
        "mask_h": torch.rand(B, d, **like) if masked else None,
        "W0": torch.randn(2 * d, 2 * d, **like),
        "Ws": [torch.randn(d, 2 * d, **like) for _ in plan.nodes],
        "weights": torch.rand(count, **like),
        "running": torch.rand(2, d, **like) + 0.5 if plan.norm and draw.random() < 0.3 else None,
        "plan": plan.encoded,
        "eps": 1e-5,
        "half": like["dtype"] == torch.float32 and draw.random() < 0.3,
        "keep": True,
    }


def recurrent_backward(draw: random.Random, call: Call, result: Any) -> tuple[str, Call]:
    out, *kept = result
    call = dict(call)
    training = call.pop("running") is None
    del call["keep"]
    more = dict(zip(("states", "products", "gates", "stats"), kept, strict=True))
    more |= {"training": training, "need_x": draw.random() < 0.7, "need_matrices": draw.random() < 0.7}
    return "recurrent_backward", {"grad_out": torch.randn_like(out), **call, "out": out, **more}


def linear_nll_call(draw: random.Random) -> Call:
    rows, d, words = draw.choice((1, 5, 70)), draw.choice((1, 16, 21)), draw.choice((1, 7, 300))
    like: Call = {"dtype": draw.choice(FLOATS)}
    return {
        "h": torch.randn(rows, d, **like),
        "weight": torch.randn(words, d, **like),
        "bias": torch.randn(words, **like),
        "targets": torch.randint(words, (rows,)),
        "shares": torch.rand(rows, **like),
        "half": like["dtype"] == torch.float32 and draw.random() < 0.3,
        "need_h": draw.random() < 0.7,
        "need_weight": draw.random() < 0.7,
    }


def pack_call(draw: random.Random) -> Call:
    """A found cell's weights: all strides are 1 or, for edges from an input, 2."""
    C = draw.choice((2, 4, 16, 18))
    plan = random_plan(draw, 3, 1, even=True)
    inputs = [draw.choice((1, 2)) for _ in range(plan.inputs)]
    dtype = draw.choice(STATES)
    compute = torch.promote_types(dtype, torch.float32)
    widths = [draw.choice((1, 3, 16)) for _ in inputs]
    projections = [
        torch.randn(C // parts, width, 1, 1, dtype=compute)
        for parts, width in zip(inputs, widths, strict=True)
        for _ in range(parts)
    ]
    params, norms = params_of(plan, C, compute), len(inputs) + norms_of(plan)
    return {
        "projections": projections,
        "parts": inputs,
        "params": params,
        "running": torch.rand(norms, 2, C, dtype=compute) + 0.5,
        "plan": plan.encoded,
        "eps": 1e-5,
        "affine": draw.choice((None, torch.randn(norms, 2, C, dtype=compute))),
        "dtype": dtype,
    }


def eval_cell_after(draw: random.Random, call: Call, packed: Tensor) -> tuple[str, Call]:
    plan, parts = decode(call["plan"]), call["parts"]
    N, H, W = draw.randint(1, 3), draw.randint(1, 5), draw.randint(1, 5)
    strides = {edge.source: edge.stride for edge in plan.edges}
    states, at = [], 0
    for i in range(plan.inputs):
        width, scale = call["projections"][at].shape[1], strides.get(i, 1) * parts[i]
        states.append(torch.randn(N, width, H * scale, W * scale).to(call["dtype"]))
        at += parts[i]
    total = plan.inputs + plan.nodes
    concat = [draw.randrange(plan.inputs, total) for _ in range(draw.randint(1, 3))]
    sizes = {"concat": concat, "C": call["running"].shape[2]}
    return "eval_cell", {"states": states, "packed": packed, "parts": parts, "plan": call["plan"], **sizes}


def running_call(draw: random.Random) -> Call:
    dtype = draw.choice(STATES)
    channels = [draw.randint(1, 40) for _ in range(draw.randint(1, 5))]
    return {
        "means": [torch.randn(C).to(dtype) for C in channels],
        "variances": [torch.rand(C).to(dtype) for C in channels],
        "counters": [torch.tensor(draw.randrange(9)) for _ in range(draw.randint(0, len(channels)))],
        "stats": torch.rand(2 * sum(channels), dtype=draw.choice(FLOATS)),
        "values": [draw.randint(2, 9) for _ in channels],
        "momentum": draw.random(),
    }


OPERATORS = {
    operator.name: operator
    for operator in (
        Operator("mixed_sum", mixed_sum_call, mixed_sum_backward),
        Operator("project", project_call, project_backward),
        Operator("mbconv_sum", mbconv_call, mbconv_backward),
        Operator("recurrent", recurrent_call, recurrent_backward),
        Operator("linear_nll", linear_nll_call, None),
        Operator("pack_eval_cell", pack_call, eval_cell_after),
        Operator("update_running", running_call, None),
    )
}
SHARES = {"mixed_sum": 4, "project": 2, "mbconv_sum": 2, "recurrent": 2, "linear_nll": 1, "pack_eval_cell": 2}
SHARES |= {"update_running": 1}
"""Relative frequencies of the operators."""
