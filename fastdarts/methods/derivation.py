"""From scores to cells: the limit of skip connections, and a genotype inside the search network."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastdarts.genotype import Genotype, Pairs, edges_of
from fastdarts.network import Mix, SearchNetwork
from fastdarts.space import EdgeOps

Derive = Callable[[list[Tensor]], Genotype]


def skips(nodes: Sequence[Pairs]) -> int:
    """The number of skip connections in a cell."""
    return sum(op == "skip_connect" for node in nodes for op, _ in node)


def with_at_most(
    limit: int | None, scores: Sequence[Tensor], derive: Derive, candidates: Sequence[EdgeOps]
) -> Genotype:
    """`derive(scores)`, its normal cell with at most `limit` skip connections; None: as it is.

    As long as there are more, the weakest of them leaves its edge and the cell is derived anew (P-DARTS, Chen et al.,
    ICCV 2019). A cell that has no other ops keeps them.
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
        weakest = min(places, key=lambda place: float(normal[place]))
        if normal[weakest] < 0:
            break
        normal[weakest] = -1.0
        genotype = derive([normal, reduce])
    return genotype


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
