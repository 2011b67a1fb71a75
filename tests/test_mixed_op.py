"""MixedOp: the fused kernels against the plain modules in float64; layouts, modes, magnitudes, odd weights; wrong input."""

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
from criterion import Results, assert_no_worse, rounded_at_random
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastdarts import ops
from fastdarts.mixed_op import MixedOp
from fastdarts.space import CANDIDATES, PRIMITIVES

fused_only = pytest.mark.skipif(
    ops.unavailable(torch.device("cpu"), torch.float32) is not None, reason="needs the extension, which is not built"
)

SUBSETS = {
    "eight": PRIMITIVES,
    "reversed": PRIMITIVES[::-1],
    "no_skip": ("sep_conv_3x3", "max_pool_3x3", "dil_conv_5x5"),
    "sep_7x7": ("sep_conv_7x7", "none", "skip_connect"),
    "unfused": ("conv_7x1_1x7", "avg_pool_3x3", "sep_conv_5x5", "skip_connect"),
    "pools": ("max_pool_3x3", "avg_pool_3x3"),
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
        fit = [case for case in drawn if case.is_defined() and case.N * case.C * case.size[0] * case.size[1] <= most_elements]
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
    """Output, gradients and buffers, by name. A gradient that nobody computed is zero."""
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
        at = rounded_at_random(x.double(), eps, generator)
        moved.append(results(other, at, rounded_at_random(weights.double(), eps, generator), g.double(), learned))
    ours = results(with_backend(op, "fused"), x, weights, g, learned)
    plain = results(copy.deepcopy(op), x, weights, g, learned)
    true = results(exact, x.double(), weights.double(), g.double(), learned)
    if not learned:  # then an op whose weight is 0 is not computed at all and its statistics stay
        idle = tuple(f"_ops.{o}." for o, weight in enumerate(weights.tolist()) if weight == 0)
        for name, buffer in op.named_buffers():
            assert not name.startswith(idle) or torch.equal(ours[name], buffer)
        ours, plain, true, *moved = (
            {name: value for name, value in found.items() if not name.startswith(idle)}
            for found in (ours, plain, true, *moved)
        )
    assert_no_worse(ours, plain, true, moved, eps)


def run_case(case: Case) -> None:
    op = make_op(case)
    weights = make_weights(case.weights, len(op.primitives)).to(torch.promote_types(case.dtype, torch.float32))
    compare(op, make_input(case), weights, learned=case.weights != "constant_one_hot")


@fused_only
@pytest.mark.parametrize("case", list(covering_cases(40_000)), ids=str)
def test_fused_is_as_good_as_plain(case: Case) -> None:
    run_case(case)


@fused_only
@pytest.mark.slow
@pytest.mark.parametrize("dtype", FACTORS["dtype"], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("C", [16, 36])
def test_fused_is_as_good_as_plain_at_the_papers_size(C: int, stride: int, dtype: torch.dtype) -> None:
    run_case(Case(C, (32, 32), 64, stride, "eight", "softmax", 1.0, "channels_last", True, dtype))
