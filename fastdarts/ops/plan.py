"""Describe to the operators which ops run on which edge, as a static plan."""

import math
from dataclasses import dataclass, field

from fastdarts.primitives.table import CANDIDATES, Candidate, candidate

# Codes of the kinds in csrc/plan.h. A kind that is missing here has no kernel, except `none`, which needs none.
KIND_CODES = {"max_pool": 1, "avg_pool": 2, "skip": 3, "sep_conv": 4, "dil_conv": 5, "pointwise": 6}


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
                code += [column, *_geometry(c)]
        object.__setattr__(self, "encoded", code)  # the class is frozen


MOST = 2**20 - 1
"""The largest number of a plan."""


class _Numbers:
    """The numbers of an encoded plan, one after the other."""

    def __init__(self, code: list[int]) -> None:
        self.code = code
        self.at = 0

    def next(self, name: str, least: int) -> int:
        if self.at == len(self.code):
            raise ValueError(f"plan ends too early, after {len(self.code)} numbers")
        number = self.code[self.at]
        self.at += 1
        if not least <= number <= MOST:
            raise ValueError(f"plan: {name} must be from {least} to {MOST}; got {number}")
        return number


def decode(code: list[int]) -> MixedPlan:
    """Return the plan that was `encoded`. ValueError where there is none, by the rules of csrc/plan.h."""
    numbers = _Numbers(code)
    inputs, nodes, K = (numbers.next(name, 1) for name in ("inputs", "nodes", "K"))
    edges = tuple(_edge(numbers, inputs, nodes) for _ in range(numbers.next("edges", 0)))
    if numbers.at < len(code):
        raise ValueError(f"plan holds {len(code) - numbers.at} numbers too many")
    return MixedPlan(inputs, nodes, edges, K)


def _edge(numbers: _Numbers, inputs: int, nodes: int) -> PlannedEdge:
    source, node, stride = numbers.next("source", 0), numbers.next("node", inputs), numbers.next("stride", 1)
    if source >= node or node >= inputs + nodes or stride > (2 if source < inputs else 1):
        raise ValueError(f"plan: no edge goes from state {source} to {node} at stride {stride}")
    ops: dict[int, Candidate] = {}
    for _ in range(numbers.next("ops", 0)):
        column, *geometry = (numbers.next(name, 0) for name in ("column", "kind", "kernel", "dilation", "norm"))
        c = _BY_GEOMETRY.get(tuple(geometry))
        if c is None:
            kind, kernel, dilation, norm = geometry
            raise ValueError(f"plan: no op has kind {kind}, kernel {kernel}, dilation {dilation}, norm {norm}")
        if column in ops:
            raise ValueError(f"plan: an edge has column {column} twice")
        ops[column] = c
    return PlannedEdge(source, node, stride, tuple(ops.items()))


def _geometry(c: Candidate) -> tuple[int, ...]:
    return KIND_CODES[c.kind], c.kernel, c.dilation, int(c.norm)


_BY_GEOMETRY = {_geometry(c): c for c in CANDIDATES.values() if c.kind in KIND_CODES}


def param_count(c: Candidate, stride: int) -> int:
    """Count the convolution weights of an op at `stride`; the operators take them in the order of the op's stages."""
    return sum(stage.weights for stage in c.stages_at(stride))


def param_size(c: Candidate, i: int, C: int) -> int:
    """Return how many numbers the i-th convolution weight of an op of C channels holds."""
    stages = c.stages if c.at_stride_2 is None else c.at_stride_2  # a skip connection has weights at stride 2 only
    return math.prod([shape for stage in stages for shape in stage.shapes(C)][i])


def norm_count(c: Candidate, stride: int) -> int:
    """Count the batch norms of an op at `stride`."""
    return sum(stage.kind == "norm" for stage in c.stages_at(stride))


def edge_ops(primitives: tuple[str, ...], columns: tuple[int, ...] | None = None) -> tuple[tuple[int, Candidate], ...]:
    """Return the (column, op) pairs of an edge's ops that have a kernel, among all columns or those given."""
    chosen = range(len(primitives)) if columns is None else columns
    ops = [(column, candidate(primitives[column])) for column in chosen]
    return tuple((column, c) for column, c in ops if c.kind in KIND_CODES)
