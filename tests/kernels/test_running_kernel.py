"""The kernel of running statistics in Triton's interpreter, against nn.BatchNorm2d's formulas in float64."""

import os

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the kernels need Triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("launches kernels in Triton's interpreter", allow_module_level=True)

from benchmarks.gpu_day.recording import Launch, each_launch
from fastdarts.kernels.running import update_running
from fastdarts.ops import running

CHANNELS = [16, 1, 70, 130]
VALUES = [2, 64, 65536, 7]
MOMENTUM = 0.1


def case(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """Return means, variances, counters (the last norms have none) and statistics of a batch."""
    means = [torch.randn(C).to(dtype) for C in CHANNELS]
    variances = [(torch.rand(C) + 0.5).to(dtype) for C in CHANNELS]
    counters = [torch.tensor(count) for count in (0, 2**40)]
    stats = torch.cat([t for C in CHANNELS for t in (torch.randn(C), torch.rand(C))])
    return means, variances, counters, stats.double() if dtype == torch.float64 else stats


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_all_norms_in_one_launch(dtype: torch.dtype) -> None:
    means, variances, counters, stats = case(dtype)
    true = [[t.double() for t in tensors] for tensors in (means, variances)]
    running._update_running(*true, [], stats.double(), VALUES, MOMENTUM)
    update_running(means, variances, counters, stats, VALUES, MOMENTUM)
    eps = torch.finfo(dtype).eps
    for ours, exact in zip([*means, *variances], [*true[0], *true[1]], strict=True):
        # At most three roundings in the type of sums, and the one of storage; nothing exceeds 8.
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=4 * 8 * eps)
    assert [int(counter) for counter in counters] == [1, 2**40 + 1]


def test_a_norm_that_comes_twice_is_updated_in_order() -> None:
    mean, variance = torch.ones(3), torch.ones(3)
    stats = torch.tensor([[3.0] * 3, [1.0] * 3, [5.0] * 3, [2.0] * 3]).flatten()
    launches: list[Launch] = []
    with each_launch(launches.append):
        update_running([mean, mean], [variance, variance], [], stats, [2, 2], 0.5)
    assert [launch.grid for launch in launches] == [(1,), (1,)]
    assert mean.tolist() == [(1 + 3) / 4 + 5 / 2] * 3
    assert variance.tolist() == [(1 + 2) / 4 + 4 / 2] * 3


def test_memory_that_the_kernel_cannot_read() -> None:
    means, variances, counters, stats = case(torch.float32)
    for call, message in (
        (([*means[:3], means[3].double()], variances), "contiguous torch.float32"),
        (([*means[:3], torch.zeros(260)[::2]], variances), "contiguous"),
        ((means, variances[::-1]), "of the same channels"),
    ):
        with pytest.raises(ValueError, match=message):
            update_running(*call, counters, stats, VALUES, MOMENTUM)
    with pytest.raises(ValueError, match="of the same channels"):
        update_running(means, variances, counters, stats[1:], VALUES, MOMENTUM)
