"""A layer of the search network: the weighted sum of its candidate blocks, and its shortcut."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastdarts.spaces.layerwise.blocks import ConvNorm, InvertedResidual, LeftOut
from fastdarts.spaces.layerwise.chain import SKIP, Chain, Layer
from fastdarts.spaces.layerwise.mixture import fits, mixture


def block(layer: Layer, name: str, chain: Chain, shortcut: bool = False) -> nn.Module:
    """Build one choice of a layer; `shortcut` adds the layer's input to a block's output."""
    activation = layer.activation or chain.activation
    if name != SKIP:
        return InvertedResidual(layer, name, activation, chain.eps, shortcut)
    if layer.keeps_shape:
        return LeftOut()
    return ConvNorm(layer.in_channels, layer.width, 1, layer.stride, activation, chain.eps)


class ChoiceLayer(nn.Module):
    """Sum the candidate blocks of a layer by their op weights: [N, C, H, W] -> [N, width, H', W'].

    Where the layer keeps the shape, x is added once: the choice "skip" then leaves the layer out, with output x.

    Args:
        layer: shape and choices.
        chain: activation and eps.
        fused: compute several blocks by one operator where it has a kernel for them.
    """

    def __init__(self, layer: Layer, chain: Chain, fused: bool = True) -> None:
        super().__init__()
        self.fused = fused
        self.primitives = layer.choices
        self.stride = layer.stride
        self.keeps_shape = layer.keeps_shape
        self._ops = nn.ModuleList(self._make(layer, chain))

    def _make(self, layer: Layer, chain: Chain) -> Iterable[nn.Module]:
        """Build the candidate blocks in the order of the choices."""
        return [block(layer, name, chain) for name in layer.choices]

    def state_of(self, column: int) -> dict[str, Tensor]:
        """Return the weights and buffers of a choice, by the names that they have in `block`."""
        return self._ops[column].state_dict()

    def forward(
        self, x: Tensor, weights: Tensor, active: Sequence[int] | None = None, probed: Sequence[int] = ()
    ) -> Tensor:
        """Compute the layer.

        Args:
            x: [N, C, H, W].
            weights: op weights [choices].
            active: the columns that run; None runs all.
            probed: columns of weight 0 that run in the backward pass, for the gradients of their weights.

        Raises: ValueError if nothing runs and the layer changes the shape.
        """
        out = x if self.keeps_shape else None
        columns = list(range(len(self._ops)) if active is None else active)
        blocks = {column: op for column in columns if isinstance(op := self._ops[column], InvertedResidual)}
        if self.fused and len(blocks) > 1 and fits(list(blocks.values()), x):
            out = mixture(list(blocks.values()), x, weights[list(blocks)], self.keeps_shape)
            columns = [column for column in columns if column not in blocks]
        for column in columns:
            op = self._ops[column]
            if isinstance(op, LeftOut):
                continue
            term = weights[column].to(x.dtype) * op(x)
            out = term if out is None else out + term
        if out is None:
            raise ValueError("active must name a block that runs, because the layer changes the shape; got none")
        if probed:
            ops = [self._ops[column] for column in probed]
            out = _Probe.apply(out, x.detach(), torch.stack([weights[column] for column in probed]), ops)
        return out


class _Probe(torch.autograd.Function):
    """Pass y on; in the backward pass, give each op's weight the gradient <dL/dy, op(x)> (Cai et al., equation 4)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, weights: Tensor, ops: Sequence[nn.Module]) -> Tensor:
        ctx.save_for_backward(x, weights)
        ctx.ops = ops
        ctx.autocast = torch.is_autocast_enabled(x.device.type), torch.get_autocast_dtype(x.device.type)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, None]:
        x, weights = ctx.saved_tensors
        enabled, dtype = ctx.autocast
        with torch.no_grad(), torch.autocast(x.device.type, dtype=dtype, enabled=enabled):
            products = [(grad * op(x)).sum() for op in ctx.ops]
        return grad, None, torch.stack(products).to(weights), None
