"""Define `fastdarts::recurrent`, a recurrent cell over a window, and `fastdarts::linear_nll`, the loss of its words.

The CPU kernels are in csrc/recurrent.cpp and csrc/linear_nll.cpp, the GPU kernels in kernels/recurrent.py and
kernels/linear_nll.py. The plain modules that they equal are `fastdarts.spaces.recurrent.cell.RecurrentCore`, and a
linear layer followed by cross entropy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdarts.ops import extension
from fastdarts.ops.cell_plan import CellPlan
from fastdarts.ops.gpu import TRITON, in_module

_library = torch.library.Library("fastdarts", "FRAGMENT")
_library.define(
    "recurrent(Tensor x, Tensor hidden, Tensor? mask_x, Tensor? mask_h, Tensor W0, Tensor[] Ws, Tensor weights, "
    "Tensor? running, int[] plan, float eps, bool half, bool keep) "
    "-> (Tensor out, Tensor states, Tensor products, Tensor gates, Tensor stats)"
)
_library.define(
    "recurrent_backward(Tensor grad_out, Tensor x, Tensor hidden, Tensor? mask_x, Tensor? mask_h, Tensor W0, "
    "Tensor[] Ws, Tensor weights, Tensor out, Tensor states, Tensor products, Tensor gates, Tensor stats, "
    "int[] plan, bool training, float eps, bool half, bool need_x, bool need_matrices) "
    "-> (Tensor x, Tensor hidden, Tensor W0, Tensor[] Ws, Tensor weights)"
)
_library.define(
    "linear_nll(Tensor h, Tensor weight, Tensor bias, Tensor targets, Tensor shares, bool half, bool need_h, "
    "bool need_weight) "
    "-> (Tensor loss, Tensor h, Tensor weight, Tensor bias)"
)


if TRITON:
    for _module, _name in (
        ("recurrent", "recurrent"),
        ("recurrent", "recurrent_backward"),
        ("linear_nll", "linear_nll"),
    ):
        _library.impl(_name, in_module(_module, _name), "CUDA")


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return the reason why no kernel takes tensors of this device and dtype, or None if one does."""
    if device.type not in ("cpu", "cuda"):
        return f"the recurrent cell has no kernels for {device.type}"
    if device.type == "cuda" and not TRITON:
        return "Triton is not installed"
    if device.type == "cpu" and extension.UNAVAILABLE is not None:
        return extension.UNAVAILABLE
    if dtype not in (torch.float32, torch.float64):
        return f"the recurrent cell's kernels take float32 and float64, not {dtype}"
    return None


