"""Compute the memory traffic of a launch of a Triton kernel from its grid, its tiles and its tables.

For each program, every element that it loads or stores counts once. Tests compare the numbers with the elements that
programs touch in Triton's interpreter.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import Tensor

from benchmarks.occupancy import Work
from fastdarts.kernels.mix import TOGETHER
from fastdarts.kernels.tables import (
    AVG,
    CONV_3,
    CONV_5,
    CONV_7,
    DILATED_3,
    DILATED_5,
    DZ,
    EDGE_NODE,
    EDGE_OWN,
    GATHER,
    GEOMETRY,
    MAX,
    NODE,
    OWN,
    PIXEL,
    POOL,
    SKIP,
    SLOT,
    SOURCE,
    SUM_NORM,
    TAPS,
    TERM_NORM,
)  # fmt: skip

HALO = {CONV_3.value: 1, CONV_5.value: 2, CONV_7.value: 3, DILATED_3.value: 2, DILATED_5.value: 4}
HALO |= {MAX.value: 1, AVG.value: 1, GATHER.value: 0, PIXEL.value: 0, SKIP.value: 0}
# Issue slots per output element: instructions in the loops of the machine code for sm_90 in bfloat16, divided by the
# outputs of a thread. At stride 1 (16 channels) they are given for a 3x3 and a 5x5 window (kernels/blocks.py) with all
# that its loop does: first for windows over a state, then over a first stage's y, which is normalised when read.
FORWARD = ((18.1, 40.6), (21.2, 46.0))
AGAIN = ((18.3, 49.5), (21.3, 57.4))
BACK = ((22.5, 50.8), (26.4, 54.4))
WEIGHTS = ((19.3, 48.7), (22.2, 55.8))
# Issue slots per tap at larger strides (64 channels); PIXELS_BACK is for the state's pixels that an output stands for.
TAP_FORWARD, TAP_BACK, TAP_WEIGHTS = 5.6, 5.1, 7.2
PIXELS_BACK = 35
# Issue slots of a pool's window: for its moments, for a node or its sums, and in the backward.
POOLED, POOL_MIXED, POOL_BACK = 45, 19, 102
# Instructions per output element of csrc/cuda/planes_forward.cuh, by channels: to read a group's state; of a first
# stage with 3x3 and with 5x5 windows; of a second stage, with the first made again. Unlike those above they are all
# that a program executes, counted in PTX by the machine in tests/ptx; machine code has a quarter to a third fewer.
PLANES = {
    16: (6.6, (38.6, 45.0), (65.4, 72.9)),
    32: (8.4, (65.6, 79.9), (104.6, 123.3)),
}


COUNTER = 8
"""Bytes of a batch norm's count of batches."""


@dataclass
class Traffic:
    """Hold the traffic and work of launches; bytes and numbers of launches are kept by operator or kernel."""

    bytes: Counter[str] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)
    slots: float = 0  # issue slots of windows: depthwise convolutions and pools
    products: int = 0  # multiply-adds of matrix instructions
    works: list[Work] = field(default_factory=list)  # each launch
    joins: list[int] = field(
        default_factory=list
    )  # numbers of works before which the first stream waits for the second

    def add(self, name: str, size: int) -> None:
        self.bytes[name] += size
        self.launches[name] += 1
        self.works.append(Work(name, 0, 0, size))

    def __iadd__(self, other: Traffic) -> Traffic:
        self.bytes.update(other.bytes)
        self.launches.update(other.launches)
        self.slots += other.slots
        self.products += other.products
        self.works += other.works
        return self


def traffic_of(name: str, grid: tuple[int, ...], a: dict[str, Any]) -> Traffic:
    """Return the traffic of a launch of kernel `name` with arguments `a` by name."""
    size, slots, products = COUNTS[name](grid, a)
    work = Work(name, math.prod(grid), a["num_warps"], size, slots, products, together=_under_way(a))
    return Traffic(Counter({name: size}), Counter({name: 1}), slots, products, [work])


def _under_way(a: dict[str, Any]) -> float:
    """Return how many tiles a program loads before it uses one: of a node's saved tensors some, on average over all."""
    if "together" not in a:
        return 1
    return float(a["terms"] / (a["together"] / TOGETHER.value + a["terms"] - a["together"]))


