"""`fastdarts::recurrent` and its backward on GPUs: products by torch, everything between them by kernels."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from fastdarts.kernels.cell import (
    ACTIVATIONS,
    cell_average_kernel,
    cell_backward_kernel,
    cell_forward_kernel,
    cell_spread_kernel,
)
from fastdarts.kernels.cell_tables import CellTables, cell_tables
from fastdarts.kernels.launch import accumulator, launch

ROWS_OF_GROUP = 4096
"""Rows of the steps whose products are made again, and enter the matrices' gradients, at once."""
BLOCK_R, BLOCK_D = 64, 8  # eight floats are the 32 bytes that memory hands out
BLOCK = 1024  # elements, where rows and features do not matter
_ROWS = {"num_warps": 4, "BLOCK_R": BLOCK_R, "BLOCK_D": BLOCK_D}
_ELEMENTS = {"num_warps": 4, "BLOCK": BLOCK}


class Window:
    """Hold what the launches of a window share.

    Args:
        x: [T, B, d].
        mask_h: [B, d], or None.
        W0, Ws: the matrices.
        weights: op weights.
        encoded: the plan.
        eps: eps of the norm.
        half: True for products in bfloat16.
    """

    def __init__(
        self,
        x: Tensor,
        mask_h: Tensor | None,
        W0: Tensor,
        Ws: Sequence[Tensor],
        weights: Tensor,
        encoded: Sequence[int],
        eps: float,
        half: bool,
    ) -> None:
        self.steps, self.rows, self.width = x.shape
        self.x, self.mask = x, mask_h
        self.t: CellTables = cell_tables(tuple(encoded), x.device)
        self.dtype = torch.bfloat16 if half else x.dtype
        self.norm = self.t.plan.norm
        self.weights = self.t.spread(weights)
        self.input_matrix, self.hidden_matrix = W0.to(self.dtype).split(self.width)
        self.matrices = [
            torch.cat([Ws[node - 1] for node in readers], 1).to(self.dtype) if readers else None
            for readers in self.t.readers
        ]
        self.eps = eps
        blocks = 1 if self.norm else triton.cdiv(self.rows, BLOCK_R)
        self.grid = (triton.cdiv(self.width, BLOCK_D), blocks)
        self.constants: dict[str, Any] = {"MASKED": mask_h is not None, "ACC": accumulator(x.dtype)}

    def new(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return an uninitialised tensor of the states' type, or another."""
        return self.x.new_empty(shape, dtype=dtype or self.x.dtype)

    def products(self, steps: int) -> Tensor:
        """Return memory for the products of all edges, of so many steps."""
        return self.new(steps * self.rows * self.t.columns * self.width, dtype=self.dtype)

    def parts(self, products: Tensor) -> list[Tensor]:
        """Return views of the products of each state for all nodes that read it, [steps, rows, columns]."""
        widths = [2 * len(readers) * self.width for readers in self.t.readers]
        steps = products.numel() // max(self.rows * sum(widths), 1)
        pieces = products.split([steps * self.rows * width for width in widths])
        return [piece.view(steps, self.rows, width) for piece, width in zip(pieces, widths, strict=True)]

    def edges_of(self, state: int) -> tuple[Tensor, Tensor, int]:
        """Return table and weights of the edges into a state, and how many there are."""
        first, last = self.t.first[state : state + 2]
        return self.t.edges[first:], self.weights[ACTIVATIONS.value * first :], last - first

    def masked(self, tensor: Tensor, mask: Tensor | None) -> Tensor:
        """Return tensor * mask in the products' type."""
        return (tensor if mask is None else tensor * mask).to(self.dtype)


def recurrent(
    x: Tensor,
    hidden: Tensor,
    mask_x: Tensor | None,
    mask_h: Tensor | None,
    W0: Tensor,
    Ws: list[Tensor],
    weights: Tensor,
    running: Tensor | None,
    plan: Sequence[int],
    eps: float,
    half: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The new hidden states, and what the backward needs: states, products, gates, statistics; see `ops.recurrent`."""
    w = Window(x, mask_h, W0, Ws, weights, plan, eps, half)
    steps, rows, width, t = w.steps, w.rows, w.width, w.t
    kept = steps if keep else 1
    out, states = torch.empty_like(x), w.new(kept, t.states, rows, width)
    keeps_products = keep and not t.plan.makes_products_again
    products, slots = w.products(kept if keeps_products else 1), kept if keeps_products else 1
    gates = w.new(kept, rows, 2 * width, dtype=w.dtype)
    stats = w.new(steps if w.norm else 0, t.states, 2, width)
    if w.norm and running is not None:
        stats.copy_(running)
    parts = w.parts(products)
    inputs = torch.mm(w.masked(x, mask_x).flatten(0, 1), w.input_matrix).view(steps, rows, -1)
    carried = w.masked(hidden, mask_h).clone()  # overwritten step by step
    masked = w.new(rows, width, dtype=w.dtype)
    mask = x if mask_h is None else mask_h
    constants = w.constants | _ROWS | {"WIDTH": width, "NORM": w.norm, "RUNNING": running is not None, "EPS": eps}
    before = hidden
    for step in range(steps):
        at, slot = step if keep else 0, step if keeps_products else 0
        torch.addmm(inputs[step], carried, w.hidden_matrix, out=gates[at])
        for state in range(t.states):
            if state == 0:
                read, product, place = before, gates[at], (0, 1)
            else:
                read, product, place = states[at], products, (slot, slots)
            table, numbers, edges = w.edges_of(state)
            used = stats[step, state] if w.norm else stats
            launch(
                cell_forward_kernel, w.grid, read, product, table, numbers, w.weights[t.added(state) :], mask,
                states[at, state], masked, used, edges, *place, rows, **constants,
            )  # fmt: skip
            matrix = w.matrices[state]
            if matrix is not None:
                torch.mm(masked, matrix, out=parts[state][slot])
        launch(
            cell_average_kernel, (triton.cdiv(rows * width, BLOCK),), states[at], t.outputs, mask, out[step], carried,
            len(t.outputs), rows * width, **w.constants, **_ELEMENTS,
        )  # fmt: skip
        before = out[step]
    return out, states, products if keeps_products else products.new_empty(0), gates, stats


def recurrent_backward(
    grad_out: Tensor,
    x: Tensor,
    hidden: Tensor,
    mask_x: Tensor | None,
    mask_h: Tensor | None,
    W0: Tensor,
    Ws: list[Tensor],
    weights: Tensor,
    out: Tensor,
    states: Tensor,
    kept_products: Tensor,
    gates: Tensor,
    stats: Tensor,
    plan: Sequence[int],
    training: bool,
    eps: float,
    half: bool,
    need_x: bool,
    need_matrices: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], Tensor]:
    """Gradients of x, hidden, W0, Ws and op weights; empty tensors where none is needed."""
    w = Window(x, mask_h, W0, Ws, weights, plan, eps, half)
    steps, rows, width, t = w.steps, w.rows, w.width, w.t
    again = t.plan.makes_products_again
    group = min(steps, triton.cdiv(ROWS_OF_GROUP, rows))
    slots = group if again or need_matrices else 1
    grad_products = w.products(slots)
    products = grad_products if again else kept_products
    parts = w.parts(grad_products)
    grads, masked_grad = w.new(t.states, rows, width), w.new(rows, width, dtype=w.dtype)
    all_gates = need_x or need_matrices
    grad_gates = w.new(steps if all_gates else 1, rows, 2 * width, dtype=w.dtype)
    carried, grad_carried = torch.zeros_like(hidden), torch.zeros_like(hidden, dtype=w.dtype)
    matrix_grads = [
        x.new_zeros(width, matrix.shape[1]) if need_matrices and matrix is not None else None for matrix in w.matrices
    ]
    sums = x.new_zeros(w.grid[0] * w.grid[1], t.total)
    scales, mask = t.scales.to(x.dtype), x if mask_h is None else mask_h
    grad_out = grad_out.contiguous()
    constants = w.constants | _ROWS | {"WIDTH": width, "NORM": w.norm, "TRAINING": training, "EPS": eps}
    for first in reversed(range(0, steps, group)):
        count = min(group, steps - first)
        read: list[Tensor] = []
        if again or need_matrices:  # [states, count * rows, width], as products read them
            read = list(w.masked(states[first : first + count].transpose(0, 1), mask_h).flatten(1, 2).contiguous())
        for state, matrix in enumerate(w.matrices):
            if again and matrix is not None:
                torch.mm(read[state], matrix, out=parts[state][:count].flatten(0, 1))
        for step in reversed(range(first, first + count)):
            slot = step - first if slots > 1 else 0
            grad_gate = grad_gates[step if all_gates else 0]
            launch(
                cell_spread_kernel, (triton.cdiv(rows * width, BLOCK),), grad_out[step], carried, grad_carried, mask,
                scales, grads, t.states, rows * width, **w.constants, **_ELEMENTS,
            )  # fmt: skip
            for state in reversed(range(t.states)):
                matrix = w.matrices[state]
                if matrix is not None:
                    torch.mm(parts[state][slot], matrix.t(), out=masked_grad)
                if state == 0:
                    before = out[step - 1] if step else hidden
                    targets = before, gates[step], carried, grad_gate, (0, 1), (0, 1)
                else:
                    place = (slot, slots) if again else (step, steps)
                    targets = states[step], products, grads, grad_products, place, (slot, slots)
                source, product, grad_source, grad_product, place, grad_place = targets
                table, numbers, edges = w.edges_of(state)
                launch(
                    cell_backward_kernel, w.grid, grads[state], masked_grad, mask, states[step, state],
                    stats[step, state] if w.norm else stats, source, product, table, numbers, grad_source,
                    grad_product, sums[:, ACTIVATIONS.value * t.first[state] :], sums[:, t.added(state) :], edges,
                    *place, *grad_place, rows, t.total, READ=matrix is not None, **constants,
                )  # fmt: skip
            torch.mm(grad_gate, w.hidden_matrix.t(), out=grad_carried)
        for state, total in enumerate(matrix_grads):
            if total is not None:
                _add_product(total, read[state], parts[state][:count].flatten(0, 1))
    of_hidden = carried + (grad_carried if mask_h is None else grad_carried * mask_h)
    of_x, of_W0, *of_Ws = (x.new_empty(0) for _ in range(2 + len(Ws)))
    flat_gates = grad_gates.flatten(0, 1)
    if need_x:
        of_x = torch.mm(flat_gates, w.input_matrix.t()).view(x.shape).to(x.dtype)
        of_x = of_x if mask_x is None else of_x * mask_x
    if need_matrices:
        entered = torch.cat([hidden[None], out[:-1]])
        of_W0 = x.new_zeros(W0.shape)
        _add_product(of_W0[:width], w.masked(x, mask_x).flatten(0, 1), flat_gates)
        _add_product(of_W0[width:], w.masked(entered, mask_h).flatten(0, 1), flat_gates)
        of_Ws = _of_nodes(matrix_grads, t, Ws)
    return of_x, of_hidden, of_W0, of_Ws, t.gather(sums, weights)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a' b to `total`, which may be of a wider type."""
    if total.dtype == b.dtype:
        torch.addmm(total, a.t(), b, out=total)
    else:
        total += torch.mm(a.t(), b)


def _of_nodes(parts: Sequence[Tensor | None], t: CellTables, Ws: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient of each node's matrix: the sum of its columns among those of the states that it reads."""
    found: list[list[Tensor]] = [[] for _ in Ws]
    for part, readers in zip(parts, t.readers, strict=True):
        if part is not None:
            for node, columns in zip(readers, part.chunk(len(readers), 1), strict=True):
                found[node - 1].append(columns)
    return [sum(own[1:], own[0]).contiguous() if own else torch.zeros_like(W) for own, W in zip(found, Ws, strict=True)]
