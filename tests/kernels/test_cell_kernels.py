"""The Triton kernels of the recurrent cell and its loss against plain modules, in Triton's interpreter."""

import math
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cell_cases import PLANS, STEPS, core_of, inputs, passes
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from fastdarts.ops.recurrent import linear_nll
from fastdarts.spaces.recurrent.cell import CellMasks
from fastdarts.spaces.recurrent.fused import run_cell

pytest.importorskip("triton", reason="the kernels need Triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("with a GPU at hand its compiled kernels are tested", allow_module_level=True)

from fastdarts.kernels import cell_tables, launch
from fastdarts.kernels import linear_nll as loss_kernels
from fastdarts.kernels import recurrent as cell_kernels

KERNELS: dict[str, Any] = {
    "recurrent": cell_kernels.recurrent,
    "recurrent_backward": cell_kernels.recurrent_backward,
    "linear_nll": loss_kernels.linear_nll,
}
ROWS = 9  # more than a block of the tests


@pytest.fixture(autouse=True)
def kernels_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the operators run the Triton kernels on CPU tensors, with small blocks and groups of two steps."""
    monkeypatch.setattr(cell_kernels, "_ROWS", {"num_warps": 4, "BLOCK_R": 8, "BLOCK_D": 8})
    for name, value in (("BLOCK_R", 8), ("BLOCK_D", 8), ("ROWS_OF_GROUP", 2 * ROWS)):
        monkeypatch.setattr(cell_kernels, name, value)
    monkeypatch.setattr(cell_kernels, "_ELEMENTS", {"num_warps": 4, "BLOCK": 64})
    monkeypatch.setattr(cell_kernels, "BLOCK", 64)
    monkeypatch.setattr(loss_kernels, "BLOCK", 16)
    library = torch.library.Library("fastdarts", "IMPL")
    for name, kernel in KERNELS.items():
        library.impl(name, kernel, "CPU", allow_override=True)
    yield
    library._destroy()


def cases(name: str, width: int, training: bool = True, rows: int = ROWS) -> tuple[Any, ...]:
    plan = PLANS[name]
    x, hidden, masks, weights = inputs(plan, width, rows)
    return core_of(plan, width).train(training), plan, [x, hidden, weights, torch.randn(STEPS, rows, width)], masks


@pytest.mark.parametrize(
    ("name", "width", "training"),
    [
        ("search", 13, True),
        ("search", 1, False),
        ("sampled", 13, False),
        ("added", 13, True),
        ("darts", 13, True),
        ("enas", 1, True),
    ],
)
def test_float64_equals_the_plain_modules(name: str, width: int, training: bool) -> None:
    case = cases(name, width, training)
    for expected, found in zip(*(passes(kind, *case, torch.float64) for kind in (False, True)), strict=True):
        scale = max(float(expected.abs().max()), 1e-3)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["search", "darts"])
def test_narrower_types_are_no_worse_than_the_plain_modules(
    name: str, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error against float64 is at most twice theirs, over so many rows that a relu which switches in one of them
    and not in the other does not decide."""
    monkeypatch.setattr(cell_kernels, "_ROWS", {"num_warps": 4, "BLOCK_R": 128, "BLOCK_D": 16})
    monkeypatch.setattr(cell_kernels, "BLOCK_R", 128)
    monkeypatch.setattr(cell_kernels, "BLOCK_D", 16)
    case = cases(name, 13, rows=200)
    truth = passes(False, *case, torch.float64)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        plain, fused = (passes(kind, *case, torch.float32) for kind in (False, True))
    for index, (true, theirs, ours) in enumerate(zip(truth, plain, fused, strict=True)):
        eps = 2**-8 if half else 4 * torch.finfo(torch.float32).eps
        errors = [float((value.double() - true.double()).pow(2).mean().sqrt()) for value in (ours, theirs)]
        floor = eps * float(true.double().pow(2).mean().sqrt())
        assert errors[0] <= 2 * errors[1] + floor, f"result {index}: {errors}"


def test_without_masks_and_with_numbers_that_are_none() -> None:
    core, plan, (x, hidden, weights, _), _ = cases("darts", 5)
    for scale in (1.0, 1e4, math.nan):
        found, expected = (
            run_cell(core, x * scale, hidden, None, weights, plan),
            core(x * scale, hidden, None, weights, plan),
        )
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("chunk", [1 << 20, 7])
@pytest.mark.parametrize("words", [1, 16, 37])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_loss_equals_cross_entropy(
    dtype: torch.dtype, words: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_kernels, "CHUNK", chunk)
    values = 3 * torch.randn(70, 6), torch.randn(words, 6), torch.randn(words)
    targets, shares = torch.randint(words, (70,)), torch.rand(70)

    def losses(kind: torch.dtype, fused: bool) -> list[Tensor]:
        h, W, b = (value.to(kind).clone().requires_grad_() for value in values)
        if fused:
            loss = linear_nll(h, W, b, targets, shares.to(kind))
        else:
            loss = (cross_entropy(h @ W.t() + b, targets, reduction="none") * shares.to(kind)).sum()
        return [loss.detach(), *torch.autograd.grad(2 * loss, (h, W, b))]

    truth = losses(torch.float64, False)
    for true, theirs, ours in zip(truth, losses(dtype, False), losses(dtype, True), strict=True):
        floor = 16 * torch.finfo(dtype).eps * max(float(true.abs().max()), 1.0)
        errors = [float((value.double() - true).abs().max()) for value in (ours, theirs)]
        assert errors[0] <= 2 * errors[1] + floor


class Launches(TorchDispatchMode):
    """Count what would be launched on a GPU: an operator that is no view and computes something, and each kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "fastdarts":  # counted by what it calls
            with self:
                return KERNELS[func._opname](*args, **(kwargs or {}))
        allocates = func.overloadpacket in (torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.new_empty)
        free = func.is_view or allocates or func.overloadpacket in (torch.ops.aten.detach, torch.ops.aten._unsafe_view)
        self.count += not free
        return func(*args, **(kwargs or {}))


def test_a_search_pass_launches_fifteen_times_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward of a window of 35 words, of which the GPU would run as many groups as with 256 rows."""
    monkeypatch.setattr(cell_kernels, "ROWS_OF_GROUP", 16 * 2)
    plan, steps, rows, width = PLANS["search"], 35, 2, 2
    core = core_of(plan, width)
    x, hidden = torch.randn(steps, rows, width), torch.randn(rows, width)
    masks = CellMasks(*torch.ones(2, rows, width).unbind())
    weights = torch.rand(180).requires_grad_()
    decoder, bias, targets = torch.randn(5, width), torch.randn(5), torch.randint(5, (steps * rows,))
    counts = []
    for fused in (False, True):
        with Launches() as counted:
            monkeypatch.setattr(cell_kernels, "launch", lambda *_, **__: setattr(counted, "count", counted.count + 1))
            monkeypatch.setattr(loss_kernels, "launch", lambda *_, **__: setattr(counted, "count", counted.count + 1))
            run = run_cell(core, x, hidden, masks, weights, plan) if fused else core(x, hidden, masks, weights, plan)
            flat = run.flatten(0, 1)
            loss = (
                linear_nll(flat, decoder, bias, targets) if fused else cross_entropy(flat @ decoder.t() + bias, targets)
            )
            torch.autograd.grad(loss, [weights, *core.parameters()])
        counts.append(counted.count)
    plain, ours = counts
    assert ours < 2000
    assert plain > 15 * ours, counts


def test_tables_of_a_plan() -> None:
    t = cell_tables.cell_tables(tuple(PLANS["added"].encoded), torch.device("cpu"))
    assert t.states == 9
    assert t.columns == 2 * sum(PLANS["added"].readers)
    weights = torch.rand(36, 6, dtype=torch.float64)
    spread = t.spread(weights)
    assert spread[0] == 1  # tanh from the hidden state
    assert float(spread[1:].sum()) == pytest.approx(float(weights.flatten()[t.terms].sum()))
    found = t.gather(spread[None], weights)
    used = torch.zeros_like(weights).flatten()
    used[t.terms] = 1
    many = t.places.bincount()[t.places] > 1  # several edges add to one state: each gets the whole gradient
    torch.testing.assert_close(found.flatten()[t.terms[~many]], weights.flatten()[t.terms[~many]])
    assert (found.flatten()[used == 0] == 0).all()
    assert launch.INTERPRETED
