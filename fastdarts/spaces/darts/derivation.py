"""From scores to cells: the limit of skip connections, and a genotype inside the search network."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastdarts.primitives.table import EdgeOps
from fastdarts.spaces.darts.genotype import Genotype, Pairs, edges_of
from fastdarts.spaces.darts.supernet import Mix, SearchNetwork

Derive = Callable[[list[Tensor]], Genotype]


def skips(nodes: Sequence[Pairs]) -> int:
    """The number of skip connections in a cell."""
    return sum(op == "skip_connect" for node in nodes for op, _ in node)


def with_at_most(
    limit: int | None, scores: Sequence[Tensor], derive: Derive, candidates: Sequence[EdgeOps]
) -> Genotype:
    """`derive(scores)`, its normal cell with at most `limit` skip connections; None: as it is.

    As long as there are more, the weakest of them leaves its edge and the cell is derived anew (P-DARTS, Chen et al.,
    ICCV 2019). An edge that has no other ops keeps its skip connection.
    """
    normal, reduce = scores[0].clone(), scores[1]
    genotype = derive([normal, reduce])
    while limit is not None and skips(genotype.nodes("normal")) > limit:
        edges = edges_of(len(genotype.nodes("normal")))
        chosen = [
            edges.index((source, state))
            for state, node in enumerate(genotype.nodes("normal"), start=2)
            for op, source in node
            if op == "skip_connect"
        ]
        places = [(edge, candidates[0][edge].index("skip_connect")) for edge in chosen]
        places = [place for place in places if normal[place] >= 0]
        if not places:
            break
        normal[min(places, key=lambda place: float(normal[place]))] = -1.0
        genotype = derive([normal, reduce])
    return genotype


def from_edges(
    network: SearchNetwork,
    scores: Sequence[Tensor],
    choose: Callable[[list[float], Sequence[str]], list[str]],
    edges_per_node: int | None = None,
) -> Genotype:
    """Cells whose nodes may have any number of ops.

    Args:
        scores: [edges, ops] of normal and reduction cells.
        choose: an edge's scores and the names of its ops -> those it keeps, none to drop the edge.
        edges_per_node: of each node, only so many of the edges with the best scores are asked; None: all.

    A node without ops vanishes, and with it the edges that leave it. A cell without any op is derived as DARTS'.
    """
    darts = network.derive(scores)
    cells: list[tuple[list[Pairs] | Pairs, list[int]]] = []
    for score, names, usual in zip(scores, network.candidates, (darts.normal, darts.reduce), strict=True):
        rows: list[list[float]] = score.tolist()
        edges = list(enumerate(edges_of(network.steps)))
        nodes: list[Pairs] = []
        for state in range(2, 2 + network.steps):
            incoming = sorted((edge for edge in edges if edge[1][1] == state), key=lambda edge: -max(rows[edge[0]]))
            nodes.append(
                [
                    (op, source)
                    for edge, (source, _) in incoming[:edges_per_node]
                    if source < 2 or nodes[source - 2]
                    for op in choose(rows[edge], names[edge])
                ]
            )
        concat = [state for state in network.concat() if nodes[state - 2]]
        if not concat:
            cells.append((usual, network.concat()))
        elif all(len(node) == 2 for node in nodes):
            cells.append(([pair for node in nodes for pair in node], concat))
        else:
            cells.append((nodes, concat))
    (normal, normal_concat), (reduce, reduce_concat) = cells
    return Genotype(normal, normal_concat, reduce, reduce_concat)


def discrete_mixes(network: SearchNetwork, genotype: Genotype) -> list[Mix]:
    """Op weights with which the search network computes a genotype: 1 for its ops, on its edges; nothing else runs."""
    mixes = []
    for cell, names in enumerate(network.candidates):
        nodes = genotype.nodes("reduce" if cell else "normal")
        edges = edges_of(network.steps)
        weights = torch.zeros(len(edges), len(names[0]) + len(network.auxiliary))
        for state, node in enumerate(nodes, start=2):
            for op, source in node:
                edge = edges.index((source, state))
                weights[edge, names[edge].index(op)] = 1
        active = [row.nonzero().flatten().tolist() for row in weights]
        mixes.append(Mix(weights.to(network.alphas[cell]), active))
    return mixes
