"""Define `fastdarts::mbconv_sum`: all inverted bottlenecks of a layer, each weighted by a number, and their sum.

The CPU kernels are in csrc/mbconv.cpp. The plain modules that they equal are those of
`fastdarts.spaces.layerwise.choice.ChoiceLayer` in train mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdarts.ops import extension

_library = torch.library.Library("fastdarts", "FRAGMENT")
_library.define(
    "mbconv_sum(Tensor x, Tensor[] params, Tensor weights, int[] kernels, int stride, bool shortcut, bool six, "
    "float eps) -> (Tensor out, Tensor saved, Tensor stats)"
)
_library.define(
    "mbconv_sum_backward(Tensor grad, Tensor x, Tensor[] params, Tensor weights, Tensor saved, Tensor stats, "
    "int[] kernels, int stride, bool shortcut, bool six, float eps, bool need_params) -> Tensor[]"
)

KERNELS = (3, 5, 7)
"""Sizes of depthwise convolutions that the operator has."""


class Bottleneck(NamedTuple):
    """The parameters of one candidate with M channels inside, norms after each convolution."""

    expand: Tensor
    """[M, C]: the first 1x1 convolution."""
    weight1: Tensor
    bias1: Tensor
    taps: Tensor
    """[M, kernel * kernel]: the depthwise convolution."""
    weight2: Tensor
    bias2: Tensor
    project: Tensor
    """[O, M]: the second 1x1 convolution."""
    weight3: Tensor
    bias3: Tensor


class Statistics(NamedTuple):
    """Means and biased variances [2, channels] of a candidate's three norms over the batch."""

    norm1: Tensor
    norm2: Tensor
    norm3: Tensor


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return the reason why no kernel takes tensors of this device and dtype, or None if one does."""
    if device.type != "cpu":
        return f"layers of candidates have no kernels for {device.type}"
    if extension.UNAVAILABLE is not None:
        return extension.UNAVAILABLE
    if dtype not in (torch.float32, torch.float64, torch.bfloat16):
        return f"the kernels of layers take float32, float64 and bfloat16, not {dtype}"
    return None


def mbconv_sum(
    x: Tensor,
    candidates: Sequence[Bottleneck],
    weights: Tensor,
    kernels: Sequence[int],
    stride: int = 1,
    shortcut: bool = False,
    six: bool = False,
    eps: float = 1e-5,
) -> tuple[Tensor, list[Statistics]]:
    """Return sum_j w_j * block_j(x), and x where there is a shortcut; norms are those of train mode.

    Block j is a 1x1 convolution, norm and activation; a depthwise convolution (padding kernel // 2), norm and
    activation; a 1x1 convolution and a norm (Sandler et al., CVPR 2018). Kept for the backward pass are x and the
    depthwise outputs.

    Args:
        x: [N, C, H, W] in float32, float64 or bfloat16.
        candidates: parameters of each block; they are computed with in float32 (float64 for a float64 x).
        weights: [candidates], the op weights.
        kernels: side of each depthwise convolution, from `KERNELS`.
        stride: 1 or 2, of the depthwise convolutions.
        shortcut: add x, once.
        six: True for relu6 as activation, False for relu.
        eps: eps of all norms.

    Returns: [N, O, ceil(H / stride), ceil(W / stride)] in the dtype of x, channels-last, and the norms' statistics.

    Raises:
        TypeError: a dtype or device that has no kernel.
        ValueError: wrong shapes, or no candidates.
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    params = [tensor.to(compute).contiguous() for candidate in candidates for tensor in candidate]
    out, _, stats = torch.ops.fastdarts.mbconv_sum(
        x, params, weights.to(compute).contiguous(), list(kernels), stride, shortcut, six, eps
    )
    return out, _split(stats.detach(), x.shape[1], candidates)


def _split(stats: Tensor, channels: int, candidates: Sequence[Bottleneck]) -> list[Statistics]:
    """Return the parts of flat statistics, which begin with mean and covariance of x."""
    at, found = channels * (channels + 1), []
    for candidate in candidates:
        outputs, inside = candidate.project.shape
        sizes = [inside, inside, outputs]
        parts = stats[at : at + 2 * sum(sizes)].split([2 * size for size in sizes])
        at += 2 * sum(sizes)
        found.append(Statistics(*(part.view(2, size) for part, size in zip(parts, sizes, strict=True))))
    return found


_TILE_BYTES = 192 << 10  # as in csrc/mbconv.cpp, and the next, too
_SMALL_IMAGE = 64


def _padded(inside: int, tile_pixels: int, compute: torch.dtype) -> int:
    """Return the channels inside a candidate up to whole blocks, as csrc/mbconv.cpp keeps them.

    Args:
        inside: the channels.
        tile_pixels: of an image that is padded for the largest kernel.
        compute: dtype that is computed in.
    """
    line = 64 // compute.itemsize
    for lines in (4, 2, 1):
        block = lines * line
        padded = -(-inside // block) * block
        fits = 16 * (padded - inside) <= inside and tile_pixels * block * compute.itemsize <= _TILE_BYTES
        if fits or lines == 1:
            break
    return padded


def _fake(
    x: Tensor,
    params: Sequence[Tensor],
    weights: Tensor,
    kernels: Sequence[int],
    stride: int,
    shortcut: bool,
    six: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    if x.dim() != 4:
        raise ValueError(f"mbconv_sum: x must be [N, C, H, W]; got {list(x.shape)}")
    if stride not in (1, 2):
        raise ValueError(f"mbconv_sum: stride must be 1 or 2; got {stride}")
    wanted = len(Bottleneck._fields) * len(kernels)
    if not wanted or len(params) != wanted:
        raise ValueError(f"mbconv_sum: {len(kernels)} kernels need {wanted} params; got {len(params)}")
    if any(weight.dim() == 0 for weight in params):
        raise ValueError("mbconv_sum: params must have a dimension of channels each")
    images, channels, height, width = x.shape
    rows, columns = (height - 1) // stride + 1, (width - 1) // stride + 1
    inside = [expand.shape[0] for expand in params[:: len(Bottleneck._fields)]]
    outputs = params[Bottleneck._fields.index("project")].shape[0]
    out = torch.empty(
        (images, outputs, rows, columns), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )
    border = 2 * (max(kernels) // 2)
    tile = (height + border) * (width + border)
    kept = images * rows * columns * sum(_padded(size, tile, weights.dtype) for size in inside)
    if rows * columns <= _SMALL_IMAGE and x.dtype == weights.dtype:
        line = 64 // weights.dtype.itemsize
        kept += images * rows * columns * -(-outputs // line) * line * len(inside)
    numbers = channels * (channels + 1) + 4 * sum(inside) + 2 * outputs * len(inside)
    return out, x.new_empty(kept), weights.new_empty(numbers)


def _backward_fake(grad: Tensor, x: Tensor, params: Sequence[Tensor], weights: Tensor, *rest: Any) -> list[Tensor]:
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    return [dx, torch.empty_like(weights), *map(torch.empty_like, params)]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, params, weights, *settings = inputs
    _, saved, stats = output
    ctx.save_for_backward(x, weights, saved, stats, *params)
    ctx.settings = settings
    ctx.mark_non_differentiable(saved, stats)
    ctx.set_materialize_grads(False)  # zeros for `saved` would take as much memory again


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    x, weights, saved, stats, *params = ctx.saved_tensors
    if grad is None:
        return None, [None] * len(params), None, *[None] * len(ctx.settings)
    needs = ctx.needs_input_grad
    need_params = any(needs[1]) if isinstance(needs[1], list | tuple) else bool(needs[1])
    if torch.is_grad_enabled():  # create_graph=True: the gradients must be differentiable
        dx, of_weights, *of_params = _differentiable_gradients(grad, [x, weights, *params], *ctx.settings)
    else:
        dx, of_weights, *of_params = torch.ops.fastdarts.mbconv_sum_backward(
            grad, x, params, weights, saved, stats, *ctx.settings, need_params
        )
    return (
        dx if needs[0] else None,
        of_params if need_params else [None] * len(params),
        of_weights if needs[2] else None,
        *[None] * len(ctx.settings),
    )


def _differentiable_gradients(grad: Tensor, inputs: Sequence[Tensor], *settings: Any) -> list[Tensor | None]:
    """Compute the gradients of x, op weights and params by plain torch functions.

    They are taken by aliases, since x may depend on the same weights through other paths.
    """
    x, weights, *params = aliases = [t.view_as(t) if t.requires_grad else t for t in inputs]
    out = _plain(x.to(weights.dtype), params, weights, *settings)
    wanted = [t for t in aliases if t.requires_grad]
    found = iter(torch.autograd.grad(out, wanted, grad.to(out.dtype), create_graph=True))
    return [next(found) if t.requires_grad else None for t in aliases]


def _plain(
    x: Tensor,
    params: Sequence[Tensor],
    weights: Tensor,
    kernels: Sequence[int],
    stride: int,
    shortcut: bool,
    six: bool,
    eps: float,
) -> Tensor:
    """Compute the operator's sum by plain torch functions, in the dtype of the weights."""
    activation = F.relu6 if six else F.relu
    terms = [x] if shortcut else []
    size = len(Bottleneck._fields)
    for number, kernel in enumerate(kernels):
        p = Bottleneck(*params[number * size : (number + 1) * size])
        y = F.conv2d(x, p.expand[:, :, None, None])
        y = activation(F.batch_norm(y, None, None, p.weight1, p.bias1, training=True, eps=eps))
        taps = p.taps.view(-1, 1, kernel, kernel)
        y = F.conv2d(y, taps, stride=stride, padding=kernel // 2, groups=len(taps))
        y = activation(F.batch_norm(y, None, None, p.weight2, p.bias2, training=True, eps=eps))
        y = F.batch_norm(
            F.conv2d(y, p.project[:, :, None, None]), None, None, p.weight3, p.bias3, training=True, eps=eps
        )
        terms.append(weights[number] * y)
    return torch.stack(terms).sum(0)


torch.library.register_fake("fastdarts::mbconv_sum", _fake, lib=_library)
torch.library.register_fake("fastdarts::mbconv_sum_backward", _backward_fake, lib=_library)
torch.library.register_autograd("fastdarts::mbconv_sum", _backward, setup_context=_setup, lib=_library)
