"""Edge weights beta: one number an edge, normalised over the edges that enter a node."""

import torch
from torch import Tensor

from fastdarts.spaces.group import Group


def softmax_by_node(beta: Tensor, group: Group) -> Tensor:
    """Return the softmax [edges] of beta [edges] over the edges that enter the same node."""
    return torch.cat([beta[rows].softmax(0) for rows in group.entering()])


def in_degrees(group: Group, like: Tensor) -> Tensor:
    """Return [edges]: the number of edges that enter an edge's target; filled on the device, as a CUDA graph can."""
    sizes = [rows.stop - rows.start for rows in group.entering()]
    return torch.cat([like.new_full((size,), float(size)) for size in sizes])


def first_edges(group: Group) -> int:
    """Return the number of edges that enter the first node."""
    return group.entering()[0].stop
