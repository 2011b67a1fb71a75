"""SDARTS-RS: random smoothing (Chen and Hsieh, ICML 2020, arXiv:2002.05283).

The weights are trained with randomly perturbed op weights, so that they do well in a neighbourhood of the alphas; to
second order this penalises the trace of the loss's Hessian in the op weights. The alpha step is that of DARTS.
"""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastdarts.bilevel.host_values import from_host
from fastdarts.bilevel.step import SearchStep
from fastdarts.methods.method import Method, MethodOptions, Settings, hyper, search_network
from fastdarts.spaces.supernet import Supernet
from fastdarts.tasks.task import Batch


@dataclass(frozen=True, kw_only=True)
class SdartsOptions(MethodOptions):
    """Define the hyper-parameters of SDARTS; defaults are the authors'."""

    eps_min: float = hyper("largest change of an op weight in the first epoch", 0.03, at_least=0, at_most=1)
    eps_max: float = hyper("value towards which this change grows linearly", 0.3, at_least=0, at_most=1)


class SdartsRs(Method):
    """Run the weight step with op weights plus uniform noise, projected onto the simplex."""

    Options = SdartsOptions
    role = "perturbation"
    settings: ClassVar[Settings] = {"order": 1}

    def eps(self) -> float:
        first, last = self.options.eps_min, self.options.eps_max
        return float(first + (last - first) * self.epoch / self.config.epochs)

    @contextmanager
    def weight_pass(self, step: SearchStep, train: Batch) -> Iterator[None]:
        network = search_network(step)
        if self.eps() == 0:
            yield
            return
        with torch.no_grad():
            mixes = {group: self.drawn(network, group) for group in network.groups}
        perturbed = self.perturb(step, train, {group: mix.weights for group, mix in mixes.items()})
        for group, mix in mixes.items():
            # Ops whose weight the projection sets to 0 run all the same, to update their running statistics.
            active = mix.active or [range(mix.weights.shape[1])] * len(mix.weights)
            mixes[group] = self.connected(network, group, mix._replace(weights=perturbed[group], active=active))
        with network.mixing(mixes):
            yield

    def perturb(self, step: SearchStep, train: Batch, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return each group's op weights for the weight step, given the unperturbed `weights` [edges, ops]."""
        return {group: project(a + self.noise(a), a) for group, a in weights.items()}

    def noise(self, a: Tensor) -> Tensor:
        """Return uniform noise in [-eps, eps] of the shape of `a`; 0 for masked ops, whose weight in `a` is 0."""

        def draw() -> Tensor:
            return self.eps() * (2 * torch.rand(shape, generator=self.generator, dtype=torch.float64) - 1)

        shape = a.shape
        return from_host(draw, a) * (a > 0)

    def graph_key(self) -> Hashable:
        return super().graph_key(), self.eps() == 0

    def metrics(self, network: Supernet) -> dict[str, Any]:
        return super().metrics(network) | {"epsilon": self.eps()}


def project(perturbed: Tensor, a: Tensor) -> Tensor:
    """Clamp each row of `perturbed` to [0, 1] and scale it to sum 1; an all-zero row becomes one-hot at the maximum of
    `a`."""
    clamped = perturbed.clamp(0, 1)
    total = clamped.sum(1, keepdim=True)
    one_hot = torch.zeros_like(a).scatter(1, a.argmax(1, keepdim=True), 1.0)
    return torch.where(total > 0, clamped / total.clamp_min(1e-30), one_hot)
