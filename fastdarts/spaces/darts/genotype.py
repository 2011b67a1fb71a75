"""Genotypes: the discrete cell a search ends with; derivation, JSON, and the published ones."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from fastdarts.config.names import did_you_mean
from fastdarts.primitives.table import candidate, per_edge

Pairs = list[tuple[str, int]]
CellName = Literal["normal", "reduce"]
_CELLS: tuple[CellName, ...] = ("normal", "reduce")


class Genotype(NamedTuple):
    """A normal and a reduction cell; unpacks and compares like the named tuple of the original code.

    `normal` and `reduce` list (primitive, predecessor state) pairs in node order, two a node; for another number of
    ops a node they are lists of such lists, one for each node. States 0 and 1 are the cell's inputs, node i is state
    2 + i. `normal_concat` and `reduce_concat` are the states a cell puts out. A node without ops does not exist:
    nothing may come from it.
    """

    normal: Pairs | list[Pairs]
    normal_concat: list[int]
    reduce: Pairs | list[Pairs]
    reduce_concat: list[int]

    @property
    def space(self) -> str:
        """Return the name of the space that genotypes belong to."""
        return "darts"

    def nodes(self, cell: CellName) -> list[Pairs]:
        """The pairs of each node of a cell, in node order."""
        pairs: list[Any] = getattr(self, cell)
        if _is_nested(pairs):
            return pairs
        return [pairs[first : first + 2] for first in range(0, len(pairs), 2)]

    def to_json(self) -> str:
        """One JSON object with the four fields; `from_json` reads it back equal."""
        return json.dumps(self._asdict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Genotype":
        """The genotype that `to_json` wrote; ValueError says what is wrong with `text`."""
        try:
            data: Any = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"genotype is not JSON: {error}") from None
        if not isinstance(data, dict) or not set(cls._fields) <= set(data):
            raise ValueError(f"genotype must be a JSON object with keys {', '.join(cls._fields)}; got {text[:80]!r}")
        return cls(*(_parse_field(field, data[field]) for field in cls._fields)).validated()

    @classmethod
    def load(cls, source: str | Path) -> "Genotype":
        """A published genotype by its name (DARTS_V1, DARTS_V2) or the one in a JSON file."""
        if str(source) in PUBLISHED:
            return PUBLISHED[str(source)]
        path = Path(source)
        if not path.is_file():
            raise ValueError(
                f"genotype {str(source)!r} is neither a published name ({', '.join(PUBLISHED)}) nor a JSON file"
                f"{did_you_mean(str(source), PUBLISHED)}"
            )
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise ValueError(f"{path}: {error}") from None

    def validated(self) -> "Genotype":
        """Itself, once every primitive is known, every predecessor comes earlier and every concat state exists."""
        for cell in _CELLS:
            nodes, concat = self.nodes(cell), getattr(self, f"{cell}_concat")
            if not any(nodes) or (not _is_nested(getattr(self, cell)) and len(nodes[-1]) != 2):
                raise ValueError(
                    f"genotype.{cell} must hold two (primitive, predecessor) pairs a node, or a list of pairs for each "
                    f"node; got {getattr(self, cell)}"
                )
            for state, pairs in enumerate(nodes, start=2):
                for name, predecessor in pairs:
                    candidate(name)
                    if not 0 <= predecessor < state:
                        raise ValueError(
                            f"genotype.{cell}: ({name!r}, {predecessor}) of state {state} must have a predecessor in "
                            f"0..{state - 1}"
                        )
                    if predecessor >= 2 and not nodes[predecessor - 2]:
                        raise ValueError(
                            f"genotype.{cell}: ({name!r}, {predecessor}) of state {state} has a predecessor without ops"
                        )
            states = 2 + len(nodes)
            if not concat or any(not 0 <= state < states for state in concat) or len(set(concat)) != len(concat):
                raise ValueError(
                    f"genotype.{cell}_concat must name distinct states of 0..{states - 1}; got {list(concat)}"
                )
            if any(state >= 2 and not nodes[state - 2] for state in concat):
                raise ValueError(f"genotype.{cell}_concat must name states that have ops; got {list(concat)}")
        return self


def _parse_field(field: str, value: Any) -> Any:
    if field.endswith("_concat"):
        if isinstance(value, list) and all(type(state) is int for state in value):
            return value
        raise ValueError(f"genotype.{field} must be a list of state numbers; got {value!r}")
    nested = isinstance(value, list) and all(isinstance(node, list) for node in value) and _is_nested(value)
    nodes = value if nested else [value]
    if not all(isinstance(node, list) and all(_is_pair(pair) for pair in node) for node in nodes):
        raise ValueError(
            f"genotype.{field} must be a list of [primitive, predecessor] pairs, or one for each node; got {value!r}"
        )
    parsed = [[(name, predecessor) for name, predecessor in node] for node in nodes]
    return parsed if nested else parsed[0]


def _is_nested(pairs: list[Any]) -> bool:
    """Whether a cell's list holds a list of pairs for each node, not pairs."""
    return all(not node or not isinstance(node[0], str) for node in pairs)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and type(value[1]) is int


