"""Genotypes: the discrete cell a search ends with; derivation, JSON, and the published ones."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from fastdarts.config.names import did_you_mean
from fastdarts.config.reading import parse_json, read_text
from fastdarts.primitives.table import candidate, per_edge
from fastdarts.spaces.darts.foreign import fields_in_text, fields_of
from fastdarts.spaces.darts.published import ALIASES, CELLS, PublishedCell, read_nodes

Pairs = list[tuple[str, int]]
CellName = Literal["normal", "reduce"]
_CELLS: tuple[CellName, ...] = ("normal", "reduce")


class FoundCell(NamedTuple):
    """One discrete cell: the (primitive, predecessor state) pairs of each node, and the states that it puts out."""

    nodes: list[Pairs]
    concat: list[int]


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
        """Return the pairs of each node of a cell, in node order."""
        pairs: list[Any] = getattr(self, cell)
        if _is_nested(pairs):
            return pairs
        return [pairs[first : first + 2] for first in range(0, len(pairs), 2)]

    @property
    def auxiliary_skip(self) -> bool:
        """Return True if every edge of both cells has a skip connection beside its own op, after it in the list."""
        nodes = [node for cell in _CELLS for node in self.nodes(cell)]
        return all(len(ops) > 1 and ops[-1] == "skip_connect" for node in nodes for ops in _by_source(node).values())

    def with_auxiliary_skip(self) -> "Genotype":
        """Return the genotype with a skip connection beside the ops of every edge."""
        return self._with_nodes(lambda node: [*node, *(("skip_connect", source) for source in _by_source(node))])

    def without_auxiliary_skip(self) -> "Genotype":
        """Return the genotype without the skip connections that `with_auxiliary_skip` has added."""
        return self._with_nodes(lambda node: node[: len(node) - len(_by_source(node))])

    def _with_nodes(self, change: Callable[[Pairs], Pairs]) -> "Genotype":
        fields: dict[str, Any] = {}
        for cell in _CELLS:
            nodes = [change(node) for node in self.nodes(cell)]
            fields[cell] = [pair for node in nodes for pair in node] if all(len(n) == 2 for n in nodes) else nodes
        return self._replace(**fields)

    def to_json(self) -> str:
        """Return one JSON object with the four fields; `from_json` reads it back equal."""
        return json.dumps(self._asdict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Genotype":
        """Read what `to_json` wrote; ValueError says what is wrong with `text`."""
        try:
            data: Any = parse_json(text)
        except ValueError as error:
            raise ValueError(f"genotype is not JSON: {error}") from None
        if not isinstance(data, dict) or not set(cls._fields) <= set(data):
            raise ValueError(f"genotype must be a JSON object with keys {', '.join(cls._fields)}; got {text[:80]!r}")
        return cls(*(_parse_field(field, data[field]) for field in cls._fields)).validated()

    @classmethod
    def of(cls, value: Any) -> "Genotype":
        """Return the genotype that an object of other code holds.

        It is a named tuple, a mapping or any object with the four fields, with ranges, numpy's integers or weights
        beside the predecessors; or what `load` takes. ValueError or TypeError says what is wrong.
        """
        if isinstance(value, str | Path):
            return cls.load(value)
        if isinstance(value, cls) and all(type(field) is list for field in value):
            return value.validated()
        fields = fields_of(value)
        return cls(*(_parse_field(field, fields[field]) for field in cls._fields)).validated()

    @classmethod
    def from_text(cls, text: str, name: str | None = None) -> "Genotype":
        """Read the genotype in a text, of which nothing is run; ValueError says what is wrong.

        It is JSON, or as DARTS prints it, `Genotype(normal=[...], ...)`, alone, in a log (the last one) or in Python
        code (`name` tells which).
        """
        if text.lstrip().startswith(("{", "[")) or "(" not in text:
            return cls.from_json(text)
        fields = fields_in_text(text, name)
        return cls(*(_parse_field(field, fields[field]) for field in cls._fields)).validated()

    @classmethod
    def load(cls, source: str | Path) -> "Genotype":
        """Return the genotype that a user names.

        Args:
            source: a published name, in any case; a text as of `from_text`; a file with such a text, or FILE:NAME for
                one of several in it; or the folder of a run.
        """
        text = str(source)
        if (published := find_published(text)) is not None:
            return published
        if "(" in text or text.lstrip().startswith("{"):
            try:
                return cls.from_text(text)
            except ValueError as error:
                raise ValueError(f"genotype: {error}") from None
        path, name = Path(source), None
        if not path.exists() and ":" in text:
            before, _, name = text.rpartition(":")
            path = Path(before)
        if path.is_dir():
            path = path / "genotype.json"
            if not path.is_file():
                raise ValueError(f"genotype: the folder {path.parent} has no genotype.json; its search has not ended")
        if not path.exists() and (path.suffix or len(path.parts) > 1):
            raise ValueError(f"genotype: there is no file or run's folder {path}")
        if not path.exists():
            raise ValueError(
                f"genotype {text!r} is neither a published name ({', '.join(PUBLISHED)}) nor a file or a run's folder"
                f"{did_you_mean(text.upper().replace('-', '_'), PUBLISHED)}"
            )
        try:
            return cls.from_text(read_text(path), name)
        except (ValueError, OSError) as error:
            said = str(error)
            raise ValueError(said if said.startswith(str(path)) else f"{path}: {said}") from None

    def validated(self) -> "Genotype":
        """Return the genotype if primitives are known, predecessors come earlier and concat states exist."""
        for cell in _CELLS:
            nodes = self.nodes(cell)
            if not any(nodes) or (not _is_nested(getattr(self, cell)) and len(nodes[-1]) != 2):
                raise ValueError(
                    f"genotype.{cell} must hold two (primitive, predecessor) pairs a node, or a list of pairs for each "
                    f"node; got {getattr(self, cell)}"
                )
            check_cell(FoundCell(nodes, getattr(self, f"{cell}_concat")), f"genotype.{cell}", f"genotype.{cell}_concat")
        return self

    def cell(self, index: int, reduction: bool) -> FoundCell:
        """Return the cell at a place of the network; all cells of a type are the same."""
        if reduction:
            return FoundCell(self.nodes("reduce"), list(self.reduce_concat))
        return FoundCell(self.nodes("normal"), list(self.normal_concat))


def check_cell(cell: FoundCell, nodes_name: str, concat_name: str) -> None:
    """Check that a cell's primitives are known, that predecessors come earlier and that what it puts out exists.

    Args:
        cell: the cell, with an op at least.
        nodes_name, concat_name: names of its parts in messages.

    Raises: ValueError that names the wrong part.
    """
    nodes, concat = cell
    for state, pairs in enumerate(nodes, start=2):
        for name, predecessor in pairs:
            candidate(name)
            if not 0 <= predecessor < state:
                allowed = f"0..{state - 1}"
                raise ValueError(
                    f"{nodes_name}: ({name!r}, {predecessor}) of state {state} must have a predecessor in {allowed}"
                )
            if predecessor >= 2 and not nodes[predecessor - 2]:
                raise ValueError(
                    f"{nodes_name}: ({name!r}, {predecessor}) of state {state} has a predecessor without ops"
                )
    states = 2 + len(nodes)
    if not concat or any(not 0 <= state < states for state in concat) or len(set(concat)) != len(concat):
        raise ValueError(f"{concat_name} must name distinct states of 0..{states - 1}; got {list(concat)}")
    if any(state >= 2 and not nodes[state - 2] for state in concat):
        raise ValueError(f"{concat_name} must name states that have ops; got {list(concat)}")


def _by_source(node: Pairs) -> dict[int, list[str]]:
    """Return the names of a node's ops by the state that they read, in their order."""
    found: dict[int, list[str]] = {}
    for name, source in node:
        found.setdefault(source, []).append(name)
    return found


