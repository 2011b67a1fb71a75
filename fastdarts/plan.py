"""Plans: which ops run on which edge, as the static description the operators take."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from fastdarts.space import CANDIDATES, Candidate, candidate

# The numbers csrc/plan.h knows the kinds by. `none` adds nothing; a kind that is not here has no kernel.
KIND_CODES = {"max_pool": 1, "avg_pool": 2, "skip": 3, "sep_conv": 4, "dil_conv": 5, "pointwise": 6}


def has_kernel(c: Candidate) -> bool:
    """Whether a kernel computes the candidate (or it needs none)."""
    return c.kind in KIND_CODES or c.kind == "none"


@dataclass(frozen=True)
class PlannedEdge:
    """An edge from state `source` to state `node` (inputs first, then nodes) and its (column of op weights, op)s."""

    source: int
    node: int
    stride: int
    ops: tuple[tuple[int, Candidate], ...]


@dataclass(frozen=True)
class MixedPlan:
    """`inputs` given states, then `nodes` computed ones: sums of edges' ops. Edge e reads row e of the weights.

    With K > 1 channels are partial, as in PC-DARTS: an edge's ops see the first 1/K of its source's, the others pass
    them by, weighted with the last column of the weights, and the sums of both are shuffled into a node; see
    `fastdarts.functional.shuffled`.
    """

    inputs: int
    nodes: int
    edges: tuple[PlannedEdge, ...]
    K: int = 1

    encoded: list[int] = field(init=False, compare=False, repr=False)
    """The plan as csrc/plan.h reads it."""

    def __post_init__(self) -> None:
        code = [self.inputs, self.nodes, self.K, len(self.edges)]
        for edge in self.edges:
            code += [edge.source, edge.node, edge.stride, len(edge.ops)]
            for column, c in edge.ops:
                code += [column, KIND_CODES[c.kind], c.kernel, c.dilation, int(c.norm)]
        object.__setattr__(self, "encoded", code)  # the class is frozen


def decode(code: list[int]) -> MixedPlan:
    """The plan that was `encoded`."""
    fused = [c for c in CANDIDATES.values() if c.kind in KIND_CODES]
    by_geometry = {(KIND_CODES[c.kind], c.kernel, c.dilation, int(c.norm)): c for c in fused}
    numbers: Iterator[int] = iter(code)
    inputs, nodes, K, count = next(numbers), next(numbers), next(numbers), next(numbers)
    edges = []
    for _ in range(count):
        source, node, stride, ops = next(numbers), next(numbers), next(numbers), next(numbers)
        edges.append(
            PlannedEdge(
                source,
                node,
                stride,
                tuple(
                    (next(numbers), by_geometry[next(numbers), next(numbers), next(numbers), next(numbers)])
                    for _ in range(ops)
                ),
            )
        )
    return MixedPlan(inputs, nodes, tuple(edges), K)


def param_count(c: Candidate, stride: int) -> int:
    """Convolution weights of an op, in the operators' order: those of its module in order of registration."""
    return {"sep_conv": 4, "dil_conv": 2, "pointwise": 1, "skip": 2 * (stride == 2)}.get(c.kind, 0)


def norm_count(c: Candidate, stride: int) -> int:
    """Batch norms of an op."""
    if c.is_pool:
        return int(c.norm)
    return {"sep_conv": 2, "dil_conv": 1, "pointwise": 1, "skip": int(stride == 2)}.get(c.kind, 0)


def edge_ops(primitives: tuple[str, ...], columns: tuple[int, ...] | None = None) -> tuple[tuple[int, Candidate], ...]:
    """The ops of an edge that have a kernel, of all columns or of those given."""
    chosen = range(len(primitives)) if columns is None else columns
    ops = [(column, candidate(primitives[column])) for column in chosen]
    return tuple((column, c) for column, c in ops if c.kind in KIND_CODES)
