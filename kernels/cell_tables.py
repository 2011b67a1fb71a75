"""A recurrent cell's plan as the tables that its kernels read."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fastdarts.kernels.cell import ACTIVATIONS
from fastdarts.ops.cell_plan import CellPlan

_TANH = 0  # of state 0's edge, from the hidden state


@dataclass(frozen=True)
class CellTables:
    """Hold the edges of a cell, those into state 0 (from the hidden state) first, and its op weights' places.

    Attributes:
        plan: the cell.
        edges: [edges, 4], see `kernels.cell`.
        first: of each state, and behind the last, the number of edges before its own.
        readers: of each state, the nodes that read it, in the order of their columns in its product.
        outputs: [outputs], states whose mean is the new hidden state.
        scales: [states], float64: the share of each state in it.
        places: of each term, its place among ACTIVATIONS numbers for each edge and, behind these, one for each state.
        terms: of each term, its op weight.
    """

    plan: CellPlan
    edges: Tensor
    first: tuple[int, ...]
    readers: tuple[tuple[int, ...], ...]
    outputs: Tensor
    scales: Tensor
    places: Tensor
    terms: Tensor

    @property
    def states(self) -> int:
        return len(self.readers)

    @property
    def columns(self) -> int:
        """Return the columns of all products of a step, in widths."""
        return 2 * sum(map(len, self.readers))

    @property
    def total(self) -> int:
        """Return the length of `spread`: of each edge its activations' weights, then of each state what is added."""
        return ACTIVATIONS.value * self.first[-1] + self.states

    def added(self, state: int) -> int:
        """Return the place of what is added to a state."""
        return ACTIVATIONS.value * self.first[-1] + state

    def spread(self, weights: Tensor) -> Tensor:
        """Return op weights as the kernels read them, [total]."""
        result = weights.new_zeros(self.total)
        result[_TANH : _TANH + 1].fill_(1)
        return result.index_add_(0, self.places, weights.flatten().index_select(0, self.terms))

    def gather(self, sums: Tensor, weights: Tensor) -> Tensor:
        """Return the op weights' gradients, shaped like `weights`, from the sums [programs, total] of the kernels."""
        result = torch.zeros_like(weights).flatten()
        return result.index_add_(0, self.terms, sums.sum(0).index_select(0, self.places)).view(weights.shape)


@lru_cache(maxsize=256)
def cell_tables(encoded: tuple[int, ...], device: torch.device) -> CellTables:
    """Return the tables of an encoded plan on a device."""
    plan = CellPlan.decode(encoded)
    states = len(plan.nodes) + 1
    sources = [[0], *(_distinct([term.source for term in terms if term.reads]) for terms in plan.nodes)]
    readers = [tuple(node for node in range(1, states) if state in sources[node]) for state in range(states)]
    rows, first = [[0, 0, 2, 0]], [0, 1]
    for node in range(1, states):
        for source in sources[node]:
            before = 2 * sum(map(len, readers[:source]))
            rows.append([source, before, 2 * len(readers[source]), 2 * readers[source].index(node)])
        first.append(len(rows))
    activations, places, used = ACTIVATIONS.value, [], []
    for node, terms in enumerate(plan.nodes, 1):
        for term in terms:
            edge = first[node] + sources[node].index(term.source) if term.reads else 0
            places.append(activations * edge + term.code - 1 if term.reads else activations * len(rows) + node)
            used.append(term.weight)
    shares = [plan.outputs.count(state) / len(plan.outputs) for state in range(states)]

    def table(values: Sequence[object], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    return CellTables(
        plan,
        table(rows, torch.int32),
        tuple(first),
        tuple(readers),
        table(plan.outputs, torch.int32),
        table(shares, torch.float64),
        table(places, torch.int64),
        table(used, torch.int64),
    )


def _distinct(values: Sequence[int]) -> list[int]:
    return list(dict.fromkeys(values))
