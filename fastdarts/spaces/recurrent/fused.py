"""Run a recurrent cell and the loss of its words by the fused operators, in place of the plain modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdarts.mixed.mixed_op import Backend
from fastdarts.ops import recurrent as ops
from fastdarts.ops.cell_plan import CellPlan
from fastdarts.spaces.recurrent.cell import CellMasks, RecurrentCore


def serves(backend: Backend, device: torch.device, dtype: torch.dtype) -> bool:
    """Return True if the kernels run.

    Raises: RuntimeError if backend "fused" was asked for and they cannot.
    """
    if backend == "reference":
        return False
    reason = ops.unavailable(device, dtype)
    if reason is not None and backend == "fused":
        raise RuntimeError(f"backend 'fused': {reason}")
    return reason is None


def run_cell(
    core: RecurrentCore, x: Tensor, hidden: Tensor, masks: CellMasks | None, weights: Tensor, plan: CellPlan
) -> Tensor:
    """Return what `core(x, hidden, masks, weights, plan)` does, and move its running statistics as it does."""
    norm = core.bn if plan.norm else None
    by_batch = norm is not None and norm.training
    if by_batch and len(hidden) == 1:
        raise ValueError("a batch norm needs more than one column to train; got a batch of 1")
    running = None
    if norm is not None and not by_batch:
        assert norm.running_mean is not None  # it tracks statistics
        assert norm.running_var is not None
        running = torch.stack([norm.running_mean, norm.running_var])
    eps = 0.0 if norm is None else norm.eps
    out, stats = ops.recurrent(x, hidden, masks, core._W0, list(core._Ws), weights, running, plan, eps, _half(x))
    if norm is not None and by_batch and norm.track_running_stats:
        _move_running(norm, stats.detach(), len(hidden))
    return out


def nll(decoder: nn.Linear, outputs: Tensor, targets: Tensor, shares: Tensor | None) -> Tensor:
    """Return the negative log-likelihood of targets [T, B], given outputs [T, B, d]: the sum over the words' means by
    `shares` [T], or their mean for None."""
    rows, columns = targets.shape
    each = None if shares is None else (shares / columns).view(rows, 1).expand(rows, columns).flatten()
    parts = outputs.flatten(0, 1), decoder.weight, decoder.bias, targets.flatten(), each
    return ops.linear_nll(*parts, _half(outputs))


def _half(x: Tensor) -> bool:
    """Return True if products run in bfloat16: inside autocast to it."""
    kind = x.device.type
    return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16


def _move_running(norm: nn.BatchNorm1d, stats: Tensor, rows: int) -> None:
    """Move the running statistics as many times as the plain modules do: once for each state of each step.

    Args:
        norm: the batch norm that all states share.
        stats: [T, states, 2, d], means and biased variances in the order of their computation.
        rows: examples in the batch.
    """
    assert norm.momentum is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    used = stats.flatten(0, 1)
    ages = torch.arange(len(used) - 1, -1, -1, dtype=used.dtype, device=used.device)
    shares = (norm.momentum * (1 - norm.momentum) ** ages).view(-1, 1, 1)
    moved = (shares * used).sum(0)
    kept = (1 - norm.momentum) ** len(used)
    norm.running_mean.mul_(kept).add_(moved[0])
    norm.running_var.mul_(kept).add_(moved[1], alpha=rows / (rows - 1))
    norm.num_batches_tracked.add_(len(used))
