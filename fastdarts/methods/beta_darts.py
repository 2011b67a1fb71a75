"""beta-DARTS: beta decay (Ye et al., CVPR 2022, arXiv:2203.01665).

The loss of the alphas gets lambda times the mean over edges of logsumexp(alpha), whose gradient is the softmax: op
weights of all values shrink towards equal ones, the larger ones more. lambda grows linearly from 0.

Differences from the authors' code: with two types of cells the penalty is the sum of both means; the noise on alphas
that their scripts add is a method of its own here, `sdarts-rs`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastdarts.methods.method import Method, MethodOptions, Settings, hyper, plus
from fastdarts.spaces.supernet import Supernet


@dataclass(frozen=True, kw_only=True)
class BetaDartsOptions(MethodOptions):
    """Define the hyper-parameter of beta-DARTS; the default is half a unit for each of the 50 epochs in DARTS' space,
    and 50 gives that of the 100 epochs in NAS-Bench-201."""

    strength: float = hyper("value towards which lambda, the weight of the penalty, grows linearly", 25.0, at_least=0)


class BetaDarts(Method):
    """Run DARTS with beta decay."""

    Options = BetaDartsOptions
    role = "regulariser"
    settings: ClassVar[Settings] = {"order": 1}
    varies = True

    def decay(self) -> float:
        """Return lambda of this epoch."""
        return float(self.options.strength * self.epoch / self.config.epochs)

    def penalty(self, network: Supernet) -> Tensor | None:
        means = [self.masked(name, alpha).logsumexp(1).mean() for name, alpha in network.alphas.items()]
        return plus(super().penalty(network), self.decay() * torch.stack(means).sum())

    def metrics(self, network: Supernet) -> dict[str, float]:
        return super().metrics(network) | {"beta_decay": self.decay()}
