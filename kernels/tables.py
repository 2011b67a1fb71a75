"""A plan as the integer tables that the kernels read: a row for each stage, term, edge and sum."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from fastdarts.ops.plan import PlannedEdge, decode
from fastdarts.primitives.table import Candidate

# Kinds of stages, by what comes before their pointwise product; pools and skip connections have none. PIXEL takes a
# pixel of a state, GATHER (a factorised reduction) one for each half of the outputs. Bits: a kernel is for a set.
GATHER, SKIP, MAX, AVG, PIXEL = (tl.constexpr(1 << i) for i in range(5))
CONV_3, CONV_5, CONV_7, DILATED_3, DILATED_5 = (tl.constexpr(1 << i) for i in range(5, 10))
_CONVOLUTIONS = {(3, 1): CONV_3, (5, 1): CONV_5, (7, 1): CONV_7, (3, 2): DILATED_3, (5, 2): DILATED_5}

# Of each geometry: kernel, dilation, and the columns of the blocks (blocks.py) that it goes by, forward and backward,
# where the registers of a thread hold fewer: with more than these it spills.
WINDOWS = tl.constexpr(
    tuple(
        (geometry.value, kernel, dilation, 4 if kernel < 7 else 2, 4 if kernel == 3 else 2)
        for (kernel, dilation), geometry in _CONVOLUTIONS.items()
    )
)
WINDOW_KINDS = tl.constexpr(len(_CONVOLUTIONS))
TAPS = {geometry.value: kernel**2 for (kernel, _), geometry in _CONVOLUTIONS.items()}

# Columns of a stage's row.
GEOMETRY, Y, NORM, DW, PW, X, X_NORM = (tl.constexpr(i) for i in range(7))
NODE, OWN, DZ, OP_WEIGHT, FIRST_EDGE, EDGES, GROUP, STATE, PART = (tl.constexpr(i) for i in range(7, 16))
ROW = tl.constexpr(16)
# Columns of a term's row. SOURCE: 0 a saved tensor, 1 a node, 2 + i input state i; SLOT: which saved tensor or node;
# POOL: 0, or the geometry of the pool that the state goes through.
SOURCE, SLOT, TERM_NORM, WEIGHT, POOL = (tl.constexpr(i) for i in range(5))
TERM = tl.constexpr(5)
# Columns of an edge's row: whose gradient enters, and with what weight.
EDGE_NODE, EDGE_OWN, EDGE_NORM, EDGE_WEIGHT = (tl.constexpr(i) for i in range(4))
# Columns of a sum's row: where sum g and sum g * (t - mean) stand, and whose they are.
SUM_G, SUM_GT, SUM_NORM, SUM_WEIGHT = (tl.constexpr(i) for i in range(4))
NARROW = tl.constexpr(4)


Term = tuple[int, int, int, int, int]


@dataclass
class Stage:
    """A row. y and x count tensors in `saved`, dz in scratch; dw counts taps and pw [C, C] matrices of flat weights.

    A pool's y is never stored: nine values of a state that is read anyway cost less than reading it back. Its place in
    `saved` stays empty; the operators' fakes, which serve CPUs too, count it. Its norm is -1 if no edge has one.
    """

    geometry: int
    target: int  # the node it leads to; pools and reductions: -1
    y: int
    norm: int
    dw: int = 0
    pw: int = 0
    x: int = 0
    x_norm: int = 0
    node: int = -1  # -1: the gradient comes from dz
    own: int = 0
    dz: int = 0
    weight: int = -1  # op weight of a skip connection or of an op's last stage
    state: int = 0  # which of its launch's states it reads, or its first stage
    edges: list[tuple[int, int, int, int]] = field(default_factory=list)  # pools: the edges that use them; norm or -1


@dataclass
class Bank:
    """Everything that leaves one state at one stride."""

    source: int
    stride: int
    state: int = 0  # among the inputs; a node is the only state of its launches
    convolutions: list[Stage] = field(default_factory=list)
    reductions: list[Stage] = field(default_factory=list)
    pools: list[Stage] = field(default_factory=list)
    seconds: list[Stage] = field(default_factory=list)
    skips: list[Stage] = field(default_factory=list)

    @property
    def firsts(self) -> list[Stage]:
        """Return the stages that a forward computes from the state."""
        return self.convolutions + self.reductions + [pool for pool in self.pools if pool.norm >= 0]

    @property
    def edges(self) -> list[Stage]:
        """Return the stages that bring the state a gradient along one edge, edge by edge."""
        return sorted(self.convolutions + self.skips, key=lambda stage: stage.target)


@dataclass
class Tables:
    """A plan's banks in the order of their sources, its nodes, and the sizes of what they share."""

    inputs: int
    columns: int  # of the op weights
    entry: tuple[int, int]  # source and stride of an edge from an input
    banks: list[Bank]
    nodes: list[list[Term]]  # the terms of each
    saved: int
    norms: int
    taps: int  # of the flat depthwise weights, [taps, C]
    matrices: int  # of the flat pointwise weights, [matrices, C, C]
    is_depthwise: list[bool]  # of each parameter

    def banks_of(self, state: int) -> list[Bank]:
        return [bank for bank in self.banks if bank.source == state]

    def split(self, params: Sequence[Tensor], depthwise: Tensor, pointwise: Tensor) -> list[Tensor]:
        """Flat gradients as the parameters' own."""
        at = {True: 0, False: 0}
        grads = []
        for param, is_depthwise in zip(params, self.is_depthwise, strict=True):
            flat, start = depthwise if is_depthwise else pointwise, at[is_depthwise]
            at[is_depthwise] += param.numel()
            grads.append(flat[start : start + param.numel()].view(param.shape).to(param.dtype))
        return grads


