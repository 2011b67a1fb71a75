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

from torch import Tensor
from torch.optim import SGD, Optimizer

from fastdarts.methods import gumbel
from fastdarts.methods.method import Method, MethodOptions, Settings, hyper
from fastdarts.mixed.mix import Mix
from fastdarts.spaces.supernet import Supernet


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

    def weight_optimizer(self, network: Supernet) -> Optimizer:
        config = self.config
        return SGD(
            network.parameters(),
            config.lr,
            config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.momentum > 0,
        )

    def relax(self, network: Supernet, group: str, alpha: Tensor) -> Mix:
        if network.training:
            weights = gumbel.one_hot(gumbel.sample(alpha, self.tau(), self.generator))
        else:
            weights = gumbel.one_hot(alpha.detach())
        active = [[column] for column in weights.argmax(1).tolist()]
        if self.options.others == "nothing":
            return Mix(weights, active)
        return Mix(weights, active, added=weights.masked_fill(weights.detach() > 0, 0).sum(1))

    def metrics(self, network: Supernet) -> dict[str, Any]:
        return super().metrics(network) | {"temperature": self.tau()}
