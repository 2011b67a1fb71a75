"""Architectures whose cells are all different: a list of discrete cells, one for each place of the network."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastdarts.config.reading import parse_json
from fastdarts.spaces.darts.genotype import FoundCell, Pairs, check_cell, is_pair
from fastdarts.spaces.darts.published import read_nodes

PREFIX = "cell"
"""Prefix of the names of groups of a network in which every cell has alphas of its own: cell0, cell1, ..."""


@dataclass(frozen=True)
class CellGenotypes:
    """Hold the cells of a network, from its input to its output; those at one and two thirds of it are reductions."""

    cells: tuple[FoundCell, ...]

    @property
    def space(self) -> str:
        """Return the name of the space that such architectures belong to."""
        return "darts"

    def cell(self, index: int, reduction: bool) -> FoundCell:
        """Return the cell at a place of the network."""
        return self.cells[index]

    def nodes(self, group: str) -> list[Pairs]:
        """Return the pairs of each node of the cell that a group describes.

        Raises: ValueError for a group of a network in which all cells of a type are the same.
        """
        if not group.startswith(PREFIX):
            raise ValueError(f"an architecture with a cell for each place has no {group!r} cell")
        return self.cells[int(group.removeprefix(PREFIX))].nodes

    def ops(self) -> Counter[str]:
        """Count the ops of all cells by their names."""
        return Counter(name for cell in self.cells for node in cell.nodes for name, _ in node)

    def __str__(self) -> str:
        ops = ", ".join(f"{count} {name}" for name, count in sorted(self.ops().items()))
        sizes = " ".join(str(sum(map(len, cell.nodes))) for cell in self.cells)
        return f"{ops}; ops a cell: {sizes}"

    def to_json(self) -> str:
        """Return one JSON object, which `from_json` reads back equal."""
        cells = [{"nodes": cell.nodes, "concat": cell.concat} for cell in self.cells]
        return json.dumps({"space": self.space, "cells": cells}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> "CellGenotypes":
        """Read what `to_json` wrote; ValueError names the cell that is wrong."""
        listed = parse_json(text)["cells"]
        if not isinstance(listed, list) or not listed:
            raise ValueError(f"genotype.cells must be a list of cells; got {str(listed)[:80]}")
        return cls(tuple(_read(cell, f"genotype.cells[{index}]") for index, cell in enumerate(listed)))

    @classmethod
    def of_text(cls, cells: Sequence[str]) -> "CellGenotypes":
        """Read cells as `published` writes them; each puts out all nodes that have ops."""
        read = (read_nodes(text) for text in cells)
        return cls(tuple(FoundCell(nodes, [s for s, node in enumerate(nodes, start=2) if node]) for nodes in read))


def _read(value: Any, place: str) -> FoundCell:
    nodes = value.get("nodes") if isinstance(value, dict) else None
    if not isinstance(nodes, list) or not any(nodes) or not all(isinstance(node, list) for node in nodes):
        raise ValueError(f"{place}.nodes must be a list of ops for each node, not all empty; got {str(value)[:80]}")
    if not all(is_pair(pair) for node in nodes for pair in node):
        raise ValueError(f"{place}.nodes must hold [primitive, predecessor] pairs; got {str(nodes)[:80]}")
    concat = value.get("concat")
    if not isinstance(concat, list) or not all(type(state) is int for state in concat):
        raise ValueError(f"{place}.concat must be a list of state numbers; got {concat!r}")
    cell = FoundCell([[(name, source) for name, source in node] for node in nodes], concat)
    check_cell(cell, f"{place}.nodes", f"{place}.concat")
    return cell


PUBLISHED: dict[str, CellGenotypes] = {
    "GOLD_NAS_S1": CellGenotypes.of_text(
        (
            "skip:0 sep3:0 skip:1 / skip:1 sep3:1 sep3:2 / skip:0 sep3:1 skip:2 / skip:0 sep3:0",
            "skip:0 sep3:0 / skip:0 sep3:0 skip:1 sep3:1 / skip:0 sep3:0 skip:2 sep3:3 / sep3:2 skip:3 sep3:3 sep3:4",
            "skip:0 sep3:0 skip:1 / sep3:0 skip:1 sep3:1 / skip:0 sep3:0 / sep3:0 skip:1 sep3:1 sep3:3",
            "skip:1 sep3:1 / skip:0 sep3:0 / skip:0 sep3:0 sep3:3 / sep3:1 sep3:2",
            "sep3:0 sep3:1 / skip:0 sep3:0 sep3:1 / skip:1 sep3:1 sep3:2 / skip:0 sep3:0 sep3:3",
            "sep3:0 skip:1 sep3:1 / skip:0 sep3:0 skip:1 sep3:2 / skip:0 skip:1 sep3:3 / skip:0 sep3:0 sep3:3 sep3:4",
            "sep3:0 skip:1 sep3:1 / skip:0 sep3:0 sep3:1 sep3:2 / skip:0 sep3:0 sep3:1 / skip:0 sep3:0 sep3:1 sep3:3",
            "skip:0 sep3:0 sep3:1 / skip:0 sep3:0 skip:1 sep3:1 / sep3:0 skip:1 sep3:1 / skip:0 sep3:0 sep3:1 sep3:3",
            "sep3:0 skip:1 sep3:1 / skip:0 sep3:0 skip:1 sep3:1 / skip:0 sep3:0 sep3:1 / skip:0 sep3:0 sep3:1",
            "skip:0 sep3:0 skip:1 sep3:1 / sep3:0 skip:1 sep3:1 sep3:2 / sep3:0 sep3:1 sep3:2 sep3:3 / "
            "sep3:0 sep3:1 sep3:2 sep3:3 sep3:4",
            "sep3:0 sep3:1 / skip:0 sep3:1 / skip:0 skip:1 sep3:1 / skip:0 sep3:1 sep3:2 sep3:4",
            "sep3:0 sep3:1 / skip:0 sep3:0 sep3:1 sep3:2 / skip:0 sep3:0 sep3:3 / skip:0 skip:1 sep3:3 sep3:4",
            "skip:0 sep3:1 / skip:0 sep3:1 / skip:0 skip:1 sep3:1 / skip:0 sep3:2 sep3:3",
            "sep3:0 sep3:1 / sep3:0 sep3:1 / skip:1 sep3:1 / skip:0 sep3:0 sep3:1",
        )
    ),
}
"""Published architectures by name. GOLD_NAS_S1: Bi et al., arXiv:2007.03331; github.com/sunsmarterjie/GOLD_NAS
cifar_train/genotypes.py at 3b40c2a."""
