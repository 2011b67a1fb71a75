"""Bind the blocks of a layer to the operator that computes all of them at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastdarts.mixed.fused import watched
from fastdarts.mixed.walk import modules_of
from fastdarts.ops import mbconv
from fastdarts.ops.mbconv import Bottleneck, Statistics
from fastdarts.spaces.layerwise.blocks import InvertedResidual


def fits(blocks: Sequence[InvertedResidual], x: Tensor) -> bool:
    """Return True if the operator computes these blocks of one layer: on the CPU, in train mode, without hooks."""
    if mbconv.unavailable(x.device, x.dtype) is not None or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return False
    first = blocks[0]
    return all(
        block.conv_dw.kernel_size[0] in mbconv.KERNELS
        and type(block.act1) in (nn.ReLU, nn.ReLU6)
        and type(block.se) is nn.Identity
        and not any(map(watched, modules_of(block)))
        and all(
            type(norm) is nn.BatchNorm2d
            and norm.training
            and norm.momentum is not None
            and (norm.momentum, norm.eps) == (first.bn1.momentum, first.bn1.eps)
            for norm in (block.bn1, block.bn2, block.bn3)
        )
        for block in blocks
    )


def mixture(blocks: Sequence[InvertedResidual], x: Tensor, weights: Tensor, shortcut: bool) -> Tensor:
    """Return the weighted sum of the blocks, plus x with `shortcut`; update their norms' running statistics.

    Args:
        blocks: blocks that `fits` admits, without shortcuts of their own.
        x: [N, C, H, W].
        weights: [blocks].
        shortcut: add x, once.
    """
    first = blocks[0]
    out, stats = mbconv.mbconv_sum(
        x,
        [_parameters(block) for block in blocks],
        weights,
        [block.conv_dw.kernel_size[0] for block in blocks],
        first.conv_dw.stride[0],
        shortcut,
        isinstance(first.act1, nn.ReLU6),
        first.bn1.eps,
    )
    values = x.numel() // x.shape[1]
    _update(blocks, stats, values, out.numel() // out.shape[1])
    return out


def _parameters(block: InvertedResidual) -> Bottleneck:
    expand, weight, bias = _matrix(block.conv_pw), block.bn1.weight, block.bn1.bias
    order = _order(block)
    return Bottleneck(
        *(expand, weight, bias) if order is None else (expand[order], weight[order], bias[order]),
        block.conv_dw.weight.flatten(1),
        *(block.bn2.weight, block.bn2.bias),
        _matrix(block.conv_pwl),
        *(block.bn3.weight, block.bn3.bias),
    )


def _order(block: InvertedResidual) -> Tensor | None:
    """Return for each channel that the depthwise convolution reads its number before the shuffle, None for the same."""
    groups, channels = block.conv_pw.groups, block.conv_pw.out_channels
    return None if groups == 1 else torch.arange(channels).view(groups, -1).t().flatten()


def _matrix(conv: nn.Conv2d) -> Tensor:
    """Return a 1x1 convolution as a matrix [out, in], with zeros outside its groups."""
    weight = conv.weight.flatten(1)
    return weight if conv.groups == 1 else torch.block_diag(*weight.chunk(conv.groups))


@torch.no_grad()
def _update(blocks: Sequence[InvertedResidual], stats: Sequence[Statistics], inside: int, outside: int) -> None:
    """Update running statistics as nn.BatchNorm2d does; norms 1 saw `inside` values a channel, the others `outside`."""
    running: list[Tensor] = []
    batch: list[Tensor] = []
    counters: list[Tensor] = []
    momentum = 0.0
    for block, of_block in zip(blocks, stats, strict=True):
        order = _order(block)
        for norm, statistics, values in zip(
            (block.bn1, block.bn2, block.bn3), of_block, (inside, outside, outside), strict=True
        ):
            if not norm.track_running_stats:
                continue
            assert norm.running_mean is not None
            assert norm.running_var is not None
            assert norm.num_batches_tracked is not None
            assert norm.momentum is not None
            mean, variance = statistics.to(norm.running_mean.dtype)
            if norm is block.bn1 and order is not None:
                mean, variance = mean[order.argsort()], variance[order.argsort()]
            running += [norm.running_mean, norm.running_var]
            batch += [mean, variance * (values / (values - 1))]
            counters.append(norm.num_batches_tracked)
            momentum = norm.momentum
    if running:
        torch._foreach_lerp_(running, batch, momentum)
        torch._foreach_add_(counters, 1)
