"""FBNet: soft samples of all candidates with their cost in the loss (Wu et al., CVPR 2019, arXiv:1812.03443).

Op weights are Gumbel-softmax samples, one for each row and pass, whose temperature falls exponentially. Alphas wait for
ten of ninety epochs. The latency enters by `--cost FILE --cost-form multiply`. In the paper four fifths of the images
train weights and one trains alphas (`--train-portion 0.8`).

Differences from the paper: one sample a pass for the whole batch, as in the public third-party code, not one an image.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer

from fastdarts.methods import gumbel
from fastdarts.methods.method import Method, MethodOptions, Settings, hyper
from fastdarts.mixed.mix import Mix
from fastdarts.spaces.supernet import Supernet


@dataclass(frozen=True, kw_only=True)
class FBNetOptions(MethodOptions):
    """Define the hyper-parameters of FBNet; defaults are the authors'."""

    tau_max: float = hyper("temperature in the first epoch", 5.0, above=0)
    tau_rate: float = hyper("in 90 epochs, the temperature falls by exp(-tau_rate) an epoch", 0.045, at_least=0)
    decay: float = hyper("L2 of the alphas", 5e-4, at_least=0)


class FBNet(Method):
    """Weight all ops by soft samples of falling temperature."""

    Options = FBNetOptions
    role = "relaxation"
    settings: ClassVar[Settings] = {"order": 1, "alpha_warmup": 1 / 9}
    published: ClassVar[Settings] = {"epochs": 90, "lr": 0.1, "weight_decay": 1e-4, "arch_lr": 0.01}
    draws = True

    def tau(self) -> float:
        """Return the temperature of this epoch: the paper's at the same share of its ninety epochs."""
        return self.options.tau_max * math.exp(-self.options.tau_rate * self.epoch * 90 / self.config.epochs)

    def arch_optimizer(self, network: Supernet) -> Optimizer:
        optimizer = self.adam(network.arch_parameters(), betas=(0.9, 0.999))
        for group in optimizer.param_groups:
            group["weight_decay"] = self.options.decay
        return optimizer

    def relax(self, network: Supernet, group: str, alpha: Tensor) -> Mix:
        if not network.training:
            return Mix(alpha.softmax(dim=-1))
        return Mix(gumbel.sample(alpha, self.tau, self.generator))

    def metrics(self, network: Supernet) -> dict[str, Any]:
        return super().metrics(network) | {"temperature": self.tau()}
