"""MixedOp: the fused kernels against plain modules in float64; layouts, modes, magnitudes, odd weights; wrong input."""

import copy
import itertools
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import formulas
import pytest
import torch
from criterion import Results, assert_no_worse, assert_no_worse_than_plain, rounded_at_random
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastdarts.mixed import fused
from fastdarts.mixed.mixed_op import MixedOp
from fastdarts.ops import operators
from fastdarts.ops.plan import has_kernel
from fastdarts.primitives.table import CANDIDATES, PRIMITIVES

KNOWN = [name for name in CANDIDATES if name != "noise"]  # the candidates that are functions of their input

fused_only = pytest.mark.skipif(
    operators.unavailable(torch.device("cpu"), torch.float32) is not None,
    reason="needs fastdarts._C, which is not built",
)

SUBSETS = {
    "eight": PRIMITIVES,
    "reversed": PRIMITIVES[::-1],
    "no_skip": ("sep_conv_3x3", "max_pool_3x3", "dil_conv_5x5"),
    "sep_7x7": ("sep_conv_7x7", "none", "skip_connect"),
    "unfused": ("conv_7x1_1x7", "avg_pool_3x3", "sep_conv_5x5", "skip_connect"),
    "pools": ("max_pool_3x3", "avg_pool_3x3"),
    "nas_bench_201": ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "bare_avg_pool_3x3"),
    "with_and_without_norm": ("bare_max_pool_3x3", "nor_conv_1x1", "max_pool_3x3", "avg_pool_3x3", "bare_avg_pool_3x3"),
    "nothing_to_learn": ("none", "skip_connect"),
}


