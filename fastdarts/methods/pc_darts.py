"""PC-DARTS: partial channel connections and edge normalisation (Xu et al., ICLR 2020, arXiv:1907.05737).

An edge sends the first C/K channels through its ops and passes the others by; a shuffle mixes both, so that the next
edge finds other features in the first C/K. Softmax weights beta over each node's edges make up for the noise.

As the authors' code, but that no mixed edge is computed twice on large images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastdarts.config.search_options import SearchOptions
from fastdarts.methods.method import Method, MethodOptions, Settings, hyper
from fastdarts.mixed import fused
from fastdarts.mixed.mixed_op import Active
from fastdarts.ops import functional
from fastdarts.spaces.darts.cell import Cell
from fastdarts.spaces.darts.edges import groups, softmax_by_node
from fastdarts.spaces.darts.genotype import Genotype, edges_of
from fastdarts.spaces.darts.supernet import Mix, SearchNetwork

NAMES = ("betas_normal", "betas_reduce")


@dataclass(frozen=True, kw_only=True)
class PCDartsOptions(MethodOptions):
    """The default is the paper's for CIFAR-10; for ImageNet it takes 2."""

    k: int = hyper("K: 1/K of the channels go through the ops", 4, at_least=1)


class PCDarts(Method):
    """Partial channels, edge normalisation, alphas and betas that wait."""

    Options = PCDartsOptions
    settings: ClassVar[Settings] = {"order": 1, "alpha_warmup": 0.3}
    published: ClassVar[Settings] = {"batch_size": 256, "lr": 0.1, "lr_min": 0.0, "arch_lr": 6e-4}

    def __init__(self, config: SearchOptions) -> None:
        super().__init__(config)
        self._arguments = super().network_arguments() | {"cell": partial(PartialCell, K=self.options.k)}

    @classmethod
    def check(cls, config: SearchOptions) -> None:
        super().check(config)
        k = config.method_options["k"]
        if config.init_channels % k:
            raise ValueError(f"init_channels must be a multiple of the method's k = {k}; got {config.init_channels}")

    def network_arguments(self) -> dict[str, Any]:
        return self._arguments

    def attach(self, network: SearchNetwork) -> None:
        super().attach(network)
        for name in NAMES:
            network.extra_alphas[name] = (1e-3 * torch.randn(len(edges_of(network.steps)))).requires_grad_()

    def relax(self, network: SearchNetwork, cell: int, alpha: Tensor) -> Mix:
        beta = softmax_by_node(network.extra_alphas[NAMES[cell]], network.steps)[:, None]
        return Mix(torch.cat([beta * alpha.softmax(dim=-1), beta], dim=1))

    @torch.no_grad()
    def edge_weights(self, network: SearchNetwork) -> list[Tensor]:
        return [softmax_by_node(network.extra_alphas[name].cpu(), network.steps) for name in NAMES]

    def derive(self, network: SearchNetwork, scores: Sequence[Tensor]) -> Genotype:
        """By the products of op weight and edge weight."""
        pairs = zip(scores, self.edge_weights(network), strict=True)
        return network.derive([score * beta[:, None] for score, beta in pairs])

    def discrete(self, network: SearchNetwork, genotype: Genotype) -> list[Mix]:
        """The edges that stay pass their other channels by."""
        mixes = super().discrete(network, genotype)
        return [Mix(torch.cat([w, w.sum(1, keepdim=True)], dim=1), active) for w, active in mixes]

    def metrics(self, network: SearchNetwork) -> dict[str, Any]:
        betas = zip(NAMES, self.edge_weights(network), strict=True)
        return super().metrics(network) | {name: beta.tolist() for name, beta in betas}


class PartialCell(Cell):
    """A cell whose edges send the first C/K channels through their ops; the last column of op weights is the weight of
    the other channels, which pass by: as they are, or at stride 2 through a 2x2 max-pooling."""

    extra_columns = 1

    def __init__(self, *args: Any, K: int, **named: Any) -> None:
        self.K = K
        super().__init__(*args, **named)

    def _edge_channels(self, C: int) -> int:
        if C % self.K:
            raise ValueError(f"C must be a multiple of K = {self.K}; got {C}")
        return C // self.K

    def _nodes(
        self, states: list[Tensor], weights: Tensor, active: Active | None, edges: list[fused.ReadEdge] | None
    ) -> Tensor:
        if self.K == 1:
            return super()._nodes(states, weights[:, :-1], active, edges)
        if edges is not None and states[0].device.type == "cpu" and not any(edge.others for edge in edges):
            return fused.mixed_nodes(edges, edges_of(self.steps), states, weights, active, self.K)
        arriving: list[list[Tensor]] = [[] for _ in range(self.steps)]  # at each node, what its edges' ops give
        passing: list[Tensor] = []  # of each state, the other channels
        nodes: list[Tensor] = []

        def send(source: int, state: Tensor) -> None:
            mine = state[:, : state.shape[1] // self.K]
            leaving = [e for e, (start, _) in enumerate(edges_of(self.steps)) if start == source]
            sent = self._through_ops(mine, leaving, weights, active, edges)
            for terms, term in zip(arriving[-len(leaving) :], sent, strict=True):
                terms.append(term)
            passing.append(functional.passed_by(state, self.K, 2 if self.reduction and source < 2 else 1))

        for source, state in enumerate(states):
            send(source, state)
        for node, here in enumerate(groups(self.steps)):
            own = sum(arriving[node][1:], arriving[node][0])
            nodes.append(functional.shuffled(own, passing, weights[here, -1]))
            if node + 1 < self.steps:
                send(2 + node, nodes[-1])
        return torch.cat(nodes, dim=1)

    def _through_ops(
        self,
        x: Tensor,
        leaving: list[int],
        weights: Tensor,
        active: Active | None,
        edges: list[fused.ReadEdge] | None,
    ) -> Sequence[Tensor]:
        """What the ops of each edge that leaves a state make of its first channels: all edges share a state's pools."""
        rows = [weights[e, :-1] for e in leaving]
        runs = None if active is None else [active[e] for e in leaving]
        if edges is None:
            ops = self.edges()
            return [ops[e](x, row, runs and runs[i]) for i, (e, row) in enumerate(zip(leaving, rows, strict=True))]
        ends = [(0, 1 + i) for i in range(len(leaving))]
        nodes = fused.mixed_nodes([edges[e] for e in leaving], ends, [x], torch.stack(rows), runs)
        return nodes.chunk(len(leaving), dim=1)
