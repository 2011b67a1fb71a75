"""SNAS: stochastic neural architecture search (Xie et al., ICLR 2019, arXiv:1812.09926).

Op weights are soft Gumbel-softmax samples, one per pass, shared by the cells of a type. Weights and alphas are updated
together on one loss over all training images. A derived cell has the most likely op of each edge, `none` included.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastdarts.bilevel.host_values import from_host
from fastdarts.config.search_options import SearchOptions
from fastdarts.methods import gumbel
from fastdarts.methods.method import Method, MethodOptions, Settings, hyper
from fastdarts.mixed.mix import Mix
from fastdarts.spaces.group import Choice
from fastdarts.spaces.supernet import Choices, Supernet


@dataclass(frozen=True, kw_only=True)
class SnasOptions(MethodOptions):
    """Define the hyper-parameters of SNAS; defaults are the authors'."""

    tau_max: float = hyper("temperature in the first epoch", 1.0, above=0)
    tau_min: float = hyper("temperature in the last epoch", 0.03, above=0)
    resource: float = hyper("eta: weight of the sampled ops' parameters, in thousands, in the loss", 0.0, at_least=0)


class Snas(Method):
    """Weight all ops by soft samples; update weights and alphas on a single level."""

    Options = SnasOptions
    settings: ClassVar[Settings] = {"order": 1}
    published: ClassVar[Settings] = {"epochs": 150}
    level = "single"
    draws = True
    choice = Choice(edges_per_node=None, none_wins=True)

    def __init__(self, config: SearchOptions) -> None:
        super().__init__(config)
        self._drawn: dict[str, Tensor] = {}

    def tau(self) -> float:
        return gumbel.temperature(self.options.tau_max, self.options.tau_min, self.epoch, self.config.epochs)

    def relax(self, network: Supernet, group: str, alpha: Tensor) -> Mix:
        if not network.training:
            return Mix(alpha.softmax(dim=-1))
        self._drawn[group] = gumbel.sample(alpha, self.tau, self.generator)
        return Mix(self._drawn[group])

    def penalty(self, network: Supernet) -> Tensor | None:
        """Return `resource` times the parameters, in thousands, of the latest pass's sample (section 2.3), or None."""
        if not self.options.resource:
            return None
        costs = [
            (drawn * from_host(partial(_thousands, edges, drawn.shape[1]), drawn)).sum()
            for group, drawn in self._drawn.items()
            for edges in network.mixed_ops(group)
        ]
        return self.options.resource * torch.stack(costs).sum()

    def metrics(self, network: Supernet) -> dict[str, Any]:
        return super().metrics(network) | {"temperature": self.tau()}


def _thousands(edges: Sequence[Choices], ops: int) -> Tensor:
    """Return the number of parameters, in thousands, of each edge's first `ops` ops [edges, ops]."""
    counts = [[sum(p.numel() for p in op.parameters()) / 1000 for op in list(edge._ops)[:ops]] for edge in edges]
    return torch.tensor(counts, dtype=torch.float64)