@dataclass(frozen=True)
class Case:
    C: int
    size: tuple[int, int]
    N: int
    stride: int
    primitives: str
    weights: str
    magnitude: float
    layout: str
    training: bool
    dtype: torch.dtype

    def __str__(self) -> str:
        return "-".join(str(getattr(self, field.name)).removeprefix("torch.") for field in fields(self))

    @property
    def outputs(self) -> int:
        """Values a channel has in the output."""
        return self.N * -(-self.size[0] // self.stride) * -(-self.size[1] // self.stride)

    def is_defined(self) -> bool:
        halves = self.stride == 1 or self.C % 2 == 0 or "skip_connect" not in SUBSETS[self.primitives]
        return halves and not (self.training and self.outputs == 1)


FACTORS: dict[str, list[Any]] = {
    "C": [3, 8, 16, 20, 36, 64, 100],
    "size": [(1, 1), (2, 2), (7, 5), (8, 8), (32, 32)],
    "N": [1, 2, 3, 64],
    "stride": [1, 2],
    "primitives": list(SUBSETS),
    "weights": ["softmax", "some_zero", "one_hot", "constant_one_hot"],
    "magnitude": [1e-4, 1.0, 1e4],
    "layout": ["nchw", "channels_last", "channel_slice"],
    "training": [True, False],
    "dtype": [torch.float32, torch.float64, torch.bfloat16],
}


def pairs_of(case: Case) -> set[tuple[str, Any, str, Any]]:
    values = [(name, getattr(case, name)) for name in FACTORS]
    return {(*a, *b) for a, b in itertools.combinations(values, 2)}


def covering_cases(most_elements: int) -> Iterator[Case]:
    """Few cases among which every two factors take every pair of values that a defined case can have."""
    draw = random.Random(0)
    uncovered: set[tuple[str, Any, str, Any]] = set()
    for a, b in itertools.combinations(FACTORS, 2):
        uncovered |= {(a, x, b, y) for x in FACTORS[a] for y in FACTORS[b]}
    useless = 0
    while uncovered and useless < 100:
        drawn = [Case(**{name: draw.choice(values) for name, values in FACTORS.items()}) for _ in range(200)]
        fit = [
            case
            for case in drawn
            if case.is_defined() and case.N * case.C * case.size[0] * case.size[1] <= most_elements
        ]
        best = max(fit, key=lambda case: len(pairs_of(case) & uncovered))
        if not pairs_of(best) & uncovered:
            useless += 1
            continue
        uncovered -= pairs_of(best)
        yield best


def make_input(case: Case) -> Tensor:
    extra = 3 if case.layout == "channel_slice" else 0
    x = (case.magnitude * torch.randn(case.N, case.C + extra, *case.size)).to(case.dtype)
    if case.layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    return x[:, extra // 2 : extra // 2 + case.C]


def make_weights(kind: str, count: int) -> Tensor:
    weights = torch.randn(count).softmax(-1)
    if kind == "some_zero":
        weights[::2] = 0
    elif kind != "softmax":
        weights = torch.nn.functional.one_hot(torch.tensor(count - 1), count).float()
    return weights


def make_op(case: Case) -> MixedOp:
    """In float32 also for bfloat16, as autocast has it."""
    op = MixedOp(case.C, case.stride, SUBSETS[case.primitives], "reference")
    for module in op.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
    return op.to(torch.promote_types(case.dtype, torch.float32)).train(case.training)


def with_backend(op: MixedOp, backend: str) -> MixedOp:
    op = copy.deepcopy(op)
    op.backend = backend
    return op


def results(op: MixedOp, x: Tensor, weights: Tensor, g: Tensor, learned: bool = True) -> Results:
    """Output, gradients and buffers, by name. A gradient that was not computed is zero."""
    x = x.detach().requires_grad_()
    weights = weights.detach().requires_grad_(learned)
    with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype == torch.bfloat16):
        y = op(x, weights)
    assert y.dtype == x.dtype
    leaves = {"x": x} | ({"weights": weights} if learned else {}) | dict(op.named_parameters())
    grads = torch.autograd.grad(y, list(leaves.values()), g.to(y.dtype), allow_unused=True)
    found = {
        f"d {name}": torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
    }
    assert all(grad.dtype == leaf.dtype for grad, leaf in zip(found.values(), leaves.values(), strict=True))
    return {"y": y.detach(), **found, **{name: buffer.clone() for name, buffer in op.named_buffers()}}


def compare(op: MixedOp, x: Tensor, weights: Tensor, learned: bool = True) -> None:
    """Fused against plain; op is a plain one and is left as it is."""
    eps = torch.finfo(x.dtype).eps
    generator = torch.Generator().manual_seed(1)
    H, W = (-(-size // op.stride) for size in x.shape[2:])
    g = torch.randn(x.shape[0], op.C, H, W).to(x.dtype)
    exact = copy.deepcopy(op).double()
    moved = []
    for _ in range(2):
        other = copy.deepcopy(exact)
        with torch.no_grad():
            for p in other.parameters():
                p.copy_(rounded_at_random(p, eps, generator))
        at, weights_at = (rounded_at_random(t.double(), eps, generator) for t in (x, weights))
        # Also in x's own precision: the error of the plain modules in a single sum is a draw of chance.
        lower = copy.deepcopy(other).to(weights.dtype)
        moved.append(results(lower, at.to(x.dtype), weights_at.to(weights.dtype), g, learned))
        moved.append(results(other, at, weights_at, g.double(), learned))
    ours = results(with_backend(op, "fused"), x, weights, g, learned)
    plain = results(copy.deepcopy(op), x, weights, g, learned)
    true = results(exact, x.double(), weights.double(), g.double(), learned)
    if not learned:  # then an op whose weight is 0 may be left out, and its statistics stay
        skipping = with_backend(op, "fused")
        skipping.skip_zeros = True
        without = results(skipping, x, weights, g, learned)
        idle = tuple(f"_ops.{o}." for o, weight in enumerate(weights.tolist()) if weight == 0)
        for name, buffer in op.named_buffers():
            assert not name.startswith(idle) or torch.equal(without[name], buffer)
    assert_no_worse(ours, plain, true, moved, eps)


def run_case(case: Case) -> None:
    op = make_op(case)
    weights = make_weights(case.weights, len(op.primitives)).to(torch.promote_types(case.dtype, torch.float32))
    compare(op, make_input(case), weights, learned=case.weights != "constant_one_hot")


WIDE = [  # what is too large to be among the others
    Case(64, (32, 32), 1, 1, "eight", "softmax", 1.0, "nchw", True, torch.float32),
    Case(100, (32, 32), 1, 2, "reversed", "some_zero", 1.0, "channel_slice", True, torch.bfloat16),
]


@fused_only
@pytest.mark.parametrize("case", [*covering_cases(40_000), *WIDE], ids=str)
def test_fused_is_as_good_as_plain(case: Case) -> None:
    run_case(case)


@fused_only
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("C", "N", "dtype"),
    [  # in float64, plain sums of 65,536 terms would be the yardstick of ours
        (16, 64, torch.float32),
        (16, 64, torch.bfloat16),
        (36, 8, torch.float64),
        (36, 8, torch.float32),
        (36, 8, torch.bfloat16),
    ],
    ids=str,
)
def test_fused_is_as_good_as_plain_at_the_papers_size(C: int, N: int, stride: int, dtype: torch.dtype) -> None:
    run_case(Case(C, (32, 32), N, stride, "eight", "softmax", 1.0, "channels_last", True, dtype))


@fused_only
@settings(max_examples=15)
@given(st.data())
def test_any_subset_in_any_order(data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(KNOWN), min_size=1, max_size=5, unique=True))
    stride, N = data.draw(st.sampled_from([1, 2])), data.draw(st.integers(1, 4))
    C = 2 * data.draw(st.integers(1, 10)) - (stride == 1 and data.draw(st.booleans()))
    H, W = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    training = data.draw(st.booleans()) and (N > 1 or max(H, W) > stride)
    op = MixedOp(C, stride, names, "reference").double().train(training)
    x = torch.randn(N, C, H, W, dtype=torch.float64)
    compare(op, x, torch.randn(len(names), dtype=torch.float64).softmax(-1))


@fused_only
@pytest.mark.parametrize("stride", [1, 2])
def test_the_same_op_twice(stride: int) -> None:
    names = ["max_pool_3x3", "sep_conv_3x3", "skip_connect", "avg_pool_3x3", "nor_conv_1x1", "bare_max_pool_3x3"] * 2
    op = MixedOp(6, stride, names, "reference").double()
    compare(op, torch.randn(3, 6, 8, 7, dtype=torch.float64), torch.randn(12, dtype=torch.float64).softmax(-1))


@fused_only
@pytest.mark.parametrize("stride", [1, 2])
def test_all_ops_but_the_dense_convolution_have_kernels(stride: int) -> None:
    op = MixedOp(8, stride, SUBSETS["nas_bench_201"], "fused")
    read = fused.read(op)
    assert [op.primitives[column] for column in read.fused] == ["skip_connect", "nor_conv_1x1", "bare_avg_pool_3x3"]
    assert [op.primitives[column] for column in read.others] == ["nor_conv_3x3"]


@fused_only
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (8, 8)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("value", [0.0, -1.0, 2.0])
def test_constant_images(value: float, stride: int, size: tuple[int, int]) -> None:
    """Variance 0 in every pool: a batch norm multiplies rounding by up to 316, its gradient again; all maxima tie."""
    # A separable convolution has a relu between its halves: after a constant positive image rounding decides it.
    names = [name for name in KNOWN if value <= 0 or not name.startswith("sep")]
    op = MixedOp(4, stride, names, "reference").double()
    x = torch.full((3, 4, *size), value, dtype=torch.float64)
    weights = torch.randn(len(names), dtype=torch.float64).softmax(-1)
    g = torch.randn_like(x[:, :, ::stride, ::stride])
    want = results(copy.deepcopy(op), x, weights, g)
    got = results(with_backend(op, "fused"), x, weights, g)
    eps = torch.finfo(torch.float64).eps
    for name, exact in want.items():
        allowed = 100 * eps * 316**2 * max(1.0, exact.abs().max().item())  # 100: terms of a sum
        assert (got[name] - exact).abs().max() <= allowed, name


@fused_only
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", [name for name in KNOWN if name != "none" and has_kernel(CANDIDATES[name])])
def test_constant_channels(name: str, stride: int, dtype: torch.dtype) -> None:
    """Each op alone, on images of one number and of nearly one, and on a 2x2 image, whose averages are all the same."""
    images = [torch.full((3, 4, 6, 6), -0.7)]
    if not name.startswith("sep"):  # a relu between its halves: after a constant positive image rounding decides it
        images.append(torch.full((3, 4, 6, 6), 0.7))
        images.append(0.7 + 1e-3 * torch.randn(3, 4, 6, 6))
        images.append(torch.randn(1, 4, 2, 2).repeat(3, 1, 1, 1))
    op = MixedOp(4, stride, [name], "reference").to(torch.promote_types(dtype, torch.float32))
    weights = torch.ones(1, dtype=torch.promote_types(dtype, torch.float32))
    for i, image in enumerate(images):
        x = image.to(dtype)
        g = torch.randn(x[:, :, ::stride, ::stride].shape).to(dtype)
        ours = results(with_backend(op, "fused"), x, weights, g)
        plain = results(copy.deepcopy(op), x, weights, g)
        true = results(copy.deepcopy(op).double(), x.double(), weights.double(), g.double())
        for key, exact in true.items():
            if exact.is_floating_point():
                assert_no_worse_than_plain(ours[key], plain[key], exact, dtype, f"{key} of image {i}")


@fused_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_tied_maximum_gives_its_gradient_to_the_first_pixel(dtype: torch.dtype) -> None:
    op = MixedOp(3, 1, ["max_pool_3x3"], "reference").eval()  # running mean 0, variance 1: no mixing of pixels
    x = torch.randint(-1, 2, (2, 3, 6, 5)).to(dtype)
    weights, g = torch.ones(1), torch.randint(-3, 4, (2, 3, 6, 5)).to(dtype)
    want = results(copy.deepcopy(op), x, weights, g)["d x"].float()
    got = results(with_backend(op, "fused"), x, weights, g)["d x"].float()
    assert torch.equal(got == 0, want == 0)
    torch.testing.assert_close(got, want, rtol=2 * torch.finfo(dtype).eps, atol=0)


@fused_only
@pytest.mark.parametrize("name", [name for name in KNOWN if name != "none"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_does_not_vanish(name: str, value: float) -> None:
    """A search stops at a loss that is not finite; it must not be hidden by a relu or a maximum.

    Of 4 channels two images share the kernels' lanes, and with them what is not finite.
    """
    for C in (12, 4):
        op = MixedOp(C, 1, [name], "reference").eval()
        x = torch.randn(2, C, 5, 5)
        x[0, 1, 2, 2] = value
        weights = torch.ones(1)
        with torch.no_grad():
            want, got = op(x, weights).isfinite(), with_backend(op, "fused")(x, weights).isfinite()
        assert torch.equal(got[0], want[0])
        assert got[1].all() or C == 4


@fused_only
@pytest.mark.parametrize("name", [name for name in KNOWN if name != "none"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_not_a_number_reaches_all_gradients_that_it_reaches_in_modules(name: str, training: bool, stride: int) -> None:
    op = MixedOp(12, stride, [name], "reference").train(training)
    x = torch.randn(2, 12, 6, 6)
    x[0, 1, 2, 2] = float("nan")
    weights = torch.ones(1)
    g = torch.randn_like(op(x, weights))
    want, got = (results(copy.deepcopy(one), x, weights, g) for one in (op, with_backend(op, "fused")))
    for key, values in want.items():
        assert not got[key][~values.isfinite()].isfinite().any(), key


@fused_only
def test_only_none() -> None:
    op = MixedOp(3, 2, ["none"], "fused")
    x = torch.randn(2, 3, 5, 4, requires_grad=True)
    weights = torch.ones(1, requires_grad=True)
    y = op(x, weights)
    assert torch.equal(y, torch.zeros(2, 3, 3, 2))
    dx, dweights = torch.autograd.grad(y.sum(), [x, weights], create_graph=True)
    assert not dx.any()
    assert not dweights.any()


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_weights_of_every_kind(backend: str) -> None:
    op = MixedOp(4, 1, backend=backend).double()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    row = torch.randn(8, dtype=torch.float64).softmax(-1)
    want = formulas.mixed(x, row, PRIMITIVES, 1, op.state_dict())
    table = torch.zeros(8, 3, dtype=torch.float64)
    table[:, 1] = row
    for weights in (row, table[:, 1], row.tolist(), list(row), tuple(row), nn.Parameter(row)):
        torch.testing.assert_close(op(x, weights), want)
    torch.testing.assert_close(op(x, [0, 0, 0, 1, 0, 0, 0, 0]), x)
    torch.testing.assert_close(op(x, [0.0, 0, 0, torch.ones(()), 0, 0, 0, 0]), x)
    torch.testing.assert_close(op(x, torch.tensor([0, 0, 0, 2, 0, 0, 0, 0])), 2 * x)


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weights_of_another_precision(backend: str, dtype: torch.dtype) -> None:
    other = {torch.float32: torch.float64, torch.float64: torch.float32}[dtype]
    op = MixedOp(4, 1, backend=backend).to(dtype)
    weights = torch.full((8,), 0.125, dtype=other, requires_grad=True)
    y = op(torch.randn(2, 4, 5, 5, dtype=dtype), weights)
    y.square().sum().backward()
    assert (y.dtype, weights.grad.dtype) == (dtype, other)


ONES = torch.ones(8)


@pytest.mark.parametrize(
    ("x", "weights", "error", "message"),
    [
        (torch.zeros(2, 3, 5, 5), ONES, ValueError, "x must be a non-empty [N, 4, H, W]; got (2, 3, 5, 5)"),
        (torch.zeros(4, 5, 5), ONES, ValueError, "x must be a non-empty [N, 4, H, W]; got (4, 5, 5)"),
        (torch.zeros(0, 4, 5, 5), ONES, ValueError, "x must be a non-empty [N, 4, H, W]; got (0, 4, 5, 5)"),
        (torch.zeros(2, 4, 5, 0), ONES, ValueError, "x must be a non-empty [N, 4, H, W]; got (2, 4, 5, 0)"),
        (
            torch.zeros(2, 4, 5, 5, dtype=torch.int64),
            ONES,
            TypeError,
            "x must be a floating-point tensor; got torch.int64",
        ),
        (
            torch.zeros(2, 4, 5, 5),
            ONES[1:],
            ValueError,
            "weights must hold one number for each of the 8 ops; got shape (7,)",
        ),
        (torch.zeros(2, 4, 5, 5), [1.0] * 9, ValueError, "weights must hold one number for each of the 8 ops; got 9"),
        (torch.zeros(2, 4, 5, 5), torch.ones(8, 2), ValueError, "each of the 8 ops; got shape (8, 2)"),
        (torch.zeros(2, 4, 5, 5), torch.ones(()), ValueError, "each of the 8 ops; got shape ()"),
        (torch.zeros(2, 4, 5, 5), ONES.to("meta"), TypeError, "weights must be on x's device, cpu; got meta"),
        (torch.zeros(2, 4, 5, 5), ONES.cfloat(), TypeError, "weights must be real numbers; got torch.complex64"),
    ],
)
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_wrong_input(x: Tensor, weights: Any, error: type[Exception], message: str, backend: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        MixedOp(4, 1, backend=backend)(x, weights)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_other_wrong_input(backend: str) -> None:
    with pytest.raises(TypeError, match="x must be a floating-point tensor; got ndarray"):
        MixedOp(4, 1, backend=backend)(torch.zeros(2, 4, 5, 5).numpy(), ONES)
    with pytest.raises(ValueError, match=r"more than (1|one) value per channel"):
        MixedOp(4, 2, backend=backend)(torch.zeros(1, 4, 2, 2), ONES)


@fused_only
def test_precisions_that_do_not_fit() -> None:
    op = MixedOp(4, 1)
    with pytest.raises(
        TypeError, match=r"params must be torch.float64 on cpu to go with x of torch.float64; got torch.float32"
    ):
        op(torch.zeros(2, 4, 5, 5).double(), ONES)
    with pytest.raises(
        TypeError, match=r"params must be torch.float32 on cpu to go with x of torch.float32; got torch.float64"
    ):
        op.double()(torch.zeros(2, 4, 5, 5), ONES)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="C must be at least 1; got 0"):
        MixedOp(0, 1)
    with pytest.raises(ValueError, match="stride must be 1 or 2; got 3"):
        MixedOp(4, 3, ["none"])
    with pytest.raises(ValueError, match="C_out must be even"):
        MixedOp(3, 2)
    with pytest.raises(ValueError, match="backend must be one of auto, reference, fused; got 'cpp'"):
        MixedOp(4, 1, backend="cpp")
    with pytest.raises(ValueError, match="primitives"):
        MixedOp(4, 1, [])


def test_explicit_wish_that_cannot_be_met() -> None:
    op = MixedOp(4, 1, backend="fused").half()
    with pytest.raises(RuntimeError, match=r"backend 'fused' cannot serve here: .*; use 'auto' or 'reference'"):
        op(torch.zeros(2, 4, 5, 5, dtype=torch.float16), ONES)


@fused_only
def test_batch_norms_that_no_kernel_computes() -> None:
    x, weights = torch.randn(3, 4, 5, 5), torch.randn(8).softmax(-1)
    changes = {
        "differ in class, mode": lambda norms: norms[2].eval(),
        "differ in class, mode, eps": lambda norms: setattr(norms[0], "eps", 1e-3),
        "without momentum": lambda norms: [setattr(norm, "momentum", None) for norm in norms],
    }
    for reason, change in changes.items():
        op = MixedOp(4, 1, backend="fused")
        change([m for m in op.modules() if isinstance(m, nn.BatchNorm2d)])
        with pytest.raises(RuntimeError, match=reason):
            op(x, weights)
        op.backend = "auto"
        twin = with_backend(op, "reference")
        assert torch.equal(op(x, weights), twin(x, weights))
        assert all(map(torch.equal, op.buffers(), twin.buffers()))


@fused_only
def test_batch_norms_frozen_while_the_rest_trains() -> None:
    op = MixedOp(4, 1, backend="reference").double()
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    op(x, ONES)  # running statistics that differ from this batch's
    for module in op.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    compare(op, 2 * x + 1, ONES.double())


@fused_only
def test_modules_put_in_place_of_an_op() -> None:
    op = MixedOp(4, 1, backend="reference").double()
    op._ops[4] = nn.Conv2d(4, 4, 1).double()
    op._ops[3] = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)).double()
    op._ops[0] = nn.Tanh()
    called: list[str] = []
    op._ops[5].register_forward_hook(lambda *_: called.append("hook"))
    x, weights = torch.randn(3, 4, 5, 5, dtype=torch.float64), torch.randn(8, dtype=torch.float64).softmax(-1)
    torch.testing.assert_close(with_backend(op, "fused")(x, weights), op(x, weights), rtol=1e-11, atol=1e-11)
    assert called == ["hook"] * 2


@fused_only
def test_same_bits_every_time_and_nearly_the_same_for_any_number_of_threads() -> None:
    op = MixedOp(20, 1)
    x, weights, g = torch.randn(5, 20, 17, 9), torch.randn(8).softmax(-1), torch.randn(5, 20, 17, 9)
    found = {}
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        first, again = (results(copy.deepcopy(op), x, weights, g) for _ in range(2))
        assert all(torch.equal(first[name], again[name]) for name in first)
        found[threads] = first
    for name, one in found[1].items():
        for threads in (2, 3):
            scale = one.abs().max().item()
            difference = (found[threads][name] - one).abs().max().item()
            assert difference <= 200 * torch.finfo(torch.float32).eps * scale, (name, threads)  # 765 terms a sum


@fused_only
def test_unknown_instruction_set() -> None:
    command = [
        sys.executable,
        "-c",
        "import torch, fastdarts; fastdarts.MixedOp(2, 1)(torch.randn(2, 2, 3, 3), [1.0] * 8)",
    ]
    done = subprocess.run(
        command, env={**os.environ, "FASTDARTS_CPU": "sse9"}, capture_output=True, text=True, check=False
    )
    assert "ValueError: FASTDARTS_CPU must be amx, avx512, avx2 or portable; got sse9" in done.stderr


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("weight", [torch.ones(2, 1, 1, 1), torch.ones(2), torch.ones((), dtype=torch.complex64)])
def test_a_list_of_op_weights_holds_single_real_numbers(weight: Tensor, backend: str) -> None:
    edge = MixedOp(4, 1, backend=backend)
    with pytest.raises(ValueError, match=r"weights must hold one number for each of the 8 ops; got .* for op 3"):
        edge(torch.randn(2, 4, 5, 5), [0.1, 0.1, torch.tensor([0.1]), weight, 0.1, 0.1, 0.1, 0.1])
