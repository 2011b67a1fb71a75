"""The fused recurrent cell and the fused loss against the plain modules: outputs, gradients, statistics, checks."""

import math

import pytest
import torch
from cell_cases import PLANS, ROWS, STEPS, core_of, inputs, passes
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastdarts.ops.cell_plan import CellPlan, Term, search_plan
from fastdarts.ops.recurrent import linear_nll, recurrent, unavailable
from fastdarts.spaces.recurrent.architecture import PRIMITIVES
from fastdarts.spaces.recurrent.cell import RecurrentCore
from fastdarts.spaces.recurrent.fused import run_cell
from fastdarts.spaces.recurrent.supernet import ENDS

pytestmark = pytest.mark.skipif(
    unavailable(torch.device("cpu"), torch.float32) is not None, reason="fastdarts._C is not built"
)

WIDTHS = [1, 7, 16, 21]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PLANS)
def test_float64_equals_the_plain_modules(name: str, width: int, training: bool) -> None:
    plan = PLANS[name]
    core = core_of(plan, width).train(training)
    x, hidden, masks, weights = inputs(plan, width)
    values = [x, hidden, weights, torch.randn(STEPS, ROWS, width)]
    plain, fused = (passes(kind, core, plan, values, masks, torch.float64) for kind in (False, True))
    for expected, found in zip(plain, fused, strict=True):
        scale = max(float(expected.abs().max()), 1e-3)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("name", PLANS)
def test_float32_is_no_worse_than_the_plain_modules(name: str) -> None:
    """The error against float64 is at most twice that of plain modules, plus a few roundings of the largest value."""
    plan = PLANS[name]
    core = core_of(plan, 21)
    x, hidden, masks, weights = inputs(plan, 21)
    values = [x, hidden, weights, torch.randn(STEPS, ROWS, 21)]
    truth = passes(False, core, plan, values, masks, torch.float64)
    plain, fused = (passes(kind, core, plan, values, masks, torch.float32) for kind in (False, True))
    for index, (true, theirs, ours) in enumerate(zip(truth, plain, fused, strict=True)):
        floor = 16 * torch.finfo(torch.float32).eps * float(true.abs().max())
        errors = [float((value.double() - true).abs().max()) for value in (ours, theirs)]
        assert errors[0] <= 2 * errors[1] + floor, f"result {index}: {errors[0]:.2e}, plain {errors[1]:.2e}"


