"""Foreign ops as the kernels take them: their weights, their batch norms, and what becomes of biases."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from fastdarts.mixed import fused
from fastdarts.mixed.mixed_op import MixedOp, op_weights_row
from fastdarts.mixed.patching.calls import Call, Weight
from fastdarts.mixed.patching.recognition import OWN, Op, leaves


@dataclass(frozen=True)
class _Edge:
    """Provide what `fused` needs of a MixedOp."""

    stride: int
    primitives: tuple[str, ...]
    _ops: Sequence[nn.Module]


class Edge(NamedTuple):
    """Ops of one input and stride, read for a call."""

    read: fused.ReadEdge
    shifts: "list[Shift]"

    def mixed(self, x: Tensor, row: Tensor, skip_zeros: bool = False) -> Tensor:
        """Compute the weighted sum."""
        for shift in self.shifts:
            # Biases get gradients, which are 0: what a bias adds, the batch's mean takes away.
            row = row + sum(0 * bias.sum() for bias in shift.biases).to(row.dtype)  # type: ignore[union-attr]
        out = fused.mixed_nodes([self.read], [(0, 1)], [x], row, skip_zeros=skip_zeros)
        for shift in self.shifts:
            shift.write_back()
        return out


class Shift:
    """A batch norm behind convolutions with biases, as it is to one behind the same convolutions without.

    It takes the place of the batch norm where `fused` reads and updates running statistics; its mean is smaller by the
    sum of the biases.
    """

    def __init__(self, norm: nn.BatchNorm2d, convolutions: Sequence[nn.Conv2d]) -> None:
        self.norm = norm
        self.biases = [one.bias for one in convolutions if one.bias is not None]
        self.training, self.eps, self.momentum = norm.training, norm.eps, norm.momentum
        self.track_running_stats = norm.track_running_stats
        self.affine, self._parameters = norm.affine, norm._parameters
        self._buffers: dict[str, Tensor | None] = dict(norm._buffers)
        with torch.no_grad():
            self.added = _added(convolutions)
            if norm.running_mean is not None:
                self._buffers["running_mean"] = norm.running_mean - self.added

    def write_back(self) -> None:
        """Give the batch norm the mean that has been updated."""
        if self.training and self.track_running_stats:
            with torch.no_grad():
                cast(Tensor, self.norm.running_mean).copy_(cast(Tensor, self._buffers["running_mean"]) + self.added)


def _added(convolutions: Sequence[nn.Conv2d]) -> Tensor:
    """Return what biases add to each channel before the batch norm."""
    biases = [one.weight.new_zeros(len(one.weight)) if one.bias is None else one.bias for one in convolutions]
    first, *others = convolutions
    if not others:
        return biases[0]
    if first.groups > 1:  # depthwise, then pointwise
        return others[0].weight[:, :, 0, 0] @ biases[0] + biases[1]
    return torch.cat(biases)  # the halves of a factorised reduction


def read(modules: Sequence[nn.Module], ops: Sequence[Op]) -> Edge:
    """Read ops as `fused.read` does; those that are not known run by their modules."""
    contents: dict[int, tuple[list[Tensor], list[Any]]] = {}
    settings: frozenset[fused.Settings] = frozenset()
    others, shifts = [], []
    for column, (module, op) in enumerate(zip(modules, ops, strict=True)):
        if op.primitive == "none":
            continue
        layers = leaves(module)
        norms = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
        if op.primitive == OWN or unkept(norms) or (op.biased and not _cancels(norms, layers)):
            others.append(column)
            continue
        read_norms: list[Any] = list(norms)
        if op.biased:
            read_norms = _shifted(layers)
            shifts += [norm for norm in read_norms if isinstance(norm, Shift)]
        contents[column] = [layer.weight for layer in layers if isinstance(layer, nn.Conv2d)], read_norms
        settings |= fused.settings_of({column: ([], norms)})
    stride = next((op.stride for op in ops if op.stride), 1)
    edge = cast(MixedOp, _Edge(stride, tuple(op.primitive for op in ops), modules))
    return Edge(fused.ReadEdge(edge, contents, others, settings), shifts)


def unkept(norms: Iterable[nn.BatchNorm2d]) -> bool:
    """True if batch norms have no running statistics: in eval mode they would use the batch."""
    return any(norm.running_mean is None for norm in norms)


def _cancels(norms: Sequence[nn.BatchNorm2d], layers: Sequence[nn.Module]) -> bool:
    """True if biases change no gradient: batches are normalised by themselves, or nothing learns."""
    learned = any(p.requires_grad for layer in layers if isinstance(layer, nn.Conv2d) for p in layer.parameters())
    return all(norm.training for norm in norms) or not (learned and torch.is_grad_enabled())


def _shifted(layers: Sequence[nn.Module]) -> list[nn.BatchNorm2d | Shift]:
    found: list[nn.BatchNorm2d | Shift] = []
    before: list[nn.Conv2d] = []
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            before.append(layer)
        elif isinstance(layer, nn.BatchNorm2d):
            found.append(Shift(layer, before) if any(one.bias is not None for one in before) else layer)
            before = []
    return found


def by_kernels(calls: Sequence[Call], weights: Sequence[Weight]) -> Tensor:
    """Add up calls of one input by the kernels."""
    x = calls[0].x
    row = op_weights_row([w.to(x.device) if isinstance(w, Tensor) else w for w in weights], x)
    return read([call.module for call in calls], [call.op for call in calls]).mixed(x, row)


def kernel_refusal(call: Call) -> str | None:
    """Say why no kernel computes a call, or None."""
    edge = read([call.module], [call.op]).read
    if edge.others:
        return "in eval mode, with gradients or without running statistics, its batch norms are the modules'"
    return fused.refusal([edge], call.x)
