"""Batch norms that take small differences of large numbers keep the digits that their type has."""

import pytest
import torch
from as_plain import assert_as_good, exactly, run, with_backend
from torch import nn

from fastdarts.mixed.mixed_op import MixedOp
from fastdarts.ops import operators

pytestmark = pytest.mark.skipif(
    operators.unavailable(torch.device("cpu"), torch.float32) is not None,
    reason="needs fastdarts._C, which is not built",
)


def test_large_means() -> None:
    """Round only the mean of the difference to it, times rstd, summed four times: by half of eps."""
    edge = MixedOp(8, 1, ["max_pool_3x3"] * 4, "reference").train()
    x, weights = 1000 + torch.randn(4, 8, 6, 7), torch.full((4,), 0.25)
    exact = exactly(edge)
    true = exact(x.double(), weights.double())
    error = (with_backend(edge, "fused")(x, weights) - true).abs().max().item()
    eps, scale = torch.finfo(torch.float32).eps, max(getattr(part, "factor", 0.0) for part in exact.modules())
    assert error <= eps / 2 * x.max().item() * scale + 4 * eps * true.abs().max().item()


@pytest.mark.parametrize("name", ["sep_conv_3x3", "sep_conv_7x7"])
def test_gradient_of_two_values(name: str) -> None:
    """Pass on of the gradient what is left of the stored numbers, not of those before their rounding to bfloat16.

    A norm of two values makes -1 and 1 of any, so that almost nothing passes.
    """
    edge = MixedOp(17, 1, [name], "reference").train()
    x, weights = (100 * torch.randn(1, 17, 2, 1)).bfloat16(), torch.ones(1)
    with torch.no_grad():
        for part in edge.modules():
            if isinstance(part, nn.Conv2d):
                part.weight.mul_(2)
    g = torch.randn(1, 17, 2, 1).bfloat16()
    assert_as_good(run(with_backend(edge, "fused"), [x, weights], g), edge, [x, weights], g, roundings=4)
