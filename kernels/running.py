"""`fastdarts::update_running` on GPUs: the running statistics of many batch norms in one launch."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdarts.kernels.launch import accumulator, compute_dtype, launch
from fastdarts.kernels.tables import constant

# Columns of a norm's row: addresses of its mean, variance and counter (0: none), where its statistics begin, C, and
# the number of values per channel.
MEAN, VARIANCE, COUNTER, BEGIN, CHANNELS, VALUES = (tl.constexpr(column) for column in range(6))
NORM = tl.constexpr(6)
BLOCK = 64  # channels


@triton.jit
def update_running_kernel(stats_ptr, norms_ptr, momentum_ptr, STORED: tl.constexpr, BLOCK_C: tl.constexpr,
                          ACC: tl.constexpr):  # fmt: skip
    """One program moves one batch norm by the share of the momentum towards the batch's statistics, and counts it.

    stats: of each norm means [C], then biased variances [C]. STORED: type of running statistics. momentum: a number in
    memory, since as a constant each of plain averages' (1, 1/2, 1/3, ...) would compile the kernel anew.
    """
    row = norms_ptr + tl.program_id(0) * NORM
    mean_ptr = tl.load(row + MEAN).to(tl.pointer_type(STORED))
    variance_ptr = tl.load(row + VARIANCE).to(tl.pointer_type(STORED))
    counter = tl.load(row + COUNTER)
    channels = tl.load(row + CHANNELS)
    batch_ptr = stats_ptr + tl.load(row + BEGIN)
    values = tl.load(row + VALUES).to(ACC)
    momentum = tl.load(momentum_ptr).to(ACC)
    for first in range(0, channels, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        move(mean_ptr + c, batch_ptr + c, 1.0, c < channels, momentum, STORED, ACC)
        move(variance_ptr + c, batch_ptr + channels + c, values / (values - 1), c < channels, momentum, STORED, ACC)
    if counter != 0:
        counter_ptr = counter.to(tl.pointer_type(tl.int64))
        tl.store(counter_ptr, tl.load(counter_ptr) + 1)


@triton.jit
def move(running_ptr, batch_ptr, factor, mask, momentum, STORED: tl.constexpr, ACC: tl.constexpr):
    """Move running statistics towards the batch's, times a factor."""
    running = tl.load(running_ptr, mask=mask, other=0.0).to(ACC)
    batch = tl.load(batch_ptr, mask=mask, other=0.0).to(ACC) * factor
    tl.store(running_ptr, (running + momentum * (batch - running)).to(STORED), mask=mask)


def update_running(
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    counters: Sequence[Tensor],
    stats: Tensor,
    values: Sequence[int],
    momentum: float,
) -> None:
    """Update running statistics of batch norms; see `fastdarts.ops.running.update_running`.

    Raises: ValueError for tensors that the kernel cannot read.
    """
    dtype, device = means[0].dtype, stats.device
    for tensor in (*means, *variances):
        if tensor.dtype != dtype or tensor.device != device or not tensor.is_contiguous():
            raise ValueError(
                f"running statistics must be contiguous {dtype} on {device}, as the first; "
                f"got {tensor.dtype} {tensor.stride()} on {tensor.device}"
            )
    channels = [mean.numel() for mean in means]
    if [variance.numel() for variance in variances] != channels or 2 * sum(channels) != stats.numel():
        raise ValueError("update_running: means, variances and stats must be of the same channels")
    counted = [counter.data_ptr() for counter in counters] + [0] * (len(means) - len(counters))
    rows, begin = [], 0
    for mean, variance, counter, c, n in zip(means, variances, counted, channels, values, strict=True):
        rows.append((mean.data_ptr(), variance.data_ptr(), counter, begin, c, n))
        begin += 2 * c
    share = constant(((momentum,),), device, torch.float64)
    once = len({address for address, *_ in rows}) == len(rows)
    for together in [rows] if once else [[row] for row in rows]:  # a norm that comes twice is updated in order
        launch(
            update_running_kernel,
            (len(together),),
            *(stats.contiguous(), constant(tuple(together), device, torch.int64), share),
            STORED=_STORED[dtype],
            BLOCK_C=BLOCK,
            ACC=accumulator(compute_dtype(dtype)),
            num_warps=1,
        )


_STORED = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
