"""DrNAS with its progressive search (Chen et al., ICLR 2021, arXiv:2006.10355, section 3.3).

The search has two stages. In the first, 1/6 of the channels goes through all ops; then every edge keeps its four
strongest ops, and 1/4 of the channels goes through them. The network of the second stage begins with the weights and
the momentum of the first, widened (see `widening`). In this way a search fits the size at which found networks are
trained. Alphas wait in the first epochs of each stage.

Differences from the authors' code: those of `drnas`; pruned ops do not run.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastdarts.config.search_options import SearchOptions
from fastdarts.methods.drnas import Drnas, DrnasOptions
from fastdarts.methods.method import Settings, check_warmup, hyper
from fastdarts.methods.running import RunningSearch
from fastdarts.mixed.mix import Mix
from fastdarts.spaces.space import Feature
from fastdarts.spaces.supernet import Supernet


@dataclass(frozen=True, kw_only=True)
class DrnasProgressiveOptions(DrnasOptions):
    """Define the hyper-parameters of the progressive search; defaults are the authors' for CIFAR-10."""

    k: tuple[int, int] = hyper("K of each stage: 1/K of the channels go through the ops", (6, 4), at_least=1)
    left: int = hyper("ops that every edge keeps after the first stage", 4, at_least=1)


class DrnasProgressive(Drnas):
    """Search with more channels and fewer ops in the second half of the epochs."""

    Options = DrnasProgressiveOptions
    role = None
    settings: ClassVar[Settings] = {"order": 1, "alpha_warmup": 0.4, "init_channels": 12}
    published: ClassVar[Settings] = {**Drnas.published, "init_channels": 36, "layers": 20}
    needs: ClassVar[frozenset[Feature]] = frozenset({"partial channels"})
    sparse = True
    keeps_weights = True

    @classmethod
    def check(cls, config: SearchOptions) -> None:
        super().check(config)
        k, left = config.method_options["k"], config.method_options["left"]
        for value in k:
            if config.init_channels % value:
                got = config.init_channels
                raise ValueError(f"init_channels must be a multiple of the method's k = {k[0]} and {k[1]}; got {got}")
        if k[1] > k[0]:
            raise ValueError(f"k must not grow, since ops see more channels in the second stage; got {k[0]}, {k[1]}")
        ops = min(group.shape[1] for group in cls.space_of(config).groups.values())
        if left > ops:
            raise ValueError(f"left must be at most {ops}, the ops on an edge of space {config.space!r}; got {left}")
        if config.epochs < 2:
            raise ValueError(f"epochs must be at least 2, one for each stage; got {config.epochs}")
        if config.prune_below:
            raise ValueError("prune_below cannot be used: the stages already remove weak ops")
        check_warmup(config, config.epochs // 2, "epochs of a stage")

    def first_of_stage(self) -> int:
        """Return the first epoch of the present stage."""
        half = (self.config.epochs + 1) // 2
        return half if self.epoch >= half else 0

    def stage(self) -> int:
        return int(self.first_of_stage() > 0)

    def alphas_move(self) -> bool:
        length = self.config.epochs / 2
        return self.epoch - self.first_of_stage() >= round(self.config.alpha_warmup * length)

    def network_arguments(self) -> dict[str, Any]:
        return super().network_arguments() | {"K": self.options.k[self.stage()]}

    def connect(self, network: Supernet, group: str, mix: Mix) -> Mix:
        partial = self.options.k[self.stage()] > 1
        return mix._replace(passing=mix.weights.new_ones(len(mix.weights))) if partial else mix

    def discrete(self, network: Supernet, architecture: Any) -> dict[str, Mix]:
        """Return the op weights of an architecture; the edges it keeps pass their other channels on."""
        mixes = super().discrete(network, architecture)
        if self.options.k[self.stage()] == 1:
            return mixes
        return {name: mix._replace(passing=(mix.weights > 0).any(1).to(mix.weights)) for name, mix in mixes.items()}

    def end_epoch(self, state: RunningSearch, metrics: dict[str, Any]) -> None:
        super().end_epoch(state, metrics)
        if self.epoch + 1 != (self.config.epochs + 1) // 2:
            return
        self.kept = {name: strongest(score, self.options.left) for name, score in self.scores(state.network).items()}

    def metrics(self, network: Supernet) -> dict[str, Any]:
        return super().metrics(network) | {"stage": self.stage() + 1}


def strongest(score: Tensor, count: int) -> Tensor:
    """Return True for the `count` largest scores of each row [rows, ops], and False for the others."""
    return torch.zeros(score.shape, dtype=torch.bool).scatter(1, score.topk(count, dim=1).indices, True)
