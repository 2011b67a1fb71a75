"""From scores to cells: which edges and ops of a relaxed cell form the discrete one."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastdarts.primitives.table import EdgeOps
from fastdarts.spaces.darts.genotype import Genotype, Pairs, derive_cell
from fastdarts.spaces.group import Choice, Group

Ends = Sequence[tuple[int, int]]


def skips(nodes: Sequence[Pairs]) -> int:
    """Count the skip connections of a cell."""
    return sum(op == "skip_connect" for node in nodes for op, _ in node)


def derive(
    groups: Mapping[str, Group], scores: Mapping[str, Tensor], choice: Choice, concat: Sequence[int]
) -> Genotype:
    """Derive a genotype; its normal cell has at most `choice.max_skips` skip connections.

    As long as there are more, the weakest of them leaves its edge and the cell is derived anew (P-DARTS, Chen et al.,
    ICCV 2019). An edge that has no other op keeps its skip connection.

    Args:
        groups: the edges and ops of "normal" and "reduce".
        scores: [edges, ops] of each; minus infinity for ops that were pruned.
        choice: the method's rule.
        concat: the states that a cell puts out.
    """
    group, normal = groups["normal"], scores["normal"].clone()
    removed: set[tuple[int, int]] = set()
    pairs, states = _cell(group, choice.ranked("normal", normal), choice, concat)
    while choice.max_skips is not None and skips(_nodes(pairs)) > choice.max_skips:
        chosen = [
            group.ends.index((source, state))
            for state, node in enumerate(_nodes(pairs), start=2)
            for op, source in node
            if op == "skip_connect"
        ]
        places = [(edge, group.ops[edge].index("skip_connect")) for edge in chosen]
        places = [place for place in places if place not in removed and normal[place].isfinite()]
        if not places:
            break
        weakest = min(places, key=lambda place: float(normal[place]))
        removed.add(weakest)
        known = scores["normal"][scores["normal"].isfinite()]
        normal[weakest] = known.min().clamp(max=0) - 1  # below all ops but those that were pruned
        pairs, states = _cell(group, choice.ranked("normal", normal), choice, concat)
    reduce = choice.ranked("reduce", scores["reduce"])
    return Genotype(pairs, states, *_cell(groups["reduce"], reduce, choice, concat))


def _nodes(pairs: list[Pairs] | Pairs) -> list[Pairs]:
    return Genotype(pairs, [], [], []).nodes("normal")


def _cell(group: Group, score: Tensor, choice: Choice, concat: Sequence[int]) -> tuple[list[Pairs] | Pairs, list[int]]:
    steps = group.ends[-1][1] - 1
    if choice.last_wins:
        return top_two(score, group.ops, group.ends), list(concat)
    usual: Pairs = derive_cell(score, steps, group.ops)
    if choice.threshold is None and not choice.none_wins and choice.edges_per_node == 2 and choice.ops_per_edge == 1:
        return usual, list(concat)
    return _any_number(group, score, choice, usual, concat)


def _any_number(
    group: Group, score: Tensor, choice: Choice, usual: Pairs, concat: Sequence[int]
) -> tuple[list[Pairs] | Pairs, list[int]]:
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


def random_genotype(
    groups: Mapping[str, Group], generator: torch.Generator, concat: Sequence[int], max_skips: int | None = None
) -> Genotype:
    """Draw normal and reduction cell uniformly, until the normal cell has at most `max_skips` skip connections."""
    while True:
        cells = []
        for group in groups.values():
            pairs: Pairs = []
            for state in dict.fromkeys(target for _, target in group.ends):
                for source in torch.randperm(state, generator=generator)[:2].sort().values.tolist():
                    row = group.ops[group.ends.index((source, state))]
                    pairs.append((row[int(torch.randint(len(row), (), generator=generator))], source))
            cells.append(pairs)
        genotype = Genotype(cells[0], list(concat), cells[1], list(concat))
        if max_skips is None or skips(genotype.nodes("normal")) <= max_skips:
            return genotype
