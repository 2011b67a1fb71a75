"""`fastdarts::linear_nll` on GPUs: the loss and its gradients by chunks of rows, whose logits one kernel replaces."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdarts.kernels.launch import accumulator, launch

CHUNK = 32 << 20
"""Logits at a time."""
BLOCK = 2048  # words that a program reads at once


@triton.jit(do_not_specialize=["words"])
def row_softmax_kernel(
    logits_ptr, bias_ptr, targets_ptr, shares_ptr, losses_ptr, words, GRADIENTS: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """One program takes a row: losses = logsumexp(logits + bias) - that of the target; then with GRADIENTS the row
    becomes (softmax - onehot) * share."""
    row = tl.program_id(0)
    logits_ptr += row.to(tl.int64) * words
    target = tl.load(targets_ptr + row)
    share = tl.load(shares_ptr + row)
    top = tl.full((BLOCK,), float("-inf"), ACC)
    total = tl.zeros((BLOCK,), ACC)
    at_target = tl.zeros((BLOCK,), ACC)
    for first in range(0, words, BLOCK):
        i = first + tl.arange(0, BLOCK)
        mask = i < words
        value = tl.load(logits_ptr + i, mask=mask, other=0.0).to(ACC) + tl.load(bias_ptr + i, mask=mask, other=0.0)
        at_target += tl.where(i == target, value, 0.0)
        value = tl.where(mask, value, float("-inf"))
        best = tl.maximum(top, value, propagate_nan=tl.PropagateNan.ALL)
        known = best > float("-inf")
        total = tl.where(known, total * tl.exp(top - best) + tl.exp(value - best), total)
        total = tl.where(best != best, best, total)
        top = best
    highest = tl.max(top, 0)
    whole = tl.sum(tl.where(top > float("-inf"), total * tl.exp(top - highest), total), 0)
    tl.store(losses_ptr + row, tl.log(whole) + highest - tl.sum(at_target, 0))
    if GRADIENTS:
        tl.debug_barrier()
        for first in range(0, words, BLOCK):
            i = first + tl.arange(0, BLOCK)
            mask = i < words
            value = tl.load(logits_ptr + i, mask=mask, other=0.0).to(ACC) + tl.load(bias_ptr + i, mask=mask, other=0.0)
            gradient = tl.exp(value - highest) / whole - tl.where(i == target, 1.0, 0.0)
            tl.store(logits_ptr + i, (gradient * share).to(logits_ptr.dtype.element_ty), mask=mask)


def linear_nll(
    h: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    shares: Tensor,
    half: bool,
    need_h: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss and its gradients, empty where not needed; see `ops.recurrent.linear_nll`. Targets are not checked."""
    rows, words = len(h), len(weight)
    dtype = torch.bfloat16 if half else h.dtype
    matrix, losses = weight.to(dtype), h.new_empty(rows)
    of_h = torch.empty_like(h) if need_h else h.new_empty(0)
    of_weight, of_bias = (torch.zeros_like(t) if need_weight else h.new_empty(0) for t in (weight, bias))
    most = min(rows, max(CHUNK // words, 64))
    logits = h.new_empty(most, words, dtype=dtype)
    for first in range(0, rows, most):
        part = h[first : first + most].to(dtype)
        mine = logits[: len(part)]
        torch.mm(part, matrix.t(), out=mine)
        chunk = slice(first, first + len(part))
        launch(
            row_softmax_kernel, (len(part),), mine, bias, targets[chunk], shares[chunk], losses[chunk], words,
            GRADIENTS=need_h or need_weight, num_warps=8, BLOCK=BLOCK, ACC=accumulator(h.dtype),
        )  # fmt: skip
        if need_h:
            of_h[chunk] = torch.mm(mine, matrix)
        if need_weight:
            if half:
                of_weight += torch.mm(mine.t(), part)
            else:
                torch.addmm(of_weight, mine.t(), part, out=of_weight)
            of_bias += mine.sum(0, dtype=bias.dtype)
    return (losses * shares).sum(), of_h, of_weight, of_bias
