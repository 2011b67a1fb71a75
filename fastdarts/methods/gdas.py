"""GDAS: gradient-based search using a differentiable architecture sampler (Dong and Yang, CVPR 2019, arXiv:1910.04465).

Each pass draws one op for every edge and runs no other; alphas learn through the sample's Gumbel-softmax. All cells
of a type share a pass's sample.

Straight through, the sample h = one-hot + z - stopgrad(z) would give every alpha a gradient through every op's output,
and every op would have to run. The authors' code for this space computes the drawn op k alone, y = h_k op_k(x), so that
alphas learn from dL/dh_k = <dL/dy, op_k(x)>; their code for NAS-Bench-201 adds the numbers h_m = 0 of the others to y,
whose gradient is sum(dL/dy). `others` chooses between the two; neither runs a second op.

Of the authors' code it differs so: the network and its ops are DARTS' (theirs has six cells and no batch norm behind
pools); `none` is left out and the two edges of a node come from different predecessors when a cell is derived; a search
network without training runs each edge's likeliest op.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from fastdarts.methods import gumbel
from fastdarts.methods.method import Method, MethodOptions, Settings, hyper
from fastdarts.mixed import fused
from fastdarts.mixed.mixed_op import Active
from fastdarts.spaces.darts.cell import Cell
from fastdarts.spaces.darts.edges import groups
from fastdarts.spaces.darts.genotype import Genotype
from fastdarts.spaces.darts.supernet import Mix, SearchNetwork


@dataclass(frozen=True, kw_only=True)
class GdasOptions(MethodOptions):
    """Defaults are the authors'."""

    tau_max: float = hyper("temperature in the first epoch", 10.0, above=0)
    tau_min: float = hyper("temperature in the last epoch", 0.1, above=0)
    others: Literal["nothing", "samples"] = hyper(
        "what ops that were not drawn add to an edge: nothing, or their sample, a 0 with a gradient", "nothing"
    )


class Gdas(Method):
    """One op an edge and pass, weights before alphas, Nesterov momentum."""

    Options = GdasOptions
    settings: ClassVar[Settings] = {"order": 1}
    published: ClassVar[Settings] = {"epochs": 250, "weight_decay": 5e-4}
    weights_first = True
    sparse = True
    capturable = False  # which ops run is decided on the host
    draws = True

    def tau(self) -> float:
        return gumbel.temperature(self.options.tau_max, self.options.tau_min, self.epoch, self.config.epochs)

    def network_arguments(self) -> dict[str, Any]:
        cell = {"cell": SampledCell} if self.options.others == "samples" else {}
        return super().network_arguments() | cell

    def weight_optimizer(self, network: SearchNetwork) -> Optimizer:
        config = self.config
        return SGD(
            network.parameters(),
            config.lr,
            config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.momentum > 0,
        )

    def relax(self, network: SearchNetwork, cell: int, alpha: Tensor) -> Mix:
        if network.training:
            weights = gumbel.one_hot(gumbel.sample(alpha, self.tau(), self.generator))
        else:
            weights = gumbel.one_hot(alpha.detach())
        active = [[column] for column in weights.argmax(1).tolist()]
        if self.options.others == "samples":
            others = weights.masked_fill(weights.detach() > 0, 0).sum(1, keepdim=True)
            weights = torch.cat([weights, others], dim=1)
        return Mix(weights, active)

    def discrete(self, network: SearchNetwork, genotype: Genotype) -> list[Mix]:
        mixes = super().discrete(network, genotype)
        if self.options.others == "samples":
            mixes = [Mix(torch.cat([w, torch.zeros_like(w[:, :1])], dim=1), active) for w, active in mixes]
        return mixes

    def metrics(self, network: SearchNetwork) -> dict[str, Any]:
        return super().metrics(network) | {"temperature": self.tau()}


class SampledCell(Cell):
    """A cell whose edges also add a number each, the last column of op weights, to every pixel."""

    extra_columns = 1

    def _nodes(
        self, states: list[Tensor], weights: Tensor, active: Active | None, edges: list[fused.ReadEdge] | None
    ) -> Tensor:
        states = list(states)
        for node, here in enumerate(groups(self.steps), start=2):
            rows = weights[here, :-1]
            columns = [None] * node if active is None else active[here]
            if edges is None:
                terms = [op(*of) for op, *of in zip(self.edges()[here], states, rows, columns, strict=True)]
                mixed = sum(terms[1:], terms[0])
            else:
                into = [(source, node) for source in range(node)]
                mixed = fused.mixed_nodes(edges[here], into, states, rows, None if active is None else active[here])
            states.append(mixed + weights[here, -1].sum().to(mixed.dtype))
        return torch.cat(states[2:], dim=1)
