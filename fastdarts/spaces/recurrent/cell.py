"""The recurrent cell as plain modules: the specification of the fused operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastdarts.ops.cell_plan import NAMES, CellPlan, Term

INIT = 0.04
"""Matrices and embedding begin uniform in [-0.04, 0.04] (the authors' code)."""

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "identity": lambda h: h,
}


class CellMasks(NamedTuple):
    """Hold dropout masks [B, d], scaled, the same at each step of a window."""

    inputs: Tensor
    """Dropout mask of the cell's input."""
    hidden: Tensor
    """Dropout mask of the previous hidden state and of every state that enters a node."""


class RecurrentCore(nn.Module):
    """Hold the matrices of a recurrent cell and run it over a window.

    [c_0 | h_0] = [x m_x | h m_h] W_0, s_0 = h + sigmoid(c_0) (tanh(h_0) - h), and each node i sums over its terms
    p (s_j + sigmoid(c) (f(h) - s_j)) with [c | h] = (s_j m_h) W_i; W_i is shared by all predecessors j. In a search,
    one batch norm without affine parameters normalises s_0 and every node (Liu et al., section 2.1 and A.1.2).

    Args:
        width: d, of input, states and hidden state.
        nodes: number of nodes.
        norm: True for a search cell.
    """

    def __init__(self, width: int, nodes: int, norm: bool) -> None:
        super().__init__()
        self.width = width
        self._W0 = nn.Parameter(torch.empty(2 * width, 2 * width).uniform_(-INIT, INIT))
        self._Ws = nn.ParameterList(
            nn.Parameter(torch.empty(width, 2 * width).uniform_(-INIT, INIT)) for _ in range(nodes)
        )
        if norm:
            self.bn = nn.BatchNorm1d(width, affine=False)

    def forward(self, x: Tensor, hidden: Tensor, masks: CellMasks | None, weights: Tensor, plan: CellPlan) -> Tensor:
        """Return the new hidden state after each step, [T, B, d].

        Args:
            x: [T, B, d], the inputs of the window.
            hidden: [B, d], the state before it.
            masks: dropout masks; None in evaluation.
            weights: op weights, indexed by the plan's terms as if flat.
            plan: the terms of each node.
        """
        flat = weights.flatten()
        outputs = []
        for step in x.unbind():
            hidden = self._step(step, hidden, masks, flat, plan)
            outputs.append(hidden)
        return torch.stack(outputs)

    def _step(self, x: Tensor, hidden: Tensor, masks: CellMasks | None, weights: Tensor, plan: CellPlan) -> Tensor:
        entering = torch.cat([x, hidden] if masks is None else [x * masks.inputs, hidden * masks.hidden], dim=-1)
        gate, candidate = torch.chunk(entering @ self._W0, 2, dim=-1)
        first = hidden + gate.sigmoid() * (candidate.tanh() - hidden)
        states = [self.bn(first) if plan.norm else first]
        for matrix, terms in zip(self._Ws, plan.nodes, strict=True):
            node = self._node(states, None if masks is None else masks.hidden, matrix, weights, terms)
            states.append(self.bn(node) if plan.norm else node)
        return torch.stack([states[index] for index in plan.outputs]).mean(0)

    def _node(
        self, states: list[Tensor], mask: Tensor | None, matrix: Tensor, weights: Tensor, terms: tuple[Term, ...]
    ) -> Tensor:
        """Return a node [B, d]: one product for all its predecessors, then one sum for each activation."""
        node = torch.zeros_like(states[0])
        by_code: dict[int, list[Term]] = {}
        for term in terms:
            by_code.setdefault(term.code, []).append(term)
        added = by_code.pop(NAMES.index("added"), [])
        for term in added:
            node = node + weights[term.weight]
        sources = sorted({term.source for members in by_code.values() for term in members})
        if not sources:
            return node
        before = torch.stack([states[source] for source in sources])  # [predecessors, B, d]
        masked = before if mask is None else before * mask
        gate, candidate = torch.chunk((masked.flatten(0, 1) @ matrix).view(*before.shape[:2], -1), 2, dim=-1)
        gate = gate.sigmoid()
        for code, members in by_code.items():
            share = _taken(weights, [term.weight for term in members]).view(-1, 1, 1)
            picked = [sources.index(term.source) for term in members]
            state, opening, value = (_taken(part, picked) for part in (before, gate, candidate))
            node = node + (share * (state + opening * (_FUNCTIONS[NAMES[code]](value) - state))).sum(0)
        return node


def _taken(values: Tensor, places: Sequence[int]) -> Tensor:
    """Return values[places] without a tensor of indices, which would come from the host."""
    step = places[1] - places[0] if len(places) > 1 else 1
    if step > 0 and list(places) == list(range(places[0], places[-1] + 1, step)):
        return values[places[0] : places[-1] + 1 : step]
    return torch.stack([values[place] for place in places])
