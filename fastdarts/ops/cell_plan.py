"""Describe which activations a recurrent cell computes on which of its edges, for plain formulas and kernels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

NAMES = ("none", "tanh", "relu", "sigmoid", "identity", "added")
"""Activations by code. `added` puts its weight itself into the node, in place of a candidate (GDAS)."""


@dataclass(frozen=True)
class Term:
    """Describe one term of a node: weight times the candidate of an activation on the edge from state `source`.

    Attributes:
        source: index of an earlier state; state 0 is made from the input.
        code: index into `NAMES`.
        weight: index of its op weight in the flattened tensor of op weights.
    """

    source: int
    code: int
    weight: int

    @property
    def reads(self) -> bool:
        """Return True if the term reads a product of its source."""
        return self.code != NAMES.index("added")


@dataclass(frozen=True)
class CellPlan:
    """Describe a recurrent cell.

    Attributes:
        nodes: the terms of each node; node i computes state i + 1.
        outputs: the states whose mean is the new hidden state.
        norm: True if state 0 and each node are normalised over the batch, without affine parameters.
    """

    nodes: tuple[tuple[Term, ...], ...]
    outputs: tuple[int, ...]
    norm: bool

    @cached_property
    def encoded(self) -> list[int]:
        """Return the plan as the operators take it: norm, outputs and nodes, each list after its length."""
        numbers = [int(self.norm), len(self.outputs), *self.outputs, len(self.nodes)]
        for terms in self.nodes:
            numbers.append(len(terms))
            for term in terms:
                numbers += (term.source, term.code, term.weight)
        return numbers

    @cached_property
    def readers(self) -> list[int]:
        """Return the number of nodes that read each state."""
        count = [0] * (len(self.nodes) + 1)
        for terms in self.nodes:
            for source in {term.source for term in terms if term.reads}:
                count[source] += 1
        return count

    @property
    def makes_products_again(self) -> bool:
        """Return True if the GPU kernels' backward makes the products of all edges again, since they are so many that
        they would be most of the memory that a forward keeps. The CPU kernels' backward always does."""
        return sum(self.readers) > 2 * len(self.readers)

    @classmethod
    def decode(cls, numbers: Sequence[int]) -> "CellPlan":
        """Return the plan whose `encoded` this is; raise a ValueError where there is none."""
        left = iter(numbers)
        try:
            norm, outputs = bool(next(left)), tuple([next(left) for _ in range(next(left))])
            count = next(left)
            nodes = [tuple([Term(*[next(left) for _ in range(3)]) for _ in range(next(left))]) for _ in range(count)]
        except StopIteration:
            raise ValueError("recurrent: the plan ends too early") from None
        if count < 0 or next(left, None) is not None:
            raise ValueError("recurrent: the plan holds numbers too many")
        states = range(count + 1)
        sources = [(term.source, node) for node, terms in enumerate(nodes) for term in terms]
        if any(source not in range(node + 1) for source, node in sources) or any(out not in states for out in outputs):
            raise ValueError("recurrent: the plan names a state that is not there")
        return cls(tuple(nodes), outputs, norm)


def search_plan(
    ops: Sequence[Sequence[str]],
    ends: Sequence[tuple[int, int]],
    active: Sequence[Iterable[int]] | None,
    added: bool,
) -> CellPlan:
    """Return the plan of a search cell with batch norm, whose output is the mean of all nodes.

    Args:
        ops: names of each edge's candidates, equally many.
        ends: (source, target) of each edge, sorted by target.
        active: columns that run on each edge; None runs all. `none` never runs.
        added: True if the op weights have one more column, a number that the edge adds to its target.
    """
    columns = len(ops[0]) + added
    nodes: list[list[Term]] = [[] for _ in range(max(target for _, target in ends))]
    for row, (source, target) in enumerate(ends):
        running = range(len(ops[row])) if active is None else sorted(active[row])
        for column in running:
            if ops[row][column] != "none":
                nodes[target - 1].append(Term(source, NAMES.index(ops[row][column]), row * columns + column))
        if added:
            nodes[target - 1].append(Term(source, NAMES.index("added"), row * columns + columns - 1))
    return CellPlan(tuple(map(tuple, nodes)), tuple(range(1, len(nodes) + 1)), norm=True)


def derived_plan(nodes: Sequence[tuple[str, int]], outputs: Sequence[int]) -> CellPlan:
    """Return the plan of a found cell, without batch norm; the weight of node i is number i."""
    terms = tuple((Term(source, NAMES.index(name), node),) for node, (name, source) in enumerate(nodes))
    return CellPlan(terms, tuple(outputs), norm=False)
