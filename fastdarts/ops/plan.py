"""Describe to the operators which ops run on which edge, as a static plan."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from fastdarts.primitives.table import CANDIDATES, Candidate, candidate

# Codes of the kinds in csrc/plan.h. A kind that is missing here has no kernel, except `none`, which needs none.
KIND_CODES = {"max_pool": 1, "avg_pool": 2, "skip": 3, "sep_conv": 4, "dil_conv": 5}


def has_kernel(c: Candidate) -> bool:
    """Return True if a kernel computes candidate `c`, or if it needs none."""
    return c.kind in KIND_CODES or c.kind == "none"


@dataclass(frozen=True)
class PlannedEdge:
    """Describe an edge from state `source` to state `node`; `ops` holds (column of the op weights, op) pairs.

    States are numbered inputs first, then nodes.
    """

    source: int
    node: int
    stride: int
    ops: tuple[tuple[int, Candidate], ...]


@dataclass(frozen=True)
class MixedPlan:
    """Describe `nodes` nodes computed from `inputs` input states by mixed edges; edge e reads row e of the op weights.

    With K > 1 channels are partial, as in PC-DARTS: an edge's ops read the first 1/K of its source's channels; the
    others bypass them, weighted by the last column of the op weights. A node shuffles the sums of both; see
    `fastdarts.ops.functional.shuffled`.
    """

    inputs: int
    nodes: int
    edges: tuple[PlannedEdge, ...]
    K: int = 1

    encoded: list[int] = field(init=False, compare=False, repr=False)
    """The plan as integers, in the format that csrc/plan.h reads."""

    def __post_init__(self) -> None:
        code = [self.inputs, self.nodes, self.K, len(self.edges)]
        for edge in self.edges:
            code += [edge.source, edge.node, edge.stride, len(edge.ops)]
            for column, c in edge.ops:
                code += [column, KIND_CODES[c.kind], c.kernel, c.dilation]
        object.__setattr__(self, "encoded", code)  # the class is frozen


def decode(code: list[int]) -> MixedPlan:
    """Return the plan whose `encoded` is `code`."""
    fused = [c for c in CANDIDATES.values() if c.kind in KIND_CODES]
    by_geometry = {(KIND_CODES[c.kind], c.kernel, c.dilation): c for c in fused}
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
                tuple((next(numbers), by_geometry[next(numbers), next(numbers), next(numbers)]) for _ in range(ops)),
            )
        )
    return MixedPlan(inputs, nodes, tuple(edges), K)


def param_count(c: Candidate, stride: int) -> int:
    """Count the convolution weights of an op at `stride`; the operators take them in the order of the op's stages."""
    return sum(stage.weights for stage in c.stages_at(stride))


def norm_count(c: Candidate, stride: int) -> int:
    """Count the batch norms of an op at `stride`."""
    return sum(stage.kind == "norm" for stage in c.stages_at(stride))


def edge_ops(primitives: tuple[str, ...], columns: tuple[int, ...] | None = None) -> tuple[tuple[int, Candidate], ...]:
    """Return the (column, op) pairs of an edge's ops that have a kernel, among all columns or those given."""
    chosen = range(len(primitives)) if columns is None else columns
    ops = [(column, candidate(primitives[column])) for column in chosen]
    return tuple((column, c) for column, c in ops if c.kind in KIND_CODES)
