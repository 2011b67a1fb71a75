"""Batch norm by the statistics of all ranks' rows, differentiable twice, on any device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastdarts.bilevel.ranks import Ranks


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Normalise by mean and variance over the rows of all ranks; torch's own SyncBatchNorm serves GPUs alone.

    A pass sends 2 C + 1 numbers a rank forward and as many backward. Parameters and buffers are those of the batch norm
    that it replaces.
    """

    ranks: Ranks

    @staticmethod
    def of(norm: nn.BatchNorm2d, ranks: Ranks) -> SyncBatchNorm2d:
        """Return a synchronised batch norm in place of `norm`, with the same tensors."""
        new = SyncBatchNorm2d.__new__(SyncBatchNorm2d)
        new.__dict__ = norm.__dict__ | {"ranks": ranks}
        return new

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [N, C, H, W]; by running statistics in eval mode, as nn.BatchNorm2d does."""
        if not (self.training or self.running_mean is None):
            return super().forward(x)
        mean, variance, count = self._moments(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x)
        if self.training and self.track_running_stats:
            self._track(mean.detach(), variance.detach() * (count / (count - 1)))
        # Not F.batch_norm, which takes no gradient of its statistics.
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        shift = -mean * scale
        if self.affine:
            shift = shift + self.bias
        return (x * scale[:, None, None] + shift[:, None, None]).to(x.dtype)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean [C], biased variance [C] and number of values a channel, over all ranks."""
        mean = x.mean((0, 2, 3))
        squares = (x - mean[:, None, None]).square().sum((0, 2, 3))
        count = mean.new_full((1,), x.numel() // x.shape[1])
        own = torch.cat([count, mean, squares])
        rows = own.new_zeros(self.ranks.size, len(own))
        before, after = rows[: self.ranks.rank], rows[self.ranks.rank + 1 :]
        table = _Sum.apply(torch.cat([before, own[None], after]), self.ranks)
        counts, means, parts = table.split([1, len(mean), len(mean)], dim=1)
        total = counts.sum(0)
        whole = (counts * means).sum(0) / total
        # Sums about each rank's own mean, moved to the common one (Chan et al., 1979): no difference of large squares.
        variance = (parts + counts * (means - whole).square()).sum(0) / total
        return whole, variance, total.detach()

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var), momentum)


def synchronise(network: nn.Module, ranks: Ranks) -> None:
    """Replace every nn.BatchNorm2d of a network by SyncBatchNorm2d, in place; with one rank, none."""
    if ranks.alone:
        return
    for module in network.modules():
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, SyncBatchNorm2d.of(child, ranks))


class _Sum(torch.autograd.Function):
    """Sum a tensor over the ranks; so is the gradient, since each rank's loss depends on all ranks' tensors."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.sum_(tensor.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(gradient.contiguous(), ctx.ranks), None
