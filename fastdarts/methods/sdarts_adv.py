"""SDARTS-ADV: smoothing by an adversary (Chen and Hsieh, ICML 2020, arXiv:2002.05283).

The weights learn under the op weights, near the alphas', that raise their loss most: a few steps of sign-gradient
ascent in a box, with the running statistics of batch norm, before every weight step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastdarts.bilevel.architect import Batch, without_gradients
from fastdarts.bilevel.step import SearchStep
from fastdarts.methods.method import hyper, search_network
from fastdarts.methods.sdarts_rs import SdartsOptions, SdartsRs, project
from fastdarts.spaces.darts.supernet import Mix


@dataclass(frozen=True, kw_only=True)
class SdartsAdvOptions(SdartsOptions):
    """Defaults are the authors'."""

    steps: int = hyper("of the ascent, each 2 eps / steps long", 7, at_least=1)


class SdartsAdv(SdartsRs):
    """Op weights that the adversary found, in the weight step."""

    Options = SdartsAdvOptions

    def perturb(self, step: SearchStep, train: Batch, weights: list[Tensor]) -> list[Tensor]:
        network, eps = search_network(step), self.eps()
        network.eval()
        try:
            with without_gradients(step.architect.flat.weights):
                attacked = [project(a + self.noise(a), a) for a in weights]
                for _ in range(self.options.steps):
                    for a in attacked:
                        a.requires_grad_()
                    gradients = torch.autograd.grad(self._loss(step, train, attacked), attacked)
                    size = 2 * eps / self.options.steps
                    moved = [a.detach() + size * g.sign() for a, g in zip(attacked, gradients, strict=True)]
                    attacked = [
                        project(a + (m - a).clamp(-eps, eps) * (a > 0), a) for a, m in zip(weights, moved, strict=True)
                    ]
                with torch.no_grad():
                    found = self._loss(step, train, attacked) >= self._loss(step, train, weights)
        finally:
            network.train()
        return [torch.where(found, m, a) for m, a in zip(attacked, weights, strict=True)]

    def _loss(self, step: SearchStep, train: Batch, weights: list[Tensor]) -> Tensor:
        with search_network(step).mixing([Mix(a) for a in weights]):
            return step.architect.forward(train)[0]