@cache
def touched(pixels: int, step: int, height: int, width: int, scale: int, halo: int) -> int:
    """Count the input pixels that all programs touch together, when each computes `step` of `pixels` output pixels.

    Output images are height x width, input images `scale` times as high and wide; windows extend `halo` input rows
    beyond their own. Programs read whole rows.
    """
    total = 0
    for start in range(0, pixels, step):
        first, last = start // width, (min(start + step, pixels) - 1) // width
        for image in range(first // height, last // height + 1):
            low, high = max(first, image * height), min(last, (image + 1) * height - 1)
            top = max((low - image * height) * scale - halo, 0)
            bottom = min((high - image * height) * scale + scale - 1 + halo, height * scale - 1)
            rows = bottom - top + 1
            partial = (min(start + step, pixels) - start) / ((last - first + 1) * width) if halo == 0 else 1
            total += round(rows * width * scale * partial)
    return total


def _rows(a: dict[str, Any]) -> list[list[int]]:
    return a["rows_ptr"].tolist()


def _groups(a: dict[str, Any]) -> list[list[list[int]]]:
    rows = _rows(a)
    return [rows[first:last] for first, last in a["groups_ptr"].tolist()]


def _halo(row: list[int]) -> int:
    return HALO[row[GEOMETRY.value]]


def _leaps(a: dict[str, Any], row: list[int]) -> bool:
    """Return True if a stage's windows read the pixels of one parity only: those dilated by 2 at stride 2."""
    return bool(a["STRIDE"] == 2 and row[GEOMETRY.value] in (DILATED_3.value, DILATED_5.value))


def _taps(row: list[int]) -> int:
    return TAPS.get(row[GEOMETRY.value], 0)


Windows = tuple[tuple[float, float], tuple[float, float]]


def _window_slots(a: dict[str, Any], row: list[int], windows: Windows, tap: float) -> float:
    """Return the issue slots of a stage's windows per output element."""
    taps = _taps(row)
    if a["STRIDE"] > 1 or not taps:
        return taps * tap
    of_3, of_5 = windows[a["NORMALISED"]]
    return of_3 + (taps - 9) / 16 * (of_5 - of_3)


def _is_pool(row: list[int]) -> bool:
    return row[GEOMETRY.value] in (MAX.value, AVG.value)


def _has_matrix(row: list[int]) -> bool:
    return row[GEOMETRY.value] not in (MAX.value, AVG.value, SKIP.value)


def _inputs(a: dict[str, Any], group: list[list[int]]) -> int:
    """Count the elements that a group's stages read: each its own saved tensor, or all of them the state.

    Programs with windows read whole images, but those that are dilated by the stride only every other pixel.
    """
    if any(_halo(row) and not _leaps(a, row) for row in group):
        pixels = a["pixels"] // (a["HO"] * a["WO"]) * a["H"] * a["W"]
    else:
        pixels = a["pixels"] * (a["STRIDE"] if any(row[GEOMETRY.value] == GATHER.value for row in group) else 1)
    return pixels * a["C_IN"] * (len(group) if a["NORMALISED"] else 1)


def _weights(a: dict[str, Any], row: list[int]) -> int:
    """Return the bytes of a stage's weights."""
    depthwise = _taps(row) * a["C_IN"] * a["dw_ptr"].element_size()
    return depthwise + (a["C_OUT"] * a["C_IN"] * a["pw_ptr"].element_size() if _has_matrix(row) else 0)


def stage_forward(grid: tuple[int, ...], a: dict[str, Any]) -> tuple[int, float, int]:
    element, compute = a["saved_ptr"].element_size(), a["norms_ptr"].element_size()
    size = products = 0
    slots = 0.0
    tiles = grid[0] * -(-a["IMAGES"] * a["HO"] * a["WO"] // a["BLOCK_P"])
    for group in _groups(a):
        size += grid[2] * _inputs(a, group) * element
        size += sum(not _is_pool(row) for row in group) * a["pixels"] * a["C_OUT"] * element
        if grid[2] > 1 and any(map(_taps, group)):  # d, which the group's stages use one after another
            size += grid[2] * a["pixels"] * a["C_IN"] * element
        size += len(group) * tiles * 2 * a["C_OUT"] * compute + grid[0] * sum(_weights(a, row) for row in group)
        for row in group:
            slot = POOLED if _is_pool(row) else grid[2] * _window_slots(a, row, FORWARD, TAP_FORWARD)
            slots += a["pixels"] * a["C_IN"] * slot
            products += 0 if _is_pool(row) else a["pixels"] * a["C_IN"] * a["C_OUT"]
    return size, slots, products


def join_moments(grid: tuple[int, ...], a: dict[str, Any]) -> tuple[int, float, int]:
    return grid[0] * 2 * (a["tiles"] + 1) * a["C"] * a["stats_ptr"].element_size(), 0, 0


def learned_norms(grid: tuple[int, ...], a: dict[str, Any]) -> tuple[int, float, int]:
    return grid[0] * 7 * a["C"] * a["stats_ptr"].element_size(), 0, 0


def mix_forward(grid: tuple[int, ...], a: dict[str, Any]) -> tuple[int, float, int]:
    element, compute = a["saved_ptr"].element_size(), a["norms_ptr"].element_size()
    elements, slots = a["pixels"] * a["C"], 0.0
    seen: dict[tuple[int, int], int] = {}
    for term in a["terms_ptr"].tolist():
        source, slot, pool = term[SOURCE.value], term[SLOT.value], term[POOL.value]
        height = a["HO"] if source < 2 else a["STATES"][source - 2][1]
        halo = HALO.get(pool, 0)
        pixels = touched(a["pixels"], a["BLOCK_P"], a["HO"], a["WO"], 1 if height == a["HO"] else 2, halo)
        seen[source, slot] = max(seen.get((source, slot), 0), pixels * a["C"])  # a state is read once for all its terms
        slots += POOL_MIXED * elements if pool else 0
    norms = sum(term[TERM_NORM.value] >= 0 for term in a["terms_ptr"].tolist())
    return (sum(seen.values()) + elements) * element + grid[0] * norms * 2 * a["C"] * compute, slots, 0


def term_sums(grid: tuple[int, ...], a: dict[str, Any]) -> tuple[int, float, int]:
    size, slots, products = mix_forward(grid, a)
    return size + a["sums_ptr"].numel() * a["sums_ptr"].element_size(), slots, products


def finish_sums(grid: tuple[int, ...], a: dict[str, Any]) -> tuple[int, float, int]:
    norms = sum(entry[SUM_NORM.value] >= 0 for entry in a["list_ptr"].tolist())
    return (grid[0] * 2 * a["tiles"] + norms * 5) * a["C"] * a["sums_ptr"].element_size(), 0, 0


def _gradients(group: list[list[int]]) -> int:
    """Count the gradients that enter a group's stages: those of nodes, and those of subsequent stages."""
    return len({(row[NODE.value], row[OWN.value] if row[NODE.value] >= 0 else row[DZ.value]) for row in group})


def _reads_y(a: dict[str, Any], row: list[int]) -> bool:
    """Return True if the stage's backward reads y, which it does unless it computes y again."""
    again = a["NEED_PARAMS"] and a["C_IN"] <= a["BLOCK_I"] and a["C_OUT"] <= a["BLOCK_O"]
    return _has_matrix(row) and not again


def stage_backward(grid: tuple[int, ...], a: dict[str, Any]) -> tuple[int, float, int]:
    element, compute = a["saved_ptr"].element_size(), a["norms_ptr"].element_size()
    size = products = 0
    slots = 0.0
    pixels, normalised, params = a["pixels"], a["NORMALISED"], a["NEED_PARAMS"]
    windows = pixels * a["C_IN"]
    inputs = pixels // (a["HO"] * a["WO"]) * a["H"] * a["W"] * a["C_IN"]
    for group in _groups(a):
        size += grid[2] * pixels * a["C_OUT"] * element * (_gradients(group) + sum(_reads_y(a, r) for r in group))
        if any(row[GEOMETRY.value] != SKIP.value for row in group):
            size += _inputs(a, group) * element
        if any(map(_has_matrix, group)):  # dd, which the group's stages use one after another
            size += windows * element
        if normalised:
            size += len(group) * (windows * element + grid[0] * 2 * a["C_IN"] * compute)
        elif a["NEED_X"]:
            size += inputs * element
        for row in group:
            size += grid[0] * _weights(a, row)
            if params and _has_matrix(row):
                size += grid[0] * (_taps(row) + a["C_OUT"]) * a["C_IN"] * compute
            if params:  # d once more, and the weights' gradient
                slots += windows * _window_slots(a, row, AGAIN, TAP_FORWARD)
                slots += windows * _window_slots(a, row, WEIGHTS, TAP_WEIGHTS)
            if _taps(row) and (normalised or a["NEED_X"]):
                slots += windows * (_window_slots(a, row, BACK, TAP_BACK) + (a["STRIDE"] > 1) * PIXELS_BACK)
            if _has_matrix(row):
                products += (1 + 2 * params) * windows * a["C_OUT"]
    return size, slots, products


def reduction_backward(grid: tuple[int, ...], a: dict[str, Any]) -> tuple[int, float, int]:
    element, compute = a["saved_ptr"].element_size(), a["coefficients_ptr"].element_size()
    rows, matrix = a["rows_ptr"].shape[0], a["C_IN"] * a["C_OUT"]
    inputs = a["pixels"] * a["C_IN"]
    size = (2 * grid[2] * a["pixels"] * a["C_OUT"] + a["STRIDE"] * inputs) * element
    size += grid[0] * matrix * (a["NEED_X"] * a["pw_ptr"].element_size() + a["NEED_PARAMS"] * compute)
    if a["NEED_X"]:
        size += a["STRIDE"] ** 2 * inputs * element
    return rows * size, 0, rows * (a["NEED_X"] + a["NEED_PARAMS"]) * inputs * a["C_OUT"]


def pool_backward(grid: tuple[int, ...], a: dict[str, Any]) -> tuple[int, float, int]:
    windows, element = a["pixels"] * a["C"], a["dx_ptr"].element_size()
    inputs = a["pixels"] // (a["HO"] * a["WO"]) * a["H"] * a["W"] * a["C"]
    nodes = {(edge[EDGE_NODE.value], edge[EDGE_OWN.value]) for edge in a["edges_ptr"].tolist()}
    has_largest = any(row[GEOMETRY.value] == MAX.value for row in _rows(a))
    size = ((2 + a["parts"] + a["HAS_BEFORE"]) * inputs + (len(nodes) + 1) * windows) * element + has_largest * windows
    return size, a["rows"] * POOL_BACK * windows, 0


def join_gradients(grid: tuple[int, ...], a: dict[str, Any]) -> tuple[int, float, int]:
    return (a["parts"] + a["HAS_BEFORE"] + 1) * a["pixels"] * a["C"] * a["dx_ptr"].element_size(), 0, 0


def sum_parts(grid: tuple[int, ...], a: dict[str, Any]) -> tuple[int, float, int]:
    table: Tensor = a["weights_ptr"]
    return sum(length * (parts + 1) for _, _, length, parts in table.tolist()) * a["parts_ptr"].element_size(), 0, 0


def update_running(grid: tuple[int, ...], a: dict[str, Any]) -> tuple[int, float, int]:
    stats: Tensor = a["stats_ptr"]
    stored = a["STORED"].primitive_bitwidth // 8
    return stats.numel() * (stats.element_size() + 2 * stored) + grid[0] * 2 * COUNTER, 0, 0


def planes_forward(grid: tuple[int, ...], a: dict[str, Any]) -> tuple[int, float, int]:
    elements, element = a["images"] * a["width"] ** 2 * a["channels"], a["saved"].element_size()
    compute = a["stats"].element_size()
    size, slots, products = a["moments"].numel() * compute, 0.0, 0
    loaded, firsts, seconds = PLANES[a["channels"]]
    for first, last in a["groups"].tolist():
        size += elements * element * (1 + last - first)
        slots += elements * loaded
    for kernel, _, _, _, _, _, again, *_ in a["stages"].tolist():
        of_3, of_5 = seconds if again else firsts
        slots += elements * (of_3 + (kernel**2 - 9) / 16 * (of_5 - of_3))
        products += elements * a["channels"] * (2 if again else 1)
        weights = a["channels"] * (kernel**2 + again**2) * compute + a["channels"] ** 2 * element * (2 if again else 1)
        size += grid[0] * weights
    return size, slots, products


COUNTS = {
    f"{count.__name__}_kernel": count
    for count in (
        stage_forward, join_moments, learned_norms, mix_forward, term_sums, finish_sums, stage_backward,
        reduction_backward, pool_backward, join_gradients, sum_parts, update_running,
    )
} | {"planes_forward": planes_forward}  # fmt: skip
