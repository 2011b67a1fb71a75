"""SDARTS-ADV: smoothing by an adversary (Chen and Hsieh, ICML 2020, arXiv:2002.05283).

The weights are trained with adversarial op weights: those near the softmax of the alphas that raise the training loss
most. A few steps of sign-gradient ascent in a box, in eval mode (running statistics of batch norm), find them before
every weight step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastdarts.bilevel.architect import without_gradients
from fastdarts.bilevel.step import SearchStep
from fastdarts.methods.method import hyper, search_network
from fastdarts.methods.sdarts_rs import SdartsOptions, SdartsRs, project
from fastdarts.mixed.mix import Mix
from fastdarts.tasks.task import Batch


@dataclass(frozen=True, kw_only=True)
class SdartsAdvOptions(SdartsOptions):
    """Define the hyper-parameters of SDARTS-ADV; defaults are the authors'."""

    steps: int = hyper("steps of the ascent, each of length 2 eps / steps", 7, at_least=1)


class SdartsAdv(SdartsRs):
    """Run the weight step with adversarial op weights."""

    Options = SdartsAdvOptions
    varies = True  # eps and the length of a step of the ascent are numbers in the step

    def perturb(self, step: SearchStep, train: Batch, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        network, ranks, eps = search_network(step), step.architect.ranks, self.eps()
        network.eval()
        try:
            with without_gradients(step.architect.flat.weights):
                attacked = super().perturb(step, train, weights)
                for _ in range(self.options.steps):
                    for a in attacked.values():
                        a.requires_grad_()
                    part = ranks.part(self._loss(step, train, attacked))
                    gradients = ranks.sum(torch.autograd.grad(part, list(attacked.values())))
                    size = 2 * eps / self.options.steps
                    moved = [a.detach() + size * g.sign() for a, g in zip(attacked.values(), gradients, strict=True)]
                    attacked = {
                        group: project(a + (m - a).clamp(-eps, eps) * (a > 0), a)
                        for (group, a), m in zip(weights.items(), moved, strict=True)
                    }
                with torch.no_grad():
                    losses = [ranks.part(self._loss(step, train, tried)) for tried in (attacked, weights)]
                    after, before = ranks.sum(losses)
                    found = after >= before
        finally:
            network.train()
        return {group: torch.where(found, attacked[group], a) for group, a in weights.items()}

    def _loss(self, step: SearchStep, train: Batch, weights: dict[str, Tensor]) -> Tensor:
        network = search_network(step)
        with network.mixing({group: self.connected(network, group, Mix(a)) for group, a in weights.items()}):
            return step.architect.forward(train)[0]
