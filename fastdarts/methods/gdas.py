"""GDAS: gradient-based search using a differentiable architecture sampler (Dong and Yang, CVPR 2019, arXiv:1910.04465).

Each forward pass samples one op for every edge and runs no other; the alphas' gradient flows through the Gumbel-softmax
of the sample. All cells of a type share the sample of a pass.

With the plain straight-through sample h = one-hot + z - stopgrad(z), every alpha would get a gradient through every
op's output, and every op would have to run. The authors' code for this space computes only the sampled op k,
y = h_k op_k(x), so that the alphas' gradient comes from dL/dh_k = <dL/dy, op_k(x)>. Their code for NAS-Bench-201 also
adds the values h_m = 0 of the other ops to y, each with the gradient sum(dL/dy). The option `others` chooses between
the two; neither runs a second op.

Differences from the authors' code: the network and its ops are those of DARTS (theirs has six cells and no batch norm
after pools); a derived cell never contains `none`, and the two edges of a node come from different predecessors; in
eval mode the search network runs each edge's most likely op.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.optim import Optimizer

from fastdarts.methods import gumbel
from fastdarts.methods.method import Method, MethodOptions, Settings, hyper
from fastdarts.mixed.mix import Mix
from fastdarts.spaces.supernet import Supernet


@dataclass(frozen=True, kw_only=True)
class GdasOptions(MethodOptions):
    """Define the hyper-parameters of GDAS; defaults are the authors'."""

    tau_max: float = hyper("temperature in the first epoch", 10.0, above=0)
    tau_min: float = hyper("temperature in the last epoch", 0.1, above=0)
    others: Literal["nothing", "samples"] = hyper(
        "what ops that were not sampled add to an edge: nothing, or their sample, a 0 with a gradient", "nothing"
    )


class Gdas(Method):
    """Run one sampled op per edge and pass, step weights before alphas, use Nesterov momentum."""

    Options = GdasOptions
    role = "relaxation"
    runs_one_op = True
    settings: ClassVar[Settings] = {"order": 1}
    published: ClassVar[Settings] = {"epochs": 250, "weight_decay": 5e-4}
    weights_first = True
    sparse = True
    capturable = False  # the host decides which ops run
    draws = True

    def tau(self) -> float:
        return gumbel.temperature(self.options.tau_max, self.options.tau_min, self.epoch, self.config.epochs)

    def weight_optimizer(self, network: Supernet) -> Optimizer:
        return self.nesterov(network)

    def relax(self, network: Supernet, group: str, alpha: Tensor) -> Mix:
        if network.training:
            weights = gumbel.one_hot(gumbel.sample(alpha, self.tau, self.generator))
        else:
            weights = gumbel.one_hot(alpha.detach())
        active = [[column] for column in weights.argmax(1).tolist()]
        if self.options.others == "nothing":
            return Mix(weights, active)
        return Mix(weights, active, added=weights.masked_fill(weights.detach() > 0, 0).sum(1))

    def metrics(self, network: Supernet) -> dict[str, Any]:
        return super().metrics(network) | {"temperature": self.tau()}
