"""Edge weights beta: one number an edge, in groups of the edges that enter a node."""

from itertools import pairwise

import torch
from torch import Tensor


def groups(steps: int) -> list[slice]:
    """The rows of the edges that enter each node."""
    starts = [sum(2 + before for before in range(node)) for node in range(steps + 1)]
    return [slice(*pair) for pair in pairwise(starts)]


def softmax_by_node(beta: Tensor, steps: int) -> Tensor:
    """[edges] -> [edges]: softmax over the edges that enter the same node."""
    return torch.cat([beta[rows].softmax(0) for rows in groups(steps)])


def in_degrees(steps: int, like: Tensor) -> Tensor:
    """[edges]: how many edges enter the node that the edge enters; filled on the device, as a CUDA graph can."""
    return torch.cat([like.new_full((node,), float(node)) for node in range(2, 2 + steps)])
