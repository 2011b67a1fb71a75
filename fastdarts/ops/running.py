"""Define `fastdarts::update_running`, which moves the running statistics of many batch norms at once.

The CPU kernel is in csrc/running.cpp, the GPU kernel in kernels/running.py; other devices use the plain implementation.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

import fastdarts.ops.extension  # noqa: F401 - registers the kernels
from fastdarts.ops.gpu import TRITON, in_module

_library = torch.library.Library("fastdarts", "FRAGMENT")
_library.define(
    "update_running(Tensor(a!)[] means, Tensor(b!)[] variances, Tensor(c!)[] counters, Tensor stats, int[] values, "
    "float momentum) -> ()"
)


def update_running(
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    counters: Sequence[Tensor],
    stats: Tensor,
    values: Sequence[int],
    momentum: float,
) -> None:
    """Update running statistics as nn.BatchNorm2d does: exponential averages of means and of unbiased variances.

    Args:
        means, variances: a batch norm's own [C], of one dtype for all norms; C may differ from norm to norm.
        counters: `num_batches_tracked` of the norms that have one, int64 scalars; each grows by 1.
        stats: of the batch, flat: for each norm its means [C], then its biased variances [C].
        values: numbers of values per channel, one for each norm and at least 2.
        momentum: the share of the batch's statistics.
    """
    torch.ops.fastdarts.update_running.default(means, variances, counters, stats, values, momentum)


def _update_running(
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    counters: Sequence[Tensor],
    stats: Tensor,
    values: Sequence[int],
    momentum: float,
) -> None:
    batch = stats.to(means[0].dtype).split([norm.numel() for norm in means for _ in range(2)])
    unbiased = [variance * (n / (n - 1)) for variance, n in zip(batch[1::2], values, strict=True)]
    torch._foreach_lerp_(list(means), list(batch[::2]), momentum)
    torch._foreach_lerp_(list(variances), unbiased, momentum)
    if counters:
        torch._foreach_add_(list(counters), 1)


_library.impl("update_running", _update_running, "CompositeExplicitAutograd")
torch.library.register_fake("fastdarts::update_running", lambda *_: None, lib=_library)
if TRITON:
    _library.impl("update_running", in_module("running", "update_running"), "CUDA")
