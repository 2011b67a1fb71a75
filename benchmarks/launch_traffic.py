"""What a launch of a Triton kernel moves through memory, from its grid, its tiles and its tables.

A program counts every element that it loads or stores once. Tests compare the figures with what programs touch in
Triton's interpreter.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import Tensor

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
    EDGES,
    FIRST_EDGE,
    GATHER,
    GEOMETRY,
    MAX,
    NODE,
    OWN,
    POOL,
    SLOT,
    SOURCE,
    TAPS,
)  # fmt: skip

HALO = {CONV_3.value: 1, CONV_5.value: 2, CONV_7.value: 3, DILATED_3.value: 2, DILATED_5.value: 4}
HALO |= {MAX.value: 1, AVG.value: 1, GATHER.value: 0}
POOL_TAPS = 9


@dataclass
class Traffic:
    """What launches moved and computed, in all and by operator or kernel."""

    bytes: Counter[str] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)
    taps: int = 0  # elements taken up in windows: multiply-adds of depthwise convolutions, comparisons of pools
    products: int = 0  # multiply-adds of matrix instructions

    def add(self, name: str, size: int) -> None:
        self.bytes[name] += size
        self.launches[name] += 1

    def __iadd__(self, other: Traffic) -> Traffic:
        self.bytes.update(other.bytes)
        self.launches.update(other.launches)
        self.taps += other.taps
        self.products += other.products
        return self


def traffic_of(name: str, grid: tuple[int, ...], a: dict[str, Any]) -> Traffic:
    """Of a launch with arguments `a` by name."""
    size, taps, products = COUNTS[name](grid, a)
    return Traffic(Counter({name: size}), Counter({name: 1}), taps, products)


@cache
def touched(pixels: int, step: int, height: int, width: int, scale: int, halo: int) -> int:
    """Input pixels that programs of `step` output pixels each touch together.

    The output has images of height x width, the input of `scale` times that; windows reach `halo` input rows out of
    their own. Programs read whole rows.
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


def _taps(row: list[int]) -> int:
    return TAPS.get(row[GEOMETRY.value], 0)


def _is_pool(row: list[int]) -> bool:
    return row[GEOMETRY.value] in (MAX.value, AVG.value)


def _inputs(a: dict[str, Any], group: list[list[int]], step: int) -> int:
    """Elements a group's stages read: each its own saved tensor, or all the state."""
    halos = [_halo(row) for row in group]
    halos = halos if a["NORMALISED"] else [max(halos)]
    scale = a["STRIDE"]
    return a["C_IN"] * sum(touched(a["pixels"], step, a["HO"], a["WO"], scale, halo) for halo in halos)


def _weights(a: dict[str, Any], group: list[list[int]]) -> int:
    return sum((_taps(row) + a["C_OUT"]) * a["C_IN"] for row in group if not _is_pool(row))


def stage_forward(grid: tuple[int, ...], a: dict[str, Any]) -> tuple[int, int, int]:
    element, compute = a["saved_ptr"].element_size(), a["stats_ptr"].element_size()
    size = taps = products = 0
    for group in _groups(a):
        size += grid[2] * _inputs(a, group, a["TILES"] * a["BLOCK_P"]) * element
        size += sum(not _is_pool(row) for row in group) * a["pixels"] * a["C_OUT"] * element
        size += len(group) * a["tiles"] * 2 * a["C_OUT"] * compute + grid[0] * _weights(a, group) * compute
        for row in group:
            taps += grid[2] * a["pixels"] * a["C_IN"] * (POOL_TAPS if _is_pool(row) else _taps(row))
            products += 0 if _is_pool(row) else a["pixels"] * a["C_IN"] * a["C_OUT"]
    return size, taps, products


def join_moments(grid: tuple[int, ...], a: dict[str, Any]) -> tuple[int, int, int]:
    return grid[0] * 2 * (a["tiles"] + 1) * a["C"] * a["stats_ptr"].element_size(), 0, 0


def mix_forward(grid: tuple[int, ...], a: dict[str, Any]) -> tuple[int, int, int]:
    element, compute = a["saved_ptr"].element_size(), a["stats_ptr"].element_size()
    elements, taps, seen = a["pixels"] * a["C"], 0, {}
    for term in a["terms_ptr"].tolist():
        source, slot, pool = term[SOURCE.value], term[SLOT.value], term[POOL.value]
        height = a["HO"] if source < 2 else a["STATES"][source - 2][1]
        halo = HALO.get(pool, 0)
        pixels = touched(a["pixels"], a["BLOCK_P"], a["HO"], a["WO"], 1 if height == a["HO"] else 2, halo)
        seen[source, slot] = max(seen.get((source, slot), 0), pixels * a["C"])  # a state is read once for all its terms
        taps += POOL_TAPS * elements if pool else 0
    return (sum(seen.values()) + elements) * element + grid[0] * a["terms"] * 2 * a["C"] * compute, taps, 0


def term_sums(grid: tuple[int, ...], a: dict[str, Any]) -> tuple[int, int, int]:
    size, taps, products = mix_forward(grid, a)
    return size + a["sums_ptr"].numel() * a["sums_ptr"].element_size(), taps, products


