"""PC-DARTS: partial channel connections and edge normalisation (Xu et al., ICLR 2020, arXiv:1907.05737).

On each edge, the first C/K channels go through the ops and the others bypass them; a channel shuffle follows, so that
the next edge finds other features in its first C/K channels. Edge weights, a softmax of beta over the edges that enter
a node, make up for the noise of this sampling.

Difference from the authors' code: no mixed edge is computed twice on large images.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastdarts.config.search_options import SearchOptions
from fastdarts.methods.edges import softmax_by_node
from fastdarts.methods.method import Method, MethodOptions, Settings, hyper
from fastdarts.mixed.mix import Mix
from fastdarts.spaces.space import Feature
from fastdarts.spaces.supernet import Mixes, Supernet


@dataclass(frozen=True, kw_only=True)
class PCDartsOptions(MethodOptions):
    """Define the hyper-parameter of PC-DARTS; the default is the paper's for CIFAR-10, which uses 2 for ImageNet."""

    k: int = hyper("K: 1/K of the channels go through the ops", 4, at_least=1)


class PCDarts(Method):
    """Use partial channels and edge weights, and train alphas and betas only after a warmup."""

    Options = PCDartsOptions
    role = "channels"
    settings: ClassVar[Settings] = {"order": 1, "alpha_warmup": 0.3}
    needs: ClassVar[frozenset[Feature]] = frozenset({"edges", "partial channels"})
    published: ClassVar[Settings] = {"batch_size": 256, "lr": 0.1, "lr_min": 0.0, "arch_lr": 6e-4}

    @classmethod
    def check(cls, config: SearchOptions) -> None:
        super().check(config)
        k = config.method_options["k"]
        if config.init_channels % k:
            raise ValueError(f"init_channels must be a multiple of the method's k = {k}; got {config.init_channels}")

    def network_arguments(self) -> dict[str, Any]:
        return super().network_arguments() | {"K": self.options.k}

    def attach(self, network: Supernet) -> None:
        super().attach(network)
        for name, group in network.groups.items():
            network.extra_alphas[f"betas_{name}"] = (1e-3 * torch.randn(len(group.ends))).requires_grad_()

    def connect(self, network: Supernet, group: str, mix: Mix) -> Mix:
        mix, beta = super().connect(network, group, mix), self._edge_weights(network, group)
        passing = beta if self.options.k > 1 else None
        return mix._replace(weights=beta[:, None] * mix.weights, passing=passing)

    def _edge_weights(self, network: Supernet, name: str) -> Tensor:
        return softmax_by_node(network.extra_alphas[f"betas_{name}"], network.groups[name])

    @torch.no_grad()
    def edge_weights(self, network: Supernet) -> dict[str, Tensor]:
        return {group: self._edge_weights(network, group).cpu() for group in network.groups}

    def ranking(self, network: Supernet, group: str, score: Tensor) -> Tensor:
        """Return the products of op weights and edge weights [edges, ops]."""
        return score * self.edge_weights(network)[group][:, None]

    def discrete(self, network: Supernet, architecture: Any) -> Mixes:
        """Return the op weights of an architecture; the edges it keeps pass their other channels on with weight 1."""
        mixes = super().discrete(network, architecture)
        if self.options.k == 1:
            return mixes
        return {name: mix._replace(passing=(mix.weights > 0).any(1).to(mix.weights)) for name, mix in mixes.items()}

    def metrics(self, network: Supernet) -> dict[str, Any]:
        betas = {f"betas_{name}": beta.tolist() for name, beta in self.edge_weights(network).items()}
        return super().metrics(network) | betas