def edges_of(steps: int) -> list[tuple[int, int]]:
    """The (source state, target state) of each edge of a cell with `steps` nodes, in the order of alpha's rows."""
    return [(source, 2 + node) for node in range(steps) for source in range(2 + node)]


def derive_cell(
    weights: Tensor, steps: int, primitives: Sequence[str] | Sequence[Sequence[str]], edges_per_node: int = 2
) -> Pairs:
    """The strongest operations of one cell (paper, section 2.4; the original code's rule).

    Each node keeps the `edges_per_node` incoming edges whose best non-`none` op weighs most, strongest first, ties to
    the smaller predecessor; each kept edge takes that op, ties to the smaller index.

    Args:
        weights: [edges, ops] op weights after the relaxation (softmax of alpha).
        steps: nodes of the cell.
        primitives: the ops' names, one a column, or those of each edge.
    """
    edges = edges_of(steps)
    names = per_edge(primitives, len(edges))
    if tuple(weights.shape) != (len(edges), len(names[0])):
        raise ValueError(
            f"weights must be [{len(edges)} edges, {len(names[0])} ops] for {steps} nodes; got {tuple(weights.shape)}"
        )
    rows: list[list[float]] = weights.detach().double().tolist()
    best = []
    for row, ops in zip(rows, names, strict=True):
        columns = [column for column, name in enumerate(ops) if name != "none"]
        if not columns:
            raise ValueError("primitives holds nothing but 'none': no cell can be derived")
        best.append(max(columns, key=row.__getitem__))
    pairs: Pairs = []
    for node in range(2, 2 + steps):
        incoming = [edge for edge, (_, target) in enumerate(edges) if target == node]
        incoming.sort(key=lambda edge: -rows[edge][best[edge]])
        pairs += [(names[edge][best[edge]], edges[edge][0]) for edge in incoming[:edges_per_node]]
    return pairs


DARTS_V1 = Genotype(
    normal=[
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 0),
        ("skip_connect", 0),
        ("sep_conv_3x3", 1),
        ("skip_connect", 0),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 0),
        ("skip_connect", 2),
    ],
    normal_concat=[2, 3, 4, 5],
    reduce=[
        ("max_pool_3x3", 0),
        ("max_pool_3x3", 1),
        ("skip_connect", 2),
        ("max_pool_3x3", 0),
        ("max_pool_3x3", 0),
        ("skip_connect", 2),
        ("skip_connect", 2),
        ("avg_pool_3x3", 0),
    ],
    reduce_concat=[2, 3, 4, 5],
)
"""First-order result of the paper (arXiv:1806.09055v1)."""

DARTS_V2 = Genotype(
    normal=[
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 1),
        ("skip_connect", 0),
        ("skip_connect", 0),
        ("dil_conv_3x3", 2),
    ],
    normal_concat=[2, 3, 4, 5],
    reduce=[
        ("max_pool_3x3", 0),
        ("max_pool_3x3", 1),
        ("skip_connect", 2),
        ("max_pool_3x3", 1),
        ("max_pool_3x3", 0),
        ("skip_connect", 2),
        ("skip_connect", 2),
        ("max_pool_3x3", 1),
    ],
    reduce_concat=[2, 3, 4, 5],
)
"""Second-order result of the paper (ICLR 2019)."""

PUBLISHED: dict[str, Genotype] = {"DARTS_V1": DARTS_V1, "DARTS_V2": DARTS_V2}
