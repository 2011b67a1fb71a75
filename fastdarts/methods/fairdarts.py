"""FairDARTS (Chu et al., ECCV 2020, arXiv:1911.12126).

Op weights are sigmoids instead of a softmax, so that ops do not compete; a zero-one loss pushes them towards 0 or 1;
ops below a threshold are cut. A derived node has 0, 1, 2 or more ops; a node without ops is removed.

Differences from the authors' code: a cell in which no op reaches the threshold is derived as in DARTS (theirs fails);
drop path in the evaluation drops an op's output, but never an identity's, as in DARTS (theirs drops a node's sum).
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from fastdarts.config.search_options import SearchOptions
from fastdarts.methods.method import Method, MethodOptions, Settings, hyper, plus
from fastdarts.mixed.mix import Mix
from fastdarts.spaces.group import Choice
from fastdarts.spaces.supernet import Supernet


@dataclass(frozen=True, kw_only=True)
class FairDartsOptions(MethodOptions):
    """Define the hyper-parameters of FairDARTS; defaults are the authors'."""

    weight: float = hyper("w01: factor of the zero-one loss", 10.0, at_least=0)
    form: Literal["l2", "l1"] = hyper("form of the zero-one loss: squares or absolute values", "l2")
    threshold: float = hyper("smallest sigmoid of an op that a derived cell keeps", 0.85, at_least=0, below=1)
    derivation: Literal["sparse", "edge", "darts"] = hyper(
        "sparse: at most 2 edges a node, one op each; edge: all edges, at most 2 ops each; darts: without threshold",
        "sparse",
    )


class FairDarts(Method):
    """Weight ops by sigmoids, add the zero-one loss to the alpha step, derive cells with a threshold."""

    Options = FairDartsOptions
    role = "relaxation"
    settings: ClassVar[Settings] = {"order": 1}
    competes = False
    published: ClassVar[Settings] = {"batch_size": 128, "lr": 0.005, "arch_lr": 3e-3}

    def __init__(self, config: SearchOptions) -> None:
        super().__init__(config)
        limit = self.options.threshold
        match self.options.derivation:
            case "sparse":
                self.choice = Choice(threshold=limit)
            case "edge":
                self.choice = Choice(ops_per_edge=2, edges_per_node=None, threshold=limit)

    def network_arguments(self) -> dict[str, Any]:
        arguments = super().network_arguments()
        if "primitives" in arguments:  # the space lets its ops be chosen
            arguments["primitives"] = tuple(name for name in arguments["primitives"] if name != "none")
        return arguments

    def attach(self, network: Supernet) -> None:
        super().attach(network)
        for alpha in network.alphas.values():
            alpha.data.zero_()

    def arch_optimizer(self, network: Supernet) -> Optimizer:
        return self.adam(network.arch_parameters(), betas=(0.9, 0.999))

    def relax(self, network: Supernet, group: str, alpha: Tensor) -> Mix:
        return Mix(alpha.sigmoid())

    def strength(self, network: Supernet, group: str, alpha: Tensor) -> Tensor:
        return alpha.sigmoid()

    def penalty(self, network: Supernet) -> Tensor:
        return plus(super().penalty(network), self.options.weight * self.zero_one_loss(network))

    def zero_one_loss(self, network: Supernet) -> Tensor:
        """Return L_01, a scalar: 0 if all sigmoids are 0.5, at least -0.25 (l2) or -0.5 (l1)."""
        away = torch.cat([alpha.sigmoid().flatten() for alpha in network.alphas.values()]) - 0.5
        return -(away**2 if self.options.form == "l2" else away.abs()).mean()

    def metrics(self, network: Supernet) -> dict[str, Any]:
        with torch.no_grad():
            loss = float(self.zero_one_loss(network))
        above = sum(int((score >= self.options.threshold).sum()) for score in self.scores(network).values())
        return super().metrics(network) | {"zero_one_loss": loss, "ops_above_threshold": above}
