"""The plain modules against the written-out formulas, in float64."""

import formulas
import pytest
import torch
from formulas import batch_norm
from torch import Tensor, nn

from fastdarts.primitives.modules import FactorizedReduce, ReLUConvBN, build, build_for_search
from fastdarts.primitives.table import CANDIDATES, candidate

SIZES = [(1, 1), (2, 2), (3, 4), (7, 5), (8, 8), (1, 6)]


def image(N: int, C: int, H: int, W: int) -> Tensor:
    return torch.randn(N, C, H, W, dtype=torch.float64)


def assert_close(got: Tensor, want: Tensor) -> None:
    """Equal but for float64 rounding: sums of some hundred terms, made up to 316 times larger by a batch norm."""
    assert got.shape == want.shape
    assert (got - want).abs().max() <= 1e-11 * max(1.0, want.abs().max().item())


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", [name for name in CANDIDATES if name != "noise"])
def test_each_candidate(name: str, stride: int, size: tuple[int, int]) -> None:
    x = image(3, 4, *size)
    op = build_for_search(name, 4, stride).double()
    want = formulas.candidate(name, x, stride, op.state_dict())
    assert tuple(want.shape) == (3, 4, -(-size[0] // stride), -(-size[1] // stride))
    assert_close(op(x), batch_norm(want) if candidate(name).is_pool and candidate(name).norm else want)
    evaluated = build(name, 4, stride).double()  # no batch norm behind a pool
    assert_close(evaluated(x), formulas.candidate(name, x, stride, evaluated.state_dict()))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_preprocessing(size: tuple[int, int]) -> None:
    x = image(2, 5, *size)
    same = ReLUConvBN(5, 3, affine=False).double()
    assert_close(same(x), batch_norm(formulas.dense(x.clamp(min=0), same.op[1].weight)))
    halved = FactorizedReduce(5, 6, affine=False).double()
    assert_close(halved(x), formulas.factorized_reduce(x, halved.conv_1.weight, halved.conv_2.weight))


def test_factorized_reduction_reads_every_other_pixel_from_two_corners() -> None:
    reduce = FactorizedReduce(1, 2).double().eval()  # running mean 0 and variance 1: only eps scales
    with torch.no_grad():
        reduce.conv_1.weight.fill_(1)
        reduce.conv_2.weight.fill_(1)
    x = torch.arange(1.0, 16.0, dtype=torch.float64).view(1, 1, 3, 5)  # odd: a row and a column of zeros follow
    first, second = reduce(x)[0] * (1 + 1e-5) ** 0.5
    assert_close(first, torch.tensor([[1.0, 3, 5], [11, 13, 15]], dtype=torch.float64))
    assert_close(second, torch.tensor([[7.0, 9, 0], [0, 0, 0]], dtype=torch.float64))


def test_average_pool_leaves_padding_out_of_the_divisor() -> None:
    ones = torch.ones(1, 1, 5, 4)
    assert torch.equal(build("avg_pool_3x3", 1, 1)(ones), ones)
    assert torch.equal(build("max_pool_3x3", 1, 1)(-ones), -ones)  # nor does padding win the maximum


def test_running_statistics_and_evaluation() -> None:
    op = build_for_search("avg_pool_3x3", 2, 1).double()
    norm = op[1]
    assert (norm.eps, norm.momentum, norm.affine) == (1e-5, 0.1, False)
    x = image(3, 2, 4, 5)
    pooled = formulas.avg_pool(x, 1)
    op(x)
    assert_close(norm.running_mean, 0.1 * pooled.mean((0, 2, 3)))
    assert_close(norm.running_var, 0.9 + 0.1 * pooled.var((0, 2, 3)))  # unbiased, though the batch's own is biased
    assert norm.num_batches_tracked == 1
    op.eval()
    mean, variance = norm.running_mean.view(-1, 1, 1), norm.running_var.view(-1, 1, 1)
    assert_close(op(x), (pooled - mean) / (variance + 1e-5).sqrt())


@pytest.mark.parametrize(
    ("name", "stride", "parameters", "norms"),
    [
        ("none", 1, 0, 0),
        ("none", 2, 0, 0),
        ("max_pool_3x3", 1, 0, 1),
        ("avg_pool_3x3", 2, 0, 1),
        ("skip_connect", 1, 0, 0),
        ("skip_connect", 2, 64, 1),
        ("sep_conv_3x3", 1, 2 * (72 + 64), 2),
        ("sep_conv_5x5", 2, 2 * (200 + 64), 2),
        ("sep_conv_7x7", 1, 2 * (392 + 64), 2),
        ("dil_conv_3x3", 2, 72 + 64, 1),
        ("dil_conv_5x5", 1, 200 + 64, 1),
        ("nor_conv_1x1", 2, 64, 1),
        ("nor_conv_3x3", 1, 9 * 64, 1),
        ("bare_max_pool_3x3", 2, 0, 0),
        ("bare_avg_pool_3x3", 1, 0, 0),
        ("conv_7x1_1x7", 2, 2 * 7 * 64, 1),
    ],
)
def test_parameters(name: str, stride: int, parameters: int, norms: int) -> None:
    op = build_for_search(name, 8, stride)
    assert sum(p.numel() for p in op.parameters()) == parameters
    assert sum(isinstance(module, nn.BatchNorm2d) for module in op.modules()) == norms
    evaluated = build(name, 8, stride)  # there, norms have a scale and a shift, and pools have none
    kept = 0 if "pool" in name else norms
    assert sum(p.numel() for p in evaluated.parameters()) == parameters + 16 * kept


def test_none_gives_zeros_whatever_comes() -> None:
    x = image(1, 2, 5, 3)
    assert torch.equal(build("none", 2, 2)(x), torch.zeros(1, 2, 3, 2, dtype=torch.float64))


@pytest.mark.parametrize("stride", [0, 3])
def test_wrong_stride(stride: int) -> None:
    with pytest.raises(ValueError, match=f"stride must be 1 or 2; got {stride}"):
        build("skip_connect", 4, stride)


def test_odd_channels_of_a_factorized_reduction() -> None:
    with pytest.raises(ValueError, match="C_out must be even, since a factorised reduction makes two halves; got 3"):
        build("skip_connect", 3, 2)
    build("skip_connect", 3, 1)
