"""DrNAS: Dirichlet neural architecture search (Chen et al., ICLR 2021, arXiv:2006.10355).

Each pass draws the op weights of every edge from a Dirichlet distribution with the concentrations elu(alpha) + 1; the
gradient of the alphas follows the path of the sample. All cells of a type share the sample of a pass. The penalty is
the decay of the alphas (`--arch-weight-decay`), as in the authors' code, or the divergence from the uniform
distribution (`kl`).

Differences from the authors' code: the search network is measured with the mean op weights (theirs with those of one
sample); `kl` enters the loss of the alphas alone; a derived cell never contains `none`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastdarts.methods.method import Method, MethodOptions, Role, Settings, hyper, plus
from fastdarts.mixed.mix import Mix
from fastdarts.spaces.supernet import Supernet


@dataclass(frozen=True, kw_only=True)
class DrnasOptions(MethodOptions):
    """Define the hyper-parameter of DrNAS; the authors take 1e-3 where they use it, without decay of the alphas."""

    kl: float = hyper(
        "weight of KL(Dirichlet(c) || Dirichlet(1)), summed over edges, in the alphas' loss", 0.0, at_least=0
    )


class Drnas(Method):
    """Weight ops by samples of a Dirichlet distribution."""

    Options = DrnasOptions
    role: ClassVar[Role | None] = "relaxation"
    settings: ClassVar[Settings] = {"order": 1}
    published: ClassVar[Settings] = {"lr": 0.1, "lr_min": 0.0, "arch_lr": 6e-4}
    draws = True
    capturable = False  # op weights are sampled on the host

    def relax(self, network: Supernet, group: str, alpha: Tensor) -> Mix:
        c = concentrations(alpha)
        return Mix(draw(c, self.generator) if network.training else c / c.sum(1, keepdim=True))

    def penalty(self, network: Supernet) -> Tensor | None:
        if not self.options.kl:
            return super().penalty(network)
        parts = [divergence(concentrations(self.masked(name, a))).sum() for name, a in network.alphas.items()]
        return plus(super().penalty(network), self.options.kl * torch.stack(parts).sum())


def concentrations(alpha: Tensor) -> Tensor:
    """Return elu(alpha) + 1, without the rounding of that sum where alpha is negative; 0 for masked ops."""
    return torch.where(alpha > 0, alpha + 1, alpha.clamp(max=0).exp())


def draw(c: Tensor, generator: torch.Generator) -> Tensor:
    """Draw rows from Dirichlet(c), with the gradient of c along the path of the sample.

    An op of concentration 0 gets weight 0, and the others are drawn as if it were not there: the shares of a part of a
    Dirichlet vector are Dirichlet themselves.

    Args:
        c: concentrations [rows, ops].
        generator: generator on the CPU.
    """
    there = c > 0
    # torch's distributions take no generator: they draw from the global one, which is seeded by ours for the time.
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        whole = torch.distributions.Dirichlet(torch.where(there, c, 1.0).cpu().double()).rsample()
    part = whole * there.cpu()
    return (part / part.sum(1, keepdim=True)).to(c)


def divergence(c: Tensor) -> Tensor:
    """Return KL(Dirichlet(c) || Dirichlet(1)) [rows] of concentrations c [rows, ops]; those that are 0 do not count."""
    there = c > 0
    total = c.sum(1, keepdim=True)
    c = torch.where(there, c, 1.0)
    terms = (c - 1) * (c.digamma() - total.digamma()) - c.lgamma()
    return total.lgamma()[:, 0] - there.sum(1).to(c).lgamma() + terms.sum(1)
