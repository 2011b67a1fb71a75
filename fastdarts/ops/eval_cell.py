"""Define the operators of cells in eval mode, where batch norms are part of the weights.

The CPU kernels are in csrc/eval_cell.cpp.

`fastdarts::pack_eval_cell` folds batch norms into weights, which `fastdarts::eval_cell` then reads for any number of
batches; `fastdarts::checksum` tells if tensors have changed, also where no version counter does. None has a gradient.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdarts.ops.plan import MixedPlan, decode, param_count

_library = torch.library.Library("fastdarts", "FRAGMENT")
_library.define(
    "pack_eval_cell(Tensor[] projections, int[] parts, Tensor[] params, Tensor running, int[] plan, float eps, "
    "Tensor? affine, ScalarType dtype) -> Tensor"
)
_library.define("eval_cell(Tensor[] states, Tensor packed, int[] parts, int[] plan, int[] concat, int C) -> Tensor")
_library.define("checksum(Tensor[] tensors) -> int")


def checksum(tensors: Sequence[Tensor]) -> int:
    """Return a number that changes, but for a chance of 2**-64, with any value, dtype, size or stride of `tensors`."""
    number: int = torch.ops.fastdarts.checksum(tensors)
    return number


def pack(
    projections: Sequence[Sequence[Tensor]],
    params: Sequence[Tensor],
    running: Tensor,
    plan: MixedPlan,
    eps: float,
    affine: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Return a cell's weights, with its batch norms, in the form that `eval_cell` reads.

    Args:
        projections: the weights that preprocess each of the plan's inputs, as `fastdarts.ops.operators.project` takes
            them: one, or two of a factorised reduction.
        params: the convolution weights of the plan, as `fastdarts.ops.operators.mixed_sum` takes them.
        running: statistics [inputs + norms, 2 (mean, variance), C] of the preprocessing's batch norms, then the ops'.
        plan: the edges, and the ops that run on each, without partial channels.
        eps: eps of the batch norms.
        affine: the batch norms' weights and biases [inputs + norms, 2 (weight, bias), C]; None for norms without.
        dtype: the dtype of the states that the cell will get.
    """
    flat, parts = [weight for own in projections for weight in own], [len(own) for own in projections]
    packed: Tensor = torch.ops.fastdarts.pack_eval_cell(flat, parts, params, running, plan.encoded, eps, affine, dtype)
    return packed


def eval_cell(
    states: Sequence[Tensor], packed: Tensor, parts: Sequence[int], plan: MixedPlan, concat: Sequence[int], C: int
) -> Tensor:
    """Compute a cell in eval mode: preprocess its inputs, add up all nodes' ops with weights 1, concatenate states.

    Args:
        states: the cell's inputs, [N, C_in, H, W] each, in any layout; float32, float64 or bfloat16.
        packed: what `pack` returned.
        parts: for each input the number of its projections: 2 halves its size.
        plan: the edges, and the ops that run on each.
        concat: numbers of the states to concatenate, inputs first, then nodes.
        C: channels of a state.

    Returns: [N, len(concat) * C, H', W'], channels-last.
    """
    out: Tensor = torch.ops.fastdarts.eval_cell(states, packed, parts, plan.encoded, concat, C)
    return out


@torch.library.register_fake("fastdarts::pack_eval_cell", lib=_library)
def _(
    projections: list[Tensor],
    parts: list[int],
    params: list[Tensor],
    running: Tensor,
    plan: list[int],
    eps: float,
    affine: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    decoded = decode(plan)
    if running.dim() != 3:
        raise ValueError(f"pack_eval_cell: running must be [norms, 2, C]; got {list(running.shape)}")
    if len(parts) != decoded.inputs or not all(part in (1, 2) for part in parts):
        raise ValueError(f"pack_eval_cell: parts must be {decoded.inputs} numbers, each 1 or 2; got {parts}")
    if len(projections) != sum(parts) or any(weight.dim() != 4 for weight in projections):
        raise ValueError("pack_eval_cell: projections must be [C / part, C_in, 1, 1] each, as many as parts tell")
    C = running.shape[2]
    compute = torch.float64 if dtype == torch.float64 else torch.float32

    def padded(numbers: int) -> int:
        line = 64 // compute.itemsize
        return -(-numbers // line) * line

    size = padded(C)
    numbers = (decoded.inputs + decoded.nodes) * size
    numbers += sum(p * size * projections[sum(parts[:i])].shape[1] for i, p in enumerate(parts))
    for edge in decoded.edges:
        for _, c in edge.ops:
            weights = param_count(c, edge.stride)
            depthwise = 0 if c.kind in ("skip", "pointwise") else c.kernel**2
            match c.kind:
                case "max_pool" | "avg_pool":
                    numbers += size
                case "sep_conv":
                    numbers += 2 * (depthwise + C) * size + size
                case _ if weights:
                    numbers += (depthwise + (2 if c.kind == "skip" else 1) * C) * size
    return running.new_empty((numbers,), dtype=compute)


@torch.library.register_fake("fastdarts::eval_cell", lib=_library)
def _(states: list[Tensor], packed: Tensor, parts: list[int], plan: list[int], concat: list[int], C: int) -> Tensor:
    decoded = decode(plan)
    edge = next((edge for edge in decoded.edges if edge.source < decoded.inputs), None)
    if edge is None:
        raise ValueError("eval_cell: no edge leaves an input")
    if len(states) != decoded.inputs or any(state.dim() != 4 for state in states):
        raise ValueError(f"eval_cell: states must be {decoded.inputs} tensors [N, C_in, H, W]")
    if len(parts) != decoded.inputs or not all(part in (1, 2) for part in parts):
        raise ValueError(f"eval_cell: parts must be {decoded.inputs} numbers, each 1 or 2; got {parts}")
    scale = parts[edge.source] * edge.stride
    x = states[edge.source]
    H, W = (-(-side // scale) for side in x.shape[2:])
    return x.new_empty((x.shape[0], H, W, len(concat) * C)).permute(0, 3, 1, 2)
