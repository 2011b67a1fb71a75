"""Cells with random numbers, and their outputs and gradients by plain modules or by the operators."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from fastdarts.ops.cell_plan import CellPlan, derived_plan, search_plan
from fastdarts.spaces.recurrent.architecture import PRIMITIVES, PUBLISHED
from fastdarts.spaces.recurrent.cell import CellMasks, RecurrentCore
from fastdarts.spaces.recurrent.fused import run_cell
from fastdarts.spaces.recurrent.supernet import ENDS

STEPS, ROWS = 3, 5
OPS = [PRIMITIVES] * len(ENDS)
ONE_HOT = [[1 + edge % 4] if edge % 3 else [] for edge in range(len(ENDS))]
PLANS = {
    "search": search_plan(OPS, ENDS, None, added=False),
    "sampled": search_plan(OPS, ENDS, ONE_HOT, added=False),
    "added": search_plan(OPS, ENDS, ONE_HOT, added=True),
    "darts": derived_plan(PUBLISHED["RNN_DARTS_V2"].nodes, PUBLISHED["RNN_DARTS_V2"].states),
    "enas": derived_plan(PUBLISHED["RNN_ENAS"].nodes, PUBLISHED["RNN_ENAS"].states),
}


def core_of(plan: CellPlan, width: int) -> RecurrentCore:
    core = RecurrentCore(width, len(plan.nodes), plan.norm)
    for weight in core.parameters():
        weight.data.mul_(15)  # gates and activations leave their linear parts
    return core


def inputs(plan: CellPlan, width: int, rows: int = ROWS) -> tuple[Tensor, Tensor, CellMasks, Tensor]:
    x, hidden = torch.randn(STEPS, rows, width), torch.randn(rows, width)
    masks = CellMasks(*((torch.rand(rows, width) > 0.3) / 0.7 for _ in range(2)))
    count = 1 + max(term.weight for terms in plan.nodes for term in terms)
    return x, hidden, masks, torch.rand(count) / max(map(len, plan.nodes)) ** 0.5  # larger ones let states explode


def passes(
    fused: bool, core: RecurrentCore, plan: CellPlan, values: Sequence[Tensor], masks: CellMasks, dtype: torch.dtype
) -> list[Tensor]:
    """Return outputs, running statistics and all gradients, computed in `dtype`."""
    core = copy.deepcopy(core).to(dtype)
    x, hidden, weights, grad = (value.to(dtype).clone().requires_grad_() for value in values)
    masks = CellMasks(*(mask.to(dtype) for mask in masks))
    out = run_cell(core, x, hidden, masks, weights, plan) if fused else core(x, hidden, masks, weights, plan)
    wanted = [x, hidden, weights, *core.parameters()]
    found = torch.autograd.grad(out, wanted, grad, materialize_grads=True)
    return [out.detach(), *core.buffers(), *found]
