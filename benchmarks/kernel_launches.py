"""Record the launches of Triton kernels that a cell would make, without making them, to compile these kernels."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastdarts.kernels import bank, linear_nll, node, recurrent, running
from fastdarts.kernels.launch import compute_dtype
from fastdarts.kernels.mixed_sum import mixed_sum, mixed_sum_backward
from fastdarts.kernels.project import project, project_backward
from fastdarts.kernels.running import update_running
from fastdarts.ops.cell_plan import derived_plan, search_plan
from fastdarts.ops.plan import MixedPlan, PlannedEdge, edge_ops, norm_count
from fastdarts.primitives.table import PRIMITIVES

SIZES = {16: 32, 32: 16, 64: 8}  # channels and image sizes of a CIFAR search
SHAPES = [f"{C}/{stride}" for C in SIZES for stride in (1, 2)]  # channels/stride
Launch = tuple[Any, tuple[Any, ...], dict[str, Any]]
Ops = tuple[str, ...]
OPS: Ops = (*PRIMITIVES, "nor_conv_1x1", "bare_avg_pool_3x3")
"""The ops with kernels of DARTS' space and of NAS-Bench-201."""


def launches(
    C: int, stride: int, dtype: torch.dtype = torch.bfloat16, ops: Ops = OPS, found: bool = False
) -> list[Launch]:
    """Return the launches of one node with every op on its edges from two inputs, and of preprocessing an input.

    With `found` as in found networks, whose batch norms learn and whose edges have factors.
    Both run forward and backward, and running statistics are updated. Launches of further kernels that edges without
    pools need, and the stages of pointwise convolutions alone, come at the end.
    """
    with recorded() as made:
        cell(ops, 1, C, stride, dtype, found=found)
        preprocessing(C, stride, dtype, found=found)
        norm = torch.zeros(C, dtype=compute_dtype(dtype))
        update_running([norm], [norm], [], norm.repeat(2), [2], 0.1)
        known, count = {kernel for kernel, _, _ in made}, len(made)
        cell(("skip_connect",), 2, C, stride, dtype, found=found)
        pointwise = len(made)
        cell(("nor_conv_1x1",), 1, C, stride, dtype, found=found)
    others = [launch for launch in made[count:pointwise] if launch[0] not in known]
    return made[:count] + others + [launch for launch in made[pointwise:] if "GEOMETRIES" in launch[2]]


def more_launches(C: int, stride: int, dtype: torch.dtype, ops: Ops) -> list[Launch]:
    """Return the launches of a search besides `launches`.

    These are those of edges between nodes, of alpha steps (without gradients of the weights) and of evaluation with
    running statistics.
    """
    with recorded() as found:
        cell(ops, 2, C, stride, dtype, between=True)
        cell(ops, 2, C, stride, dtype, between=True, need_params=False)
        cell(ops, 2, C, stride, dtype, between=True, training=False)
        for need_params, training in ((False, True), (True, False)):
            preprocessing(C, stride, dtype, need_params, training)
    return found


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Collect the launches made inside without starting them."""
    found: list[Launch] = []
    rooms: list[Any] = [bank, node, running, recurrent, linear_nll]
    before = bank.launch
    for room in rooms:
        room.launch = lambda kernel, grid, *args, **constants: found.append((kernel, args, constants))
    try:
        yield found
    finally:
        for room in rooms:
            room.launch = before


def cell_launches(dtype: torch.dtype) -> list[Launch]:
    """Return the launches of a recurrent cell and its loss, in a search and found, in training and evaluation.

    Args:
        dtype: of the products; states are float32, or float64 with it. None are launched for float16.
    """
    if dtype == torch.float16:
        return []
    half, states = dtype == torch.bfloat16, torch.float64 if dtype == torch.float64 else torch.float32
    width, rows, steps = 32, 4, 2
    ends = [(source, target) for target in (1, 2) for source in range(target)]
    search = search_plan([("none", "tanh", "relu", "sigmoid", "identity")] * 3, ends, None, added=False)
    found = derived_plan([("tanh", 0), ("relu", 1)], [1, 2])
    x, hidden = torch.zeros(steps, rows, width, dtype=states), torch.zeros(rows, width, dtype=states)
    W0, Ws = x.new_zeros(2 * width, 2 * width), [x.new_zeros(width, 2 * width)] * 2
    with recorded() as made:
        for plan in (search, found):
            weights, codes = x.new_zeros(15), plan.encoded
            for masks in ((hidden, hidden), (None, None)):
                for running in (None, x.new_zeros(2, width)) if plan.norm else (None,):
                    cell = (x, hidden, *masks, W0, Ws, weights)
                    kept = recurrent.recurrent(*cell, running, codes, 1e-5, half, True)
                    rest = (*kept, codes, running is None, 1e-5, half, True, True)
                    recurrent.recurrent_backward(x, *cell, *rest)
        targets = torch.zeros(rows, dtype=torch.int64)
        for gradients in (True, False):
            linear_nll.linear_nll(hidden, W0[:, :width], W0[0], targets, W0[0, :rows], half, gradients, gradients)
    return made


def cell(
    ops: Ops, nodes: int, C: int, stride: int, dtype: torch.dtype,
    between: bool = False, need_params: bool = True, training: bool = True, found: bool = False,
) -> None:  # fmt: skip
    """Run forward and backward of the edges from two inputs to `nodes` nodes and, if `between`, between the nodes."""
    pairs = [(i, 2 + n) for n in range(nodes) for i in range(2 + n if between else 2)]
    edges = tuple(PlannedEdge(i, n, stride if i < 2 else 1, edge_ops(ops)) for i, n in pairs)
    plan = MixedPlan(2, nodes, edges)
    params: list[Tensor] = []
    compute = compute_dtype(dtype)
    for edge in plan.edges:
        for _, c in edge.ops:
            shapes = [shape for stage in c.stages_at(edge.stride) for shape in stage.shapes(C)]
            params += [torch.zeros(shape, dtype=compute) for shape in shapes]
    size = SIZES[C] * stride
    states = [torch.zeros(2, C, size, size, dtype=dtype) for _ in range(2)]
    weights = torch.zeros(len(pairs), len(ops), dtype=compute)
    norms = sum(norm_count(c, edge.stride) for edge in plan.edges for _, c in edge.ops)
    running = None if training else torch.zeros(norms, 2, C, dtype=compute)
    learned: list[Tensor | None] = [None, None]
    if found:
        learned = [torch.zeros(norms, 2, C, dtype=compute), torch.zeros(len(pairs), 2, dtype=compute)]
    out, saved, stats = mixed_sum(states, weights, params, running, plan.encoded, 1e-5, *learned)
    rest = (out, states, weights, params, out, saved, stats, plan.encoded, training, 1e-5)
    mixed_sum_backward(*rest, [1, 1], need_params, True, *learned)


def preprocessing(
    C: int, stride: int, dtype: torch.dtype, need_params: bool = True, training: bool = True, found: bool = False
) -> None:
    """Run forward and backward of the preprocessing of a cell's input."""
    size, compute = SIZES[C] * stride, compute_dtype(dtype)
    x = torch.zeros(2, 4 * C, size, size, dtype=dtype)
    halves = [torch.zeros(C // stride, 4 * C, 1, 1, dtype=compute)] * stride
    running = None if training else torch.zeros(1, 2, C, dtype=compute)
    affine = torch.zeros(1, 2, C, dtype=compute) if found else None
    out, saved, stats = project(x, halves, running, 1e-5, affine)
    project_backward(out, x, halves, saved, stats, training, 1e-5, True, need_params, affine)
