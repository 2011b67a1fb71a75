"""A cell of plain modules against the written-out one, and its shapes."""

import re

import formulas
import pytest
import torch
from torch import Tensor

from fastdarts.primitives.table import PRIMITIVES
from fastdarts.spaces.darts.cell import Cell
from fastdarts.spaces.darts.genotype import edges_of

OTHERS = ("conv_7x1_1x7", "skip_connect", "sep_conv_7x7", "none")


@pytest.mark.parametrize(
    ("steps", "multiplier", "reduction", "reduction_prev", "primitives", "size"),
    [
        (4, 4, False, False, PRIMITIVES, (4, 5)),
        (4, 4, True, True, PRIMITIVES, (6, 4)),
        (3, 2, True, False, PRIMITIVES, (7, 5)),
        (2, 1, False, True, OTHERS, (3, 4)),
        (1, 1, True, False, ("avg_pool_3x3",), (2, 2)),
    ],
)
def test_against_the_formulas(
    steps: int,
    multiplier: int,
    reduction: bool,
    reduction_prev: bool,
    primitives: tuple[str, ...],
    size: tuple[int, int],
) -> None:
    cell = Cell(steps, multiplier, 6, 5, 4, reduction, reduction_prev, primitives, "reference").double()
    H, W = size
    twice = (2 * H - 1, 2 * W) if reduction_prev else size  # the cell before s0's was twice as large, here odd
    s0 = torch.randn(2, 6, *twice, dtype=torch.float64)
    s1 = torch.randn(2, 5, H, W, dtype=torch.float64)
    weights = torch.randn(len(edges_of(steps)), len(primitives), dtype=torch.float64).softmax(-1)
    want = formulas.cell(s0, s1, weights, primitives, steps, multiplier, reduction, reduction_prev, cell.state_dict())
    got = cell(s0, s1, weights)
    stride = 2 if reduction else 1
    assert tuple(got.shape) == tuple(want.shape) == (2, multiplier * 4, -(-H // stride), -(-W // stride))
    assert (got - want).abs().max() <= 1e-11 * want.abs().max()


def test_strides_and_preprocessing() -> None:
    normal = Cell(4, 4, 12, 16, 8, reduction=False, reduction_prev=False)
    reduction = Cell(4, 4, 12, 16, 8, reduction=True, reduction_prev=True)
    assert [op.stride for op in normal._ops] == [1] * 14
    assert [op.stride for op in reduction._ops] == [2, 2, 2, 2, 1, 2, 2, 1, 1, 2, 2, 1, 1, 1]
    assert [type(c.preprocess0).__name__ for c in (normal, reduction)] == ["ReLUConvBN", "FactorizedReduce"]
    assert type(reduction.preprocess1).__name__ == "ReLUConvBN"


S0, S1, WEIGHTS = torch.zeros(2, 6, 7, 8), torch.zeros(2, 5, 4, 4), torch.ones(5, 8)


@pytest.mark.parametrize(
    ("s0", "s1", "weights", "error", "message"),
    [
        (S1, S1, WEIGHTS, ValueError, "s0 must be a non-empty [N, 6, H, W]; got (2, 5, 4, 4)"),
        (S0, S0, WEIGHTS, ValueError, "s1 must be a non-empty [N, 5, H, W]; got (2, 6, 7, 8)"),
        (S0[:0], S1[:0], WEIGHTS, ValueError, "s0 must be a non-empty [N, 6, H, W]; got (0, 6, 7, 8)"),
        (S0.int(), S1, WEIGHTS, TypeError, "s0 must be a floating-point tensor; got torch.int32"),
        (
            S0,
            S1[:1],
            WEIGHTS,
            ValueError,
            "s1 must have N, H, W = (2, 4, 4), as s0 (2, 6, 7, 8) after halving; got (1, 5, 4, 4)",
        ),
        (
            S0,
            S1[:, :, 1:],
            WEIGHTS,
            ValueError,
            "s1 must have N, H, W = (2, 4, 4), as s0 (2, 6, 7, 8) after halving; got (2, 5, 3, 4)",
        ),
        (S0, S1.double(), WEIGHTS, TypeError, "s1 must be torch.float32 on cpu like s0; got torch.float64 on cpu"),
        (S0, S1.to("meta"), WEIGHTS, TypeError, "s1 must be torch.float32 on cpu like s0; got torch.float32 on meta"),
        (S0, S1, WEIGHTS[1:], ValueError, "weights must be [5 edges, 8 ops]; got (4, 8)"),
        (S0, S1, WEIGHTS.T, ValueError, "weights must be [5 edges, 8 ops]; got (8, 5)"),
        (S0, S1, WEIGHTS.to("meta"), TypeError, "weights must be on x's device, cpu; got meta"),
    ],
)
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_wrong_input(
    s0: Tensor, s1: Tensor, weights: Tensor, error: type[Exception], message: str, backend: str
) -> None:
    cell = Cell(2, 2, 6, 5, 4, reduction=False, reduction_prev=True, backend=backend)
    cell(S0, S1, WEIGHTS)
    with pytest.raises(error, match=re.escape(message)):
        cell(s0, s1, weights)
