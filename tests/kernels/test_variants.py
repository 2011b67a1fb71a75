"""Which kernels a plan needs: each with other constants is compiled anew, for seconds."""

from typing import Any

import pytest
import torch
from kernel_cases import fused, make_case

pytest.importorskip("triton", reason="the kernels need Triton")

from benchmarks.traffic import launches_to


def compiled_for(stride: int, *primitives: str) -> set[str]:
    """Kernels with their constants that a cell of two nodes with these ops on its edges needs."""
    kernels = set()

    def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
        kernels.add(repr((kernel.fn.__name__, constants)))

    with launches_to(launch):
        fused(make_case(primitives, inputs=2, nodes=2, stride=stride, C=16, size=(2, 8, 8)).to(torch.bfloat16))
    return kernels


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", ["sep_conv_{}x{}", "dil_conv_{}x{}"])
def test_ops_that_a_method_draws_one_of_share_their_kernels(kind: str, stride: int) -> None:
    assert compiled_for(stride, kind.format(3, 3)) == compiled_for(stride, kind.format(5, 5))


@pytest.mark.parametrize("stride", [1, 2])
def test_both_pools_share_their_kernels(stride: int) -> None:
    assert compiled_for(stride, "max_pool_3x3") == compiled_for(stride, "avg_pool_3x3")
    assert compiled_for(stride, "bare_max_pool_3x3") == compiled_for(stride, "bare_avg_pool_3x3")


@pytest.mark.parametrize("stride", [1, 2])
def test_pools_without_norm_are_in_the_kernels_of_those_with_one(stride: int) -> None:
    assert compiled_for(stride, "bare_avg_pool_3x3") < compiled_for(stride, "avg_pool_3x3")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("op", ["sep_conv_3x3", "dil_conv_3x3", "sep_conv_7x7"])
def test_pointwise_convolutions_are_in_the_kernels_of_those_with_windows(op: str, stride: int) -> None:
    assert compiled_for(stride, op, "nor_conv_1x1") == compiled_for(stride, op)


@pytest.mark.parametrize("stride", [1, 2])
def test_dilated_convolutions_are_in_the_kernels_of_separable_ones(stride: int) -> None:
    assert compiled_for(stride, "dil_conv_3x3") < compiled_for(stride, "sep_conv_3x3")
