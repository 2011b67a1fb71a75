"""Nodes of a cell: sums of mixed edges, by the fused operator or by the edges' own modules."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdarts.mixed import fused
from fastdarts.mixed.mix import Mix
from fastdarts.mixed.mixed_op import MixedOp
from fastdarts.ops import functional

Ends = Sequence[tuple[int, int]]
"""(source state, target state) of each edge, ordered by target, then by source; inputs come before nodes."""


def nodes_of(
    edges: Sequence[MixedOp],
    read: Sequence[fused.ReadEdge] | None,
    ends: Ends,
    states: Sequence[Tensor],
    mix: Mix,
    K: int = 1,
) -> Tensor:
    """Compute all nodes of a directed acyclic graph of mixed edges.

    Args:
        edges: the mixed ops, in the order of `ends` and of the rows of `mix`.
        read: the same edges as the kernels take them, or None to run their modules.
        ends: what each edge connects; the states are the inputs, then the nodes.
        states: the inputs, [N, C, H, W] each.
        mix: op weights and what else the edges do.
        K: with K > 1 only the first C/K channels of a state go through the ops (PC-DARTS).

    Returns: [N, nodes * C, H', W'].
    """
    if K > 1:
        if mix.drop_path is not None or mix.added is not None:
            raise ValueError("partial channels (K > 1) go together neither with drop_path nor with added")
        return _partial(edges, read, ends, states, mix, K)
    if mix.drop_path is not None or mix.added is not None or read is None:
        return _node_by_node(edges, read, ends, states, mix)
    return fused.mixed_nodes(read, ends, states, mix.weights, mix.active)


def rows_by_target(ends: Ends) -> list[list[int]]:
    """Return the edges that enter each node."""
    targets = dict.fromkeys(target for _, target in ends)
    return [[e for e, (_, to) in enumerate(ends) if to == target] for target in targets]


def _node_by_node(
    edges: Sequence[MixedOp],
    read: Sequence[fused.ReadEdge] | None,
    ends: Ends,
    states: Sequence[Tensor],
    mix: Mix,
) -> Tensor:
    """Make a node when all states before it exist: its edges in one call, or one by one where each drops samples."""
    known = list(states)
    for here in rows_by_target(ends):
        active = [None if mix.active is None else mix.active[e] for e in here]
        sources = [known[ends[e][0]] for e in here]
        if read is not None and mix.drop_path is None:
            # Not weights[here]: torch would copy the list to the GPU, which a captured step may not wait for.
            rows = torch.stack([mix.weights[e] for e in here])
            into = [(source, len(sources)) for source in range(len(sources))]
            columns = None if mix.active is None else [mix.active[e] for e in here]
            node = fused.mixed_nodes([read[e] for e in here], into, sources, rows, columns)
        else:
            terms = [edges[e](x, mix.weights[e], a) for e, x, a in zip(here, sources, active, strict=True)]
            if mix.drop_path is not None:  # each edge has samples of its own
                for i, term in enumerate(terms):
                    terms[i] = term * mix.drop_path(term)[:, None, None, None]
            node = sum(terms[1:], terms[0])
        if mix.added is not None:
            node = node + torch.stack([mix.added[e] for e in here]).sum().to(node.dtype)
        known.append(node)
    return torch.cat(known[len(states) :], dim=1)


def _partial(
    edges: Sequence[MixedOp],
    read: Sequence[fused.ReadEdge] | None,
    ends: Ends,
    states: Sequence[Tensor],
    mix: Mix,
    K: int,
) -> Tensor:
    """Send the first C/K channels of each state through the ops and shuffle them with the rest."""
    if mix.passing is None:
        raise ValueError(
            "partial channels (K > 1) need mix.passing, the weights [edges] of the channels that bypass ops"
        )
    weights = torch.cat([mix.weights, mix.passing[:, None]], dim=1)
    if read is not None and states[0].device.type == "cpu" and not any(edge.others for edge in read):
        return fused.mixed_nodes(read, ends, states, weights, mix.active, K)
    arriving: dict[int, list[Tensor]] = {}  # at each node, the outputs of its edges' ops
    passing: list[Tensor] = []  # the other channels of each state
    nodes: list[Tensor] = []

    def send(source: int, state: Tensor) -> None:
        leaving = [e for e, (start, _) in enumerate(ends) if start == source]
        sent = _through_ops(state[:, : state.shape[1] // K], leaving, edges, read, mix)
        for e, term in zip(leaving, sent, strict=True):
            arriving.setdefault(ends[e][1], []).append(term)
        stride = edges[leaving[0]].stride  # the same for all edges of a state
        passing.append(functional.passed_by(state, K, stride))

    for source, state in enumerate(states):
        send(source, state)
    targets = rows_by_target(ends)
    for node, here in enumerate(targets):
        terms = arriving[len(states) + node]
        own = sum(terms[1:], terms[0])
        entering = [passing[ends[e][0]] for e in here]
        nodes.append(functional.shuffled(own, entering, torch.stack([mix.passing[e] for e in here])))
        if node + 1 < len(targets):
            send(len(states) + node, nodes[-1])
    return torch.cat(nodes, dim=1)


def _through_ops(
    x: Tensor,
    leaving: Sequence[int],
    edges: Sequence[MixedOp],
    read: Sequence[fused.ReadEdge] | None,
    mix: Mix,
) -> Sequence[Tensor]:
    """Run the ops of each edge that leaves a state on the state's first channels; all edges share the state's pools."""
    rows = [mix.weights[e] for e in leaving]
    active = None if mix.active is None else [mix.active[e] for e in leaving]
    if read is None:
        return [edges[e](x, row, active and active[i]) for i, (e, row) in enumerate(zip(leaving, rows, strict=True))]
    ends = [(0, 1 + i) for i in range(len(leaving))]
    return fused.mixed_nodes([read[e] for e in leaving], ends, [x], torch.stack(rows), active).chunk(
        len(leaving), dim=1
    )
