"""GDAS: gradient-based search using a differentiable architecture sampler (Dong and Yang, CVPR 2019, arXiv:1910.04465).

Each pass draws one op for every edge and runs no other; alphas learn through the sample's Gumbel-softmax. All cells
of a type share a pass's sample.

Of the authors' code it differs so: the network and its ops are DARTS' (theirs has six cells and no batch norm behind
pools); `none` is left out and the two edges of a node come from different predecessors when a cell is derived; a search
network without training runs each edge's likeliest op.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import SGD, Optimizer

from fastdarts.methods import gumbel
from fastdarts.methods.method import Method, MethodOptions, Settings, hyper
from fastdarts.network import Mix, SearchNetwork


@dataclass(frozen=True, kw_only=True)
class GdasOptions(MethodOptions):
    """Defaults are the authors'."""

    tau_max: float = hyper("temperature in the first epoch", 10.0, above=0)
    tau_min: float = hyper("temperature in the last epoch", 0.1, above=0)


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
        return Mix(weights, [[column] for column in weights.argmax(1).tolist()])

    def metrics(self, network: SearchNetwork) -> dict[str, Any]:
        return super().metrics(network) | {"temperature": self.tau()}
