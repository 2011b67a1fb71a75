"""A cell of NAS-Bench-201: one op on each of six edges, written as the benchmark's string."""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

PRIMITIVES = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""The candidate ops, in the benchmark's order."""
ENDS = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""(source, target) of each edge: node 0 is the cell's input, node 3 its output."""
_OP = re.compile(r"([^|~+]+)~(\d)")


@dataclass(frozen=True)
class NasBench201Cell:
    """The ops of the six edges, in the order of `ENDS`.

    Raises: ValueError for another number of edges or an unknown op.
    """

    ops: tuple[str, ...]
    space = "nasbench201"

    def __post_init__(self) -> None:
        object.__setattr__(self, "ops", tuple(self.ops))
        if len(self.ops) != len(ENDS):
            raise ValueError(f"ops must name one op for each of the {len(ENDS)} edges; got {len(self.ops)}")
        for op in self.ops:
            if op not in PRIMITIVES:
                raise ValueError(f"ops must be among {', '.join(PRIMITIVES)}; got {op!r}")

    def __str__(self) -> str:
        """Return the benchmark's string, `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`."""
        nodes: dict[int, list[str]] = {}
        for op, (source, target) in zip(self.ops, ENDS, strict=True):
            nodes.setdefault(target, []).append(f"{op}~{source}")
        return "+".join(f"|{'|'.join(node)}|" for node in nodes.values())

    @classmethod
    def parse(cls, text: str) -> "NasBench201Cell":
        """Read the benchmark's string; ValueError says what is wrong with it."""
        nodes = [_OP.findall(node) for node in text.strip().split("+")]
        sources = [[int(source) for _, source in node] for node in nodes]
        cell = [op for node in nodes for op, _ in node]
        if sources != [[0], [0, 1], [0, 1, 2]] or str(cls._unchecked(cell)) != text.strip():
            raise ValueError(f"a cell must be written as |op~0|+|op~0|op~1|+|op~0|op~1|op~2|; got {text!r}")
        return cls(tuple(cell))

    @classmethod
    def _unchecked(cls, ops: list[str]) -> "NasBench201Cell":
        cell = object.__new__(cls)
        object.__setattr__(cell, "ops", tuple(ops))
        return cell

    def to_json(self) -> str:
        """Return one JSON object with the space's name and the string."""
        return json.dumps({"space": self.space, "arch": str(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> "NasBench201Cell":
        """Read what `to_json` wrote; ValueError says what is wrong with `text`."""
        value: Any = json.loads(text)
        if not isinstance(value, dict) or not isinstance(value.get("arch"), str):
            raise ValueError(f"genotype must be a JSON object with the key arch, a cell's string; got {text[:80]!r}")
        return cls.parse(value["arch"])


def all_cells() -> Iterator[NasBench201Cell]:
    """Yield the 15,625 cells of the space."""
    for ops in itertools.product(PRIMITIVES, repeat=len(ENDS)):
        yield NasBench201Cell(ops)
