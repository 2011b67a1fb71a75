"""Compute edge weights from betas, one beta per edge, normalised over the edges that enter a node."""

import torch
from torch import Tensor

from fastdarts.spaces.group import Group


def softmax_by_node(beta: Tensor, group: Group) -> Tensor:
    """Return the softmax [edges] of beta [edges] over the edges that enter the same node."""
    return torch.cat([beta[rows].softmax(0) for rows in group.entering()])


def in_degrees(group: Group, like: Tensor) -> Tensor:
    """Return [edges]: for each edge, the number of edges that enter its target, in the dtype and on the device of
    `like`. Filled on the device, because a CUDA graph must not copy from the host."""
    sizes = [rows.stop - rows.start for rows in group.entering()]
    return torch.cat([like.new_full((size,), float(size)) for size in sizes])


def first_edges(group: Group) -> int:
    """Return the number of edges that enter the first node."""
    return group.entering()[0].stop