def recurrent(
    x: Tensor,
    hidden: Tensor,
    masks: tuple[Tensor, Tensor] | None,
    W0: Tensor,
    Ws: Sequence[Tensor],
    weights: Tensor,
    running: Tensor | None,
    plan: CellPlan,
    eps: float = 1e-5,
    half: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run a recurrent cell over a window.

    Source: Liu et al., DARTS, section 2.1 and A.1.2; the formulas are those of `RecurrentCore`.

    Args:
        x: [T, B, d], the inputs; float32 or float64.
        hidden: [B, d], the state before the window.
        masks: dropout masks [B, d] of the inputs and of the states, the same at each step; None for none.
        W0: [2 d, 2 d], matrix of inputs and hidden state.
        Ws: [d, 2 d] of each node.
        weights: op weights, indexed by the plan's terms as if flat.
        running: with a norm, None to normalise by the batch, or the running statistics [2 (mean, variance), d].
        plan: the terms of each node, the output, and whether states are normalised.
        eps: eps of the batch norm.
        half: True for products in bfloat16, with sums and states in float32.
    Returns:
        The new hidden state after each step, [T, B, d], and with a norm the statistics [T, nodes + 1, 2, d] that were
        used: means and biased variances of each state.
    Raises:
        TypeError: dtypes or devices differ, or have no kernel.
        ValueError: wrong shapes.
    """
    tensors = [x, hidden, *(masks or ()), W0, *Ws, weights]
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    x, hidden, W0, weights = (tensor.contiguous() for tensor in (x, hidden, W0, weights))
    mask_x, mask_h = (None, None) if masks is None else (mask.contiguous() for mask in masks)
    matrices = [matrix.contiguous() for matrix in Ws]
    found = torch.ops.fastdarts.recurrent(
        x, hidden, mask_x, mask_h, W0, matrices, weights, running, plan.encoded, eps, half, keep
    )
    return found[0], found[4]


def linear_nll(
    h: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, shares: Tensor | None = None, half: bool = False
) -> Tensor:
    """Return the mean negative log-likelihood of `targets` under softmax(h weight' + bias), a scalar.

    The logits of all rows never exist at once. Gradients are computed with the loss, so a second derivative is not
    available.

    Args:
        h: [rows, d]; float32 or float64.
        weight: [words, d].
        bias: [words].
        targets: [rows] int64, from 0 to words - 1.
        shares: [rows], factors of the rows, without a gradient, for another sum than the mean; None for 1 / rows.
        half: True for products in bfloat16.

    Raises:
        TypeError: dtypes differ, or have no kernel.
        ValueError, IndexError: wrong shapes, or a target that is no word.
    """
    need = torch.is_grad_enabled()
    need_weight = need and (weight.requires_grad or bias.requires_grad)
    if shares is None:
        shares = h.new_full((len(h),), 1 / max(len(h), 1))
    tensors = [tensor.contiguous() for tensor in (h, weight, bias, targets, shares)]
    loss: Tensor = torch.ops.fastdarts.linear_nll(*tensors, half, need and h.requires_grad, need_weight)[0]
    return loss


def _recurrent_fake(
    x: Tensor,
    hidden: Tensor,
    mask_x: Tensor | None,
    mask_h: Tensor | None,
    W0: Tensor,
    Ws: Sequence[Tensor],
    weights: Tensor,
    running: Tensor | None,
    plan: Sequence[int],
    eps: float,
    half: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if x.dim() != 3:
        raise ValueError(f"recurrent: x must be a non-empty [T, B, d]; got {list(x.shape)}")
    steps, rows, width = x.shape
    decoded = CellPlan.decode(plan)
    kept, states = steps if keep else 1, len(decoded.nodes) + 1
    dtype = torch.bfloat16 if half else x.dtype
    on_gpu = x.device.type == "cuda"  # the CPU kernels' backward makes states and products again
    edges = 0 if not (keep and on_gpu) or decoded.makes_products_again else sum(decoded.readers)
    return (
        torch.empty_like(x),
        x.new_empty((kept, states, rows, width) if on_gpu else 0),
        x.new_empty(kept * rows * edges * 2 * width, dtype=dtype),
        x.new_empty(kept, rows, 2 * width, dtype=dtype),
        x.new_empty(steps if decoded.norm else 0, states, 2, width),
    )


def _recurrent_backward_fake(grad_out: Tensor, x: Tensor, hidden: Tensor, *rest: Any) -> tuple[Any, ...]:
    W0, Ws, weights, need_x, need_matrices = rest[2], rest[3], rest[4], rest[-2], rest[-1]
    none = x.new_empty(0)
    return (
        torch.empty_like(x) if need_x else none,
        torch.empty_like(hidden),
        torch.empty_like(W0) if need_matrices else none,
        [torch.empty_like(W) if need_matrices else x.new_empty(0) for W in Ws],
        torch.empty_like(weights),
    )


def _linear_nll_fake(
    h: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    shares: Tensor,
    half: bool,
    need_h: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        h.new_empty(()),
        torch.empty_like(h) if need_h else h.new_empty(0),
        torch.empty_like(weight) if need_weight else h.new_empty(0),
        torch.empty_like(bias) if need_weight else h.new_empty(0),
    )


def _setup_recurrent(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    x, hidden, mask_x, mask_h, W0, Ws, weights, running, plan, eps, half, _ = inputs
    out, states, products, gates, stats = output
    masks = [mask for mask in (mask_x, mask_h) if mask is not None]
    ctx.save_for_backward(x, hidden, W0, weights, out, states, products, gates, stats, *masks, *Ws)
    ctx.set_materialize_grads(False)  # zeros for what the forward kept would take as much memory again
    ctx.masked = bool(masks)
    ctx.settings = (plan, running is None, eps, half)


def _recurrent_backward(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Any, ...]:
    x, hidden, W0, weights, out, states, products, gates, stats, *Ws = ctx.saved_tensors
    mask_x, mask_h, *Ws = Ws if ctx.masked else (None, None, *Ws)
    if grad_out is None:  # only statistics were used, which are constants
        return *[None] * 5, [None] * len(Ws), *[None] * 6
    needs = ctx.needs_input_grad
    need_matrices = bool(needs[4] or (any(needs[5]) if isinstance(needs[5], list | tuple) else needs[5]))
    found = torch.ops.fastdarts.recurrent_backward(
        *(grad_out, x, hidden, mask_x, mask_h, W0, Ws, weights, out, states, products, gates, stats),
        *(*ctx.settings, bool(needs[0]), need_matrices),
    )
    of_x, of_hidden, of_W0, of_Ws, of_weights = found
    return (
        of_x if needs[0] else None,
        of_hidden if needs[1] else None,
        None,
        None,
        of_W0 if need_matrices else None,
        of_Ws if need_matrices else [None] * len(Ws),
        of_weights if needs[6] else None,
        *[None] * 5,
    )


def _setup_linear_nll(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.set_materialize_grads(False)


def _linear_nll_backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad_loss is None:  # only the gradients themselves were used, which are constants
        return (None,) * 8
    scaled = [g * grad_loss if need else None for g, need in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)]
    return (*scaled, *[None] * 5)


torch.library.register_fake("fastdarts::recurrent", _recurrent_fake, lib=_library)
torch.library.register_fake("fastdarts::recurrent_backward", _recurrent_backward_fake, lib=_library)
torch.library.register_fake("fastdarts::linear_nll", _linear_nll_fake, lib=_library)
torch.library.register_autograd(
    "fastdarts::recurrent", _recurrent_backward, setup_context=_setup_recurrent, lib=_library
)
torch.library.register_autograd(
    "fastdarts::linear_nll", _linear_nll_backward, setup_context=_setup_linear_nll, lib=_library
)