def _parse_field(field: str, value: Any) -> Any:
    if field.endswith("_concat"):
        if isinstance(value, list) and all(type(state) is int for state in value):
            return value
        raise ValueError(f"genotype.{field} must be a list of state numbers; got {value!r}")
    nested = isinstance(value, list) and all(isinstance(node, list) for node in value) and _is_nested(value)
    nodes = value if nested else [value]
    if not all(isinstance(node, list) and all(is_pair(pair) for pair in node) for node in nodes):
        raise ValueError(
            f"genotype.{field} must be a list of [primitive, predecessor] pairs, or one for each node; got {value!r}"
        )
    parsed = [[(name, predecessor) for name, predecessor in node] for node in nodes]
    return parsed if nested else parsed[0]


def _is_nested(pairs: list[Any]) -> bool:
    """Return True if a cell's list holds a list of pairs for each node, not pairs."""
    return all(not node or not isinstance(node[0], str) for node in pairs)


def is_pair(value: Any) -> bool:
    """Return True for [primitive, predecessor]."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and type(value[1]) is int


def edges_of(steps: int) -> list[tuple[int, int]]:
    """Return (source state, target state) of each edge of a cell with `steps` nodes, in the order of alpha's rows."""
    return [(source, 2 + node) for node in range(steps) for source in range(2 + node)]


def derive_cell(
    weights: Tensor, steps: int, primitives: Sequence[str] | Sequence[Sequence[str]], edges_per_node: int = 2
) -> Pairs:
    """Return the strongest operations of one cell (paper, section 2.4; the original code's rule).

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
    for row, (source, target) in zip(rows, edges, strict=True):
        if any(math.isnan(weight) for weight in row):
            raise ValueError(
                f"the weights of edge {source} -> {target} are NaN: alphas that are not numbers have no genotype"
            )
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


def _published(cell: PublishedCell) -> Genotype:
    fields: dict[str, Any] = {}
    for name, text, concat in (
        ("normal", cell.normal, cell.normal_concat),
        ("reduce", cell.reduce, cell.reduce_concat),
    ):
        nodes = read_nodes(text)
        fields[name] = [pair for node in nodes for pair in node] if all(len(node) == 2 for node in nodes) else nodes
        fields[f"{name}_concat"] = list(concat)
    return Genotype(**fields)


PUBLISHED: dict[str, Genotype] = {name: _published(cell) for name, cell in CELLS.items()}
"""Published cells by name; their sources are in `published.CELLS`."""

DARTS_V1, DARTS_V2 = PUBLISHED["DARTS_V1"], PUBLISHED["DARTS_V2"]


def find_published(name: str) -> Genotype | None:
    """Return the published genotype of a name, without regard to case, underscores and hyphens."""
    names = {_plain_name(known): known for known in PUBLISHED} | {_plain_name(a): b for a, b in ALIASES.items()}
    found = names.get(_plain_name(name))
    return None if found is None else PUBLISHED[found]


def _plain_name(name: str) -> str:
    return name.casefold().replace("_", "").replace("-", "").replace(" ", "")
