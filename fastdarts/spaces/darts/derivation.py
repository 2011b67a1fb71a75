"""From scores to cells: which edges and ops of a relaxed cell form the discrete one."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fastdarts.primitives.table import EdgeOps
from fastdarts.spaces.darts.genotype import Genotype, Pairs, derive_cell
from fastdarts.spaces.group import Choice, Group

Ends = Sequence[tuple[int, int]]
DerivedCell = tuple[list[Pairs] | Pairs, list[int]]
"""The ops of a cell, as a `Genotype` lists them, and the states that it puts out."""


def skips(nodes: Sequence[Pairs]) -> int:
    """Count the skip connections of a cell."""
    return sum(op == "skip_connect" for node in nodes for op, _ in node)


def derive_cells(
    groups: Mapping[str, Group],
    scores: Mapping[str, Tensor],
    choice: Choice,
    concat: Sequence[int],
    limited: Collection[str],
) -> dict[str, DerivedCell]:
    """Derive the cell of each group; each of the `limited` ones has at most `choice.max_skips` skip connections.

    Args:
        groups: the edges and ops of each cell.
        scores: [edges, ops] of each; minus infinity for ops that were pruned.
        choice: the method's rule.
        concat: the states that a cell puts out.
        limited: names of groups.
    """
    cells = {}
    for name, group in groups.items():
        limit = choice.max_skips if name in limited else None
        cells[name] = _limited_cell(name, group, scores[name].clone(), replace(choice, max_skips=limit), concat)
    return cells


def _limited_cell(name: str, group: Group, scores: Tensor, choice: Choice, concat: Sequence[int]) -> DerivedCell:
    """Derive a cell; as long as it has too many skip connections, the weakest of them leaves its edge (P-DARTS).

    An edge that has no other op keeps its skip connection. Source: Chen et al., ICCV 2019.
    """
    known = scores[scores.isfinite()]
    removed: set[tuple[int, int]] = set()
    pairs, states = _cell(group, choice.ranked(name, scores), choice, concat)
    while choice.max_skips is not None and skips(_nodes(pairs)) > choice.max_skips:
        chosen = [
            group.ends.index((source, state))
            for state, node in enumerate(_nodes(pairs), start=2)
            for op, source in node
            if op == "skip_connect"
        ]
        places = [(edge, group.ops[edge].index("skip_connect")) for edge in chosen]
        places = [place for place in places if place not in removed and scores[place].isfinite()]
        if not places:
            break
        weakest = min(places, key=lambda place: float(scores[place]))
        removed.add(weakest)
        scores[weakest] = known.min().clamp(max=0) - 1  # below all ops but those that were pruned
        pairs, states = _cell(group, choice.ranked(name, scores), choice, concat)
    return pairs, states


def _nodes(pairs: list[Pairs] | Pairs) -> list[Pairs]:
    return Genotype(pairs, [], [], []).nodes("normal")


def _cell(group: Group, score: Tensor, choice: Choice, concat: Sequence[int]) -> DerivedCell:
    steps = group.ends[-1][1] - 1
    if choice.last_wins:
        return top_two(score, group.ops, group.ends), list(concat)
    usual: Pairs = derive_cell(score, steps, group.ops)
    if choice.threshold is None and not choice.none_wins and choice.edges_per_node == 2 and choice.ops_per_edge == 1:
        return usual, list(concat)
    return _any_number(group, score, choice, usual, concat)


def _any_number(group: Group, score: Tensor, choice: Choice, usual: Pairs, concat: Sequence[int]) -> DerivedCell:
    """Derive a cell whose nodes may have any number of ops.

    A node without ops vanishes, and with it the edges that leave it. A cell without any op is derived as DARTS'.
    """
    rows: list[list[float]] = score.tolist()
    nodes: list[Pairs] = []
    for here in group.entering():
        edges = sorted(range(here.start, here.stop), key=lambda edge: -max(rows[edge]))[: choice.edges_per_node]
        nodes.append(
            [
                (op, source)
                for edge in edges
                if (source := group.ends[edge][0]) < 2 or nodes[source - 2]
                for op in strongest(rows[edge], group.ops[edge], choice)
            ]
        )
    states = [state for state in concat if nodes[state - 2]]
    if not states:
        return usual, list(concat)
    if all(len(node) == 2 for node in nodes):
        return [pair for node in nodes for pair in node], states
    return nodes, states


def strongest(row: Sequence[float], names: Sequence[str], choice: Choice) -> list[str]:
    """Return the names of the ops that an edge keeps; none to drop the edge."""
    order = sorted(range(len(row)), key=lambda column: -row[column])[: choice.ops_per_edge]
    kept = [names[column] for column in order if choice.threshold is None or row[column] >= choice.threshold]
    return [name for name in kept if not (choice.none_wins and name == "none")]


def top_two(scores: Tensor, names: EdgeOps, ends: Ends) -> Pairs:
    """Keep two edges a node, ties to the later one, in the order of their sources (P-DARTS' code)."""
    pairs: Pairs = []
    best = []
    for row, ops in zip(scores.tolist(), names, strict=True):
        known = [column for column, name in enumerate(ops) if name != "none"]
        column = max(known, key=row.__getitem__)
        best.append((row[column], ops[column]))
    for state in dict.fromkeys(target for _, target in ends):
        incoming = [edge for edge, (_, target) in enumerate(ends) if target == state]
        kept = sorted(incoming, key=lambda edge: (best[edge][0], edge))[-2:]
        pairs += [(best[edge][1], ends[edge][0]) for edge in sorted(kept)]
    return pairs


def random_cells(
    groups: Mapping[str, Group],
    generator: torch.Generator,
    concat: Sequence[int],
    max_skips: int | None,
    limited: Collection[str],
) -> dict[str, DerivedCell]:
    """Draw the cell of each group uniformly, all of them until the `limited` ones have at most `max_skips` skips."""
    while True:
        cells: dict[str, DerivedCell] = {}
        for name, group in groups.items():
            pairs: Pairs = []
            for state in dict.fromkeys(target for _, target in group.ends):
                for source in torch.randperm(state, generator=generator)[:2].sort().values.tolist():
                    row = group.ops[group.ends.index((source, state))]
                    pairs.append((row[int(torch.randint(len(row), (), generator=generator))], source))
            cells[name] = pairs, list(concat)
        if max_skips is None or all(skips(_nodes(cells[name][0])) <= max_skips for name in limited):
            return cells