class _Builder:
    def __init__(self, code: Sequence[int]) -> None:
        self.plan = decode(list(code))
        entry = next((edge.source, edge.stride) for edge in self.plan.edges if edge.source < self.plan.inputs)
        self.tables = Tables(self.plan.inputs, 0, entry, [], [[] for _ in range(self.plan.nodes)], 0, 0, 0, 0, [])
        self.has_bank = {edge.source for edge in self.plan.edges if edge.ops}

    def build(self, columns: int) -> Tables:
        self.tables.columns = columns
        for e, edge in enumerate(self.plan.edges):
            for column, c in edge.ops:
                self._op(edge, c, e * columns + column)
        self.tables.banks.sort(key=lambda bank: bank.source)
        for terms in self.tables.nodes:
            terms.sort(key=lambda term: term[SOURCE.value] != 0)  # saved tensors first
        return self.tables

    def _bank(self, edge: PlannedEdge) -> Bank:
        for bank in self.tables.banks:
            if (bank.source, bank.stride) == (edge.source, edge.stride):
                return bank
        state = edge.source if edge.source < self.plan.inputs else 0
        self.tables.banks.append(Bank(edge.source, edge.stride, state))
        return self.tables.banks[-1]

    def _op(self, edge: PlannedEdge, c: Candidate, weight: int) -> None:
        t, bank, node = self.tables, self._bank(edge), edge.node - self.plan.inputs
        own = int(edge.node in self.has_bank)
        terms = t.nodes[node]
        norm = t.norms
        state = (2 + edge.source, 0) if edge.source < self.plan.inputs else (1, edge.source - self.plan.inputs)
        if c.kind == "skip" and edge.stride == 1:
            terms.append((*state, -1, weight, 0))
            bank.skips.append(Stage(SKIP.value, node, 0, 0, node=node, own=own, weight=weight, state=bank.state))
            return
        if c.is_pool:
            t.norms += c.norm
            norm = norm if c.norm else -1
            geometry = (MAX if c.kind == "max_pool" else AVG).value
            pool = next((p for p in bank.pools if p.geometry == geometry), None)
            if pool is None:
                pool = Stage(geometry, -1, self._saved(), -1, state=bank.state)
                bank.pools.append(pool)
            pool.norm = max(pool.norm, norm)
            pool.edges.append((node, own, norm, weight))
            terms.append((*state, norm, weight, geometry))
            return
        if c.kind == "skip":  # at stride 2 a factorised reduction
            last = Stage(GATHER.value, -1, self._saved(), norm, pw=t.matrices, state=bank.state)
            t.matrices += 1
            t.is_depthwise += [False, False]
            bank.reductions.append(last)
            t.norms += 1
        else:
            last = self._stage(c, node, bank.state)
            bank.convolutions.append(last)
            if c.kind == "sep_conv":
                first, last = last, self._stage(c, node, bank.state)
                last.x, last.x_norm = first.y, first.norm
                together = [b for b in t.banks if b is bank or max(b.source, bank.source) < t.inputs]
                first.dz = last.dz = sum(len(b.seconds) for b in together)
                bank.seconds.append(last)
        last.node, last.own, last.weight = node, own, weight
        terms.append((0, last.y, last.norm, weight, 0))

    def _stage(self, c: Candidate, node: int, state: int) -> Stage:
        t = self.tables
        geometry = (PIXEL if c.kind == "pointwise" else _CONVOLUTIONS[c.kernel, c.dilation]).value
        stage = Stage(geometry, node, self._saved(), t.norms, dw=t.taps, pw=t.matrices, state=state)
        t.norms += 1
        t.matrices += 1
        if geometry in TAPS:
            t.taps += TAPS[geometry]
            t.is_depthwise.append(True)
        t.is_depthwise.append(False)
        return stage

    def _saved(self) -> int:
        self.tables.saved += 1
        return self.tables.saved - 1