@pytest.mark.parametrize("name", ["search", "darts"])
def test_products_in_bfloat16(name: str) -> None:
    """As autocast runs the plain modules: the error is at most twice theirs, over so many rows that a relu which
    switches in one of them and not in the other does not decide."""
    plan = PLANS[name]
    core = core_of(plan, 21)
    x, hidden, masks, weights = inputs(plan, 21, rows=200)
    values = [x, hidden, weights, torch.randn(STEPS, 200, 21)]
    truth = passes(False, core, plan, values, masks, torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        plain, fused = (passes(kind, core, plan, values, masks, torch.float32) for kind in (False, True))
    for index, (true, theirs, ours) in enumerate(zip(truth, plain, fused, strict=True)):
        errors = [float((value.double() - true.double()).pow(2).mean().sqrt()) for value in (ours, theirs)]
        floor = 2**-8 * float(true.double().pow(2).mean().sqrt())
        assert errors[0] <= 2 * errors[1] + floor, f"result {index}: {errors[0]:.2e}, plain {errors[1]:.2e}"


def test_without_masks_and_for_any_number_of_threads() -> None:
    plan = PLANS["search"]
    core, (x, hidden, _, weights) = core_of(plan, 13), inputs(plan, 13)
    x, hidden = torch.randn(2, 70, 13), torch.randn(70, 13)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(run_cell(core.eval(), x, hidden, None, weights, plan))
    assert torch.equal(*results)
    torch.testing.assert_close(results[0], core(x, hidden, None, weights, plan), rtol=1e-5, atol=1e-5)


def test_saturated_gates_and_not_a_number() -> None:
    plan = CellPlan(((Term(0, 1, 0), Term(0, 3, 1)),), (1,), norm=False)
    core = RecurrentCore(2, 1, norm=False)
    x = torch.tensor([-1e4, 1e4]).repeat(1, 2, 1)
    for weight in core.parameters():
        weight.data.fill_(100)
    weights, hidden = torch.tensor([0.5, 0.5]), torch.randn(2, 2)
    torch.testing.assert_close(
        run_cell(core, x, hidden, None, weights, plan), core(x, hidden, None, weights, plan), rtol=0, atol=1e-6
    )
    assert run_cell(core, x * math.nan, hidden, None, weights, plan).isnan().all()


def test_gradcheck_and_opcheck() -> None:
    plan = search_plan([PRIMITIVES] * 3, ENDS[:3], None, added=False)
    torch.set_default_dtype(torch.float64)
    x, hidden = torch.randn(2, 3, 2, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    masks = torch.rand(3, 2), torch.rand(3, 2)
    W0, W1, W2 = (torch.randn(*shape, requires_grad=True) for shape in ((4, 4), (2, 4), (2, 4)))
    weights = torch.rand(15, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, hidden, weights, W0, *Ws: recurrent(x, hidden, masks, W0, Ws, weights, None, plan)[0],
        (x, hidden, weights, W0, W1, W2),
        atol=1e-6,
    )
    # relu's kinks are met with probability zero
    arguments = (x, hidden, *masks, W0, [W1, W2], weights, None, plan.encoded, 1e-5, False, True)
    torch.library.opcheck(torch.ops.fastdarts.recurrent.default, arguments)
    h, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((4, 3), (5, 3), (5,)))
    targets = torch.tensor([0, 4, 2, 2])
    assert torch.autograd.gradcheck(lambda *a: linear_nll(*a, targets), (h, weight, bias))
    shares = torch.tensor([0.5, 0.0, 0.25, 0.25])
    assert torch.autograd.gradcheck(lambda *a: linear_nll(*a, targets, shares), (h, weight, bias))
    torch.library.opcheck(torch.ops.fastdarts.linear_nll.default, (h, weight, bias, targets, shares, False, True, True))


def test_a_pass_for_alphas_alone_makes_no_matrix_gradient() -> None:
    plan = PLANS["search"]
    core, (x, hidden, masks, weights) = core_of(plan, 8), inputs(plan, 8)
    weights.requires_grad_()
    calls: list[tuple[bool, bool]] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is torch.ops.fastdarts.recurrent_backward.default:
                calls.append(tuple(args[-2:]))
            return func(*args, **(kwargs or {}))

    for matrix in core.parameters():
        matrix.requires_grad_(False)
    with Watch():
        torch.autograd.grad(run_cell(core, x, hidden, masks, weights, plan).sum(), weights)
    assert calls == [(False, False)]


@pytest.mark.parametrize("words", [1, 2, 16, 37, 1000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_loss_equals_cross_entropy(dtype: torch.dtype, words: int) -> None:
    h, weight, bias = torch.randn(9, 6), torch.randn(words, 6), torch.randn(words)
    targets = torch.randint(words, (9,))
    layer = nn.Linear(6, words)

    def losses(kind: torch.dtype, fused: bool) -> list[Tensor]:
        a, W, b = (value.to(kind).clone().requires_grad_() for value in (3 * h, weight, bias))
        loss = linear_nll(a, W, b, targets) if fused else cross_entropy(a @ W.t() + b, targets)
        return [loss.detach(), *torch.autograd.grad(2 * loss, (a, W, b))]

    assert layer.weight.shape == weight.shape
    truth = losses(torch.float64, False)
    for true, theirs, ours in zip(truth, losses(dtype, False), losses(dtype, True), strict=True):
        floor = 16 * torch.finfo(dtype).eps * max(float(true.abs().max()), 1.0)
        errors = [float((value.double() - true).abs().max()) for value in (ours, theirs)]
        assert errors[0] <= 2 * errors[1] + floor


def test_what_is_wrong_is_said() -> None:
    plan = PLANS["darts"]
    core, (x, hidden, masks, weights) = core_of(plan, 4), inputs(plan, 4)
    with pytest.raises(ValueError, match=r"hidden must be \[5, 4\]; got \[4, 4\]"):
        run_cell(core, x, hidden[:4], masks, weights, plan)
    with pytest.raises(TypeError, match="W0 must be contiguous Float on the device of x"):
        run_cell(core.double(), x, hidden, masks, weights, plan)
    with pytest.raises(ValueError, match="more than one column"):
        run_cell(core_of(PLANS["search"], 4), x[:, :1], hidden[:1], None, torch.rand(180), PLANS["search"])
    with pytest.raises(IndexError, match="target 5 is none of 5 words"):
        linear_nll(torch.randn(2, 3), torch.randn(5, 3), torch.randn(5), torch.tensor([0, 5]))
    assert CellPlan.decode(PLANS["enas"].encoded) == PLANS["enas"]
    for numbers in ([], [0, 2**40], [0, 1, 1, 2, 0], [0, 1, 7, 1, 0], [0, 1, 1, 1, 1, 5, 1, 0], [0, 1, 1, 1, 0, 9]):
        with pytest.raises(ValueError, match="recurrent: the plan"):
            CellPlan.decode(numbers)
