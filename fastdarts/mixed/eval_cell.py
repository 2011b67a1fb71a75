"""Run a discrete cell in eval mode by one operator, which reads weights that hold the batch norms as well."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastdarts.mixed import fused
from fastdarts.ops import eval_cell


class Packed(NamedTuple):
    """Hold a cell's packed weights and what they were made of."""

    key: tuple[int, torch.dtype, float]
    weights: Tensor


class Preprocessing(NamedTuple):
    """Hold the modules before a cell's inputs, and the signatures that they had when the cell was built."""

    modules: Sequence[nn.Module]
    built: Sequence[fused.Signature]


def run(
    edges: Sequence[fused.ReadEdge],
    ends: tuple[tuple[int, int], ...],
    before: Preprocessing,
    inputs: Sequence[Tensor],
    concat: Sequence[int],
    packed: Packed | None,
) -> tuple[Tensor, Packed] | None:
    """Compute a cell's output, all op weights being 1; None if it has to be computed otherwise.

    The operator serves on CPUs where no gradients are recorded, if all parts of the cell have kernels and none of its
    batch norms takes statistics of the batch.

    Args:
        edges: the cell's ops; edge e goes from state ends[e][0] to state ends[e][1].
        ends: source and target state of each edge; inputs come first.
        before: what preprocesses the inputs.
        inputs: the cell's inputs, [N, C_in, H, W] each.
        concat: the states to concatenate.
        packed: what an earlier call returned; it serves again unless weights, dtype or settings have changed.

    Returns: [N, len(concat) * C, H', W'], and the packed weights.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    if any(type(x) is not Tensor or x.device.type != "cpu" for x in inputs) or any(edge.others for edge in edges):
        return None
    contents = [fused.preprocessing(*one) for one in zip(*before, strict=True)]
    projections = [weights for weights, _ in contents]
    norms = [norm for _, own in contents for norm in own]
    norms += [norm for edge in edges for _, own in edge.fused.values() for norm in own]
    settings = {fused.norm_settings(norm) for norm in norms}
    if not all(projections) or len(settings) != 1 or norms[0].training or fused.norm_refusal(*settings.pop()):
        return None
    dtype = fused.storage_dtype(inputs[0])
    params = [weight for edge in edges for weights, _ in edge.fused.values() for weight in weights]
    learned = [weight for own in (*projections, params) for weight in own]
    if {weight.dtype for weight in learned} - {dtype, torch.promote_types(dtype, torch.float32)}:
        return None
    plan = fused.plan_of(len(inputs), ends, edges)
    made_of = [*learned, *(t for norm in norms for t in _tensors(norm))]
    key = eval_cell.checksum(made_of), dtype, norms[0].eps
    if packed is None or packed.key != key:
        running, affine = fused.running_statistics(norms), fused.affine_numbers(norms)
        weights = eval_cell.pack(projections, params, running, plan, norms[0].eps, affine, dtype)
        packed = Packed(key, weights)
    C, parts = norms[0].num_features, [len(own) for own in projections]
    out = eval_cell.eval_cell([x.to(dtype) for x in inputs], packed.weights, parts, plan, concat, C)
    return out, packed


def _tensors(norm: nn.BatchNorm2d) -> list[Tensor]:
    """Return a batch norm's statistics, and its weight and bias where it has them."""
    learned = [norm._parameters[name] for name in ("weight", "bias")]
    return [t for t in (*learned, norm._buffers["running_mean"], norm._buffers["running_var"]) if t is not None]