@lru_cache(maxsize=1024)
def tables(code: tuple[int, ...], columns: int) -> Tables:
    """The tables of an encoded plan for `columns` columns of op weights."""
    return _Builder(code).build(columns)


@lru_cache(maxsize=256)
def projection(stride: int) -> Bank:
    """A cell's preprocessing as a bank of its own: one gather of `stride` pixels."""
    return Bank(0, stride, reductions=[Stage(GATHER.value, -1, 0, 0, node=0)])


def geometries(stages: Sequence[Stage], normalised: bool) -> int:
    """The set of a launch's geometries, as bits; of pools and of convolutions all that are usual if there is one.

    A method that draws each edge's op anew would otherwise wait for another kernel to be compiled in many a step.
    What knows windows or reductions knows pointwise convolutions too; one of these alone needs no code for the others.
    """
    convolutions = CONV_3.value | CONV_5.value
    if not normalised:
        convolutions |= DILATED_3.value | DILATED_5.value
    bits = 0
    for stage in stages:
        usual = next((kinds for kinds in (convolutions, MAX.value | AVG.value) if stage.geometry & kinds), 0)
        bits |= stage.geometry | usual
    if not normalised and bits & (convolutions | CONV_7.value | GATHER.value):
        bits |= PIXEL.value
    return bits


def group_of(stage: Stage, paired: bool) -> tuple[int, int]:
    """Stages with the same are one program's: those of an edge, or `paired` of two, which share a state and its
    gradient; the pools of a state and the reductions.
    """
    return stage.state, stage.target // 2 if paired and stage.target >= 0 else stage.target


def grouped(stages: Sequence[Stage], paired: bool, pieces: int) -> list[list[Stage]]:
    """The stages of each program: of two edges with `paired`, of an edge, or of about one in `pieces` of an edge's."""
    groups = []
    for _, group in groupby(stages, lambda stage: group_of(stage, paired)):
        of_edge = list(group)
        size = -(-len(of_edge) // pieces)
        groups += [of_edge[i : i + size] for i in range(0, len(of_edge), size)]
    return groups


def stage_rows(
    groups: Sequence[Sequence[Stage]], device: torch.device, begins: dict[int, int] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of the groups' stages, those of the edges their pools refer to, and groups (first, last + 1) of rows.

    begins: where in the gradients' parts each state's begin.
    """
    rows: list[Any] = []
    edges: list[Any] = []
    bounds: list[tuple[int, int]] = []
    part, state = -1, -1
    for group in groups:
        part = begins[group[0].state] if begins and group[0].state != state else part + 1
        state = group[0].state
        for s in group:
            row = [s.geometry, s.y, s.norm, s.dw, s.pw, s.x, s.x_norm, s.node, s.own, s.dz, s.weight]
            rows.append((*row, len(edges), len(s.edges), len(bounds), s.state, part))
            edges += s.edges
        bounds.append((len(rows) - len(group), len(rows)))
    return constant(tuple(rows), device), constant(tuple(edges), device), constant(tuple(bounds), device)


_in_graphs: set[Tensor] = set()  # what captured launches read for as long as their graphs live


def constant(rows: tuple[tuple[float, ...], ...], device: torch.device, dtype: torch.dtype = torch.int32) -> Tensor:
    """Numbers on the device, copied there once for each stream, without waiting for it."""
    table = _copied(rows, device, dtype, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _in_graphs.add(table)
    return table


@lru_cache(maxsize=8192)
def _copied(rows: tuple[tuple[float, ...], ...], device: torch.device, dtype: torch.dtype, stream: int) -> Tensor:
    table = torch.tensor(rows or ((0,),), dtype=dtype)
    # A captured copy would read the host's memory again in each replay: without pinning torch refuses it.
    if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        table = table.pin_memory()
    return table.to(device, non_blocking=True)
