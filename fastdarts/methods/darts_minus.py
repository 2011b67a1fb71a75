"""DARTS-: an auxiliary skip connection (Chu et al., ICLR 2021, arXiv:2009.01027).

Every edge has an auxiliary skip connection, whose weight is not an architecture parameter and decays to 0. It acts as
a residual connection, so that the candidate skip is judged only as an operation.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from fastdarts.methods.method import Method, MethodOptions, Settings, hyper
from fastdarts.mixed.mix import Mix
from fastdarts.spaces.space import Feature
from fastdarts.spaces.supernet import Supernet


@dataclass(frozen=True, kw_only=True)
class DartsMinusOptions(MethodOptions):
    """Define the hyper-parameters of DARTS-; defaults are the authors'."""

    factor: float = hyper("weight of the auxiliary skip in the first epoch", 1.0, at_least=0)
    decay: Literal["linear", "cosine", "slow-cosine", "none"] = hyper("how this weight decays to 0", "linear")
    start: float = hyper("share of the epochs after which this weight begins to decay", 0.0, at_least=0, below=1)
    stop: float = hyper("share of the epochs after which this weight stays constant", 1.0, above=0, at_most=1)


class DartsMinus(Method):
    """Weight ops by the softmax of alpha and add the auxiliary skip."""

    Options = DartsMinusOptions
    role = "auxiliary skip"
    settings: ClassVar[Settings] = {"order": 1}
    varies = True
    needs: ClassVar[frozenset[Feature]] = frozenset({"auxiliary ops"})

    def network_arguments(self) -> dict[str, Any]:
        return super().network_arguments() | {"auxiliary": ("skip_connect",)}

    def factor(self) -> float:
        """Return beta, the auxiliary skip's weight in this epoch; it would reach 0 in the epoch after the last."""
        options, epochs = self.options, self.config.epochs
        start, stop = round(options.start * epochs), round(options.stop * epochs)
        done = (min(max(self.epoch, start), stop) - start) / (epochs - start)
        match options.decay:
            case "linear":
                share = 1 - done
            case "cosine":
                share = (1 + math.cos(math.pi * done)) / 2
            case "slow-cosine":
                share = math.cos(math.pi * done / 2)
            case "none":
                share = 1.0
        return float(options.factor * share)

    def connect(self, network: Supernet, group: str, mix: Mix) -> Mix:
        share, mix = mix.weights, super().connect(network, group, mix)
        rows, columns = share.shape
        weights = torch.cat([mix.weights, share.new_full((rows, 1), self.factor())], dim=1)
        active = None if mix.active is None else [[*row, columns] if row else [] for row in mix.active]
        return mix._replace(weights=weights, active=active)

    def metrics(self, network: Supernet) -> dict[str, Any]:
        return super().metrics(network) | {"auxiliary_skip": self.factor()}
