"""`update_running` against nn.BatchNorm2d, on the CPU and by the plain formulas that serve other devices."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastdarts.ops import extension, running

PLAIN = running._update_running
UPDATES = [PLAIN]
if extension.UNAVAILABLE is None:
    UPDATES.append(running.update_running)
SHAPES = [(5, 3, 4, 2), (2, 17, 1, 1), (3, 1, 2, 5)]  # of what norms see: N, C, H, W


def arguments(dtype: torch.dtype = torch.float64) -> tuple[list[Any], list[nn.BatchNorm2d]]:
    """Return the operator's arguments for some norms, and the norms after a batch of their own."""
    norms = [nn.BatchNorm2d(C, affine=False, momentum=0.3) for _, C, _, _ in SHAPES]
    for norm in norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.to(dtype)
    before: list[list[Tensor]] = [
        [getattr(norm, name).clone() for norm in norms] for name in ("running_mean", "running_var")
    ]
    batches = [torch.randn(shape) for shape in SHAPES]
    stats = [t for x in batches for t in (x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0))]
    for norm, x in zip(norms, batches, strict=True):
        norm.double()(x.double())
    counters = [torch.tensor(3), torch.tensor(0)]  # one norm has none
    values = [N * H * W for N, _, H, W in SHAPES]
    return [*before, counters, torch.cat(stats), values, 0.3], norms


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_running_statistics_are_those_of_batch_norms(update: Callable[..., None], dtype: torch.dtype) -> None:
    call, norms = arguments(dtype)
    update(*call)
    eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)  # the batch's statistics are float32
    for mean, variance, norm in zip(*call[:2], norms, strict=True):
        # Three roundings: of the batch's share, its factor, the sum. Both sums stay below 8.
        torch.testing.assert_close(mean.double(), norm.running_mean, rtol=0, atol=3 * 8 * eps)
        torch.testing.assert_close(variance.double(), norm.running_var, rtol=0, atol=3 * 8 * eps)
    assert [int(counter) for counter in call[2]] == [4, 1]


@pytest.mark.skipif(len(UPDATES) < 2, reason="needs fastdarts._C, which is not built")
def test_statistics_that_are_not_next_to_each_other() -> None:
    call, _ = arguments()
    spread = [[torch.stack([t, t + 7], dim=1)[:, 0] for t in tensors] for tensors in call[:2]]
    running.update_running(*spread, *call[2:])
    PLAIN(*call)
    for ours, plain in zip([*spread[0], *spread[1]], [*call[0], *call[1]], strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.skipif(len(UPDATES) < 2, reason="needs fastdarts._C, which is not built")
def test_arguments_that_do_not_fit() -> None:
    means, variances, counters, stats, values, momentum = arguments()[0]
    for call, message in (
        ((means, variances[:2], counters, stats, values, momentum), "as many"),
        (([], [], [], stats, [], momentum), "at least one"),
        ((means, variances[::-1], counters, stats, values, momentum), "a variance must be Double of 3 elements"),
        ((means, [v.float() for v in variances], counters, stats, values, momentum), "a variance must be Double"),
        ((means, variances, counters, stats[:-1], values, momentum), "two values per channel"),
        ((means, variances, counters, torch.cat([stats, stats]), values, momentum), "too many"),
        ((means, variances, counters, stats, [1, *values[1:]], momentum), "more than one value"),
        ((means, variances, [torch.tensor(1.0)], stats, values, momentum), "a counter must be Long"),
    ):
        with pytest.raises(RuntimeError, match=message):
            running.update_running(*call)


def test_schema_and_fake() -> None:
    call, _ = arguments()
    operator = torch.ops.fastdarts.update_running.default
    torch.library.opcheck(operator, tuple(call), test_utils=("test_schema", "test_faketensor"))