def finish_sums(grid: tuple[int, ...], a: dict[str, Any]) -> tuple[int, int, int]:
    return grid[0] * (2 * a["tiles"] + 5) * a["C"] * a["sums_ptr"].element_size(), 0, 0


def _gradients(a: dict[str, Any], group: list[list[int]]) -> int:
    """Gradients that enter a group's stages: those of nodes, and of what follows them."""
    wanted = set()
    edges = a["edges_ptr"].tolist()
    for row in group:
        if _is_pool(row):
            first = row[FIRST_EDGE.value]
            wanted |= {
                (edge[EDGE_NODE.value], edge[EDGE_OWN.value]) for edge in edges[first : first + row[EDGES.value]]
            }
        elif row[NODE.value] >= 0:
            wanted.add((row[NODE.value], row[OWN.value]))
        else:
            wanted.add((-1, row[DZ.value]))
    return len(wanted)


def _reads_y(a: dict[str, Any], row: list[int]) -> bool:
    """Where it is not computed again."""
    again = a["NEED_PARAMS"] and a["C_IN"] <= a["BLOCK_I"] and a["C_OUT"] <= a["BLOCK_O"]
    return not (_is_pool(row) or (again and _taps(row)))


def stage_backward(grid: tuple[int, ...], a: dict[str, Any]) -> tuple[int, int, int]:
    element, compute = a["saved_ptr"].element_size(), a["stats_ptr"].element_size()
    size = taps = products = 0
    pixels, out = a["pixels"], a["pixels"] * a["C_OUT"] * a["saved_ptr"].element_size()
    for group in _groups(a):
        pools = any(map(_is_pool, group))
        size += grid[2] * out * (_gradients(a, group) + sum(_reads_y(a, row) for row in group))
        if a["NEED_PARAMS"] or pools:
            size += grid[2] * _inputs(a, group, a["TILES"] * a["BLOCK_P"]) * element
        size += grid[0] * _weights(a, group) * compute
        for row in group:
            size += pixels * a["C_IN"] * element * (a["STRIDE"] if row[GEOMETRY.value] == GATHER.value else 1)
            size += pixels * a["C_IN"] if row[GEOMETRY.value] == MAX.value else 0
            if a["NEED_PARAMS"] and not pools:
                size += grid[0] * a["C_IN"] * a["C_OUT"] * compute
                taps += grid[2] * pixels * a["C_IN"] * _taps(row)
            taps += POOL_TAPS * pixels * a["C_IN"] * (2 if row[GEOMETRY.value] == MAX.value else pools)
            products += 0 if pools else (1 + a["NEED_PARAMS"]) * pixels * a["C_IN"] * a["C_OUT"]
    return size, taps, products


def middle_backward(grid: tuple[int, ...], a: dict[str, Any]) -> tuple[int, int, int]:
    element, compute = a["saved_ptr"].element_size(), a["stats_ptr"].element_size()
    step, size, taps = a["TILES"] * a["BLOCK_P"], 0, 0
    for row in _rows(a):
        windows = touched(a["pixels"], step, a["HO"], a["WO"], 1, _halo(row))
        size += (windows + 2 * a["pixels"]) * a["C"] * element
        size += grid[0] * _taps(row) * a["C"] * compute * (1 + a["NEED_PARAMS"])
        taps += (1 + a["NEED_PARAMS"]) * a["pixels"] * a["C"] * _taps(row)
    return size + a["sums_ptr"].numel() * compute, taps, 0


def state_backward(grid: tuple[int, ...], a: dict[str, Any]) -> tuple[int, int, int]:
    element, compute = a["dd_ptr"].element_size(), a["dw_ptr"].element_size()
    step, scale, size, taps = a["TILES"] * a["BLOCK_P"], a["STRIDE"], 0, 0
    pixels, C = a["pixels"], a["C"]
    for row in _rows(a)[: a["convolutions"] + a["pools"]]:
        # Programs step over the input here, and their windows over the output.
        out = max(1, step // scale**2)
        windows = touched(a["out_pixels"], out, a["HO"], a["WO"], 1, -(-_halo(row) // scale)) * C
        needed = a["NEED_X"] or _taps(row)
        size += windows * (element + (row[GEOMETRY.value] == MAX.value)) if needed else 0
        size += windows * element if row[GEOMETRY.value] == GATHER.value and scale == 2 else 0
        size += grid[0] * _taps(row) * C * compute * (1 + a["NEED_PARAMS"])
        taps += (POOL_TAPS if _is_pool(row) else _taps(row) * (a["NEED_X"] + a["NEED_PARAMS"])) * a["out_pixels"] * C
    tensors = 1 + a["skips"] + a["HAS_BEFORE"] + 1 if a["NEED_X"] else 1
    return size + tensors * pixels * C * element, taps, 0


def sum_parts(grid: tuple[int, ...], a: dict[str, Any]) -> tuple[int, int, int]:
    table: Tensor = a["weights_ptr"]
    return sum(length * (parts + 1) for _, _, length, parts in table.tolist()) * a["parts_ptr"].element_size(), 0, 0


COUNTS = {
    f"{count.__name__}_kernel": count
    for count in (
        stage_forward, join_moments, mix_forward, term_sums, finish_sums, stage_backward, middle_backward,
        state_backward, sum_parts,
    )
}  # fmt: skip
