"""DAAS: discretisation-aware architecture search (Tian et al., Pattern Recognition 2021, arXiv:2007.03154).

Edge weights beta join the op weights, and two entropies, of the op weights and of the edge weights, enter the alpha
step with a weight that grows, so that little is lost when edges and ops are cut: the report's discretisation error.

Of the authors' code it differs so: beta_normal weighs the normal cell's edges (there, the reduction cell's, while the
derivation takes them for the normal one's); entropies are made from log-softmax (theirs is NaN for alpha = -3);
`none` is no op of a derived cell; the weight step goes without the entropies, in which the weights do not occur.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from fastdarts.methods.method import Method, MethodOptions, Settings, hyper
from fastdarts.spaces.darts.edges import groups, in_degrees, softmax_by_node
from fastdarts.spaces.darts.genotype import Genotype
from fastdarts.spaces.darts.supernet import Mix, SearchNetwork

NAMES = ("betas_normal", "betas_reduce")


@dataclass(frozen=True, kw_only=True)
class DaasOptions(MethodOptions):
    """Defaults are the authors'."""

    weight: float = hyper("lambda_0, of both entropies", 0.1, at_least=0)
    edge_weight: float = hyper("of the edges' entropy, relative to that of the ops", 4.0, at_least=0)
    kept_weight: float = hyper("of (sum of positive betas - 2)^2 in a node's entropy", 0.2, at_least=0)
    schedule: Literal["log", "linear", "exp", "sigmoid", "steps", "const"] = hyper(
        "how the weight of the ops' entropy grows", "log"
    )
    delay: float = hyper(
        "share of the epochs before it grows and alphas move; betas move at once", 0.16, at_least=0, below=1
    )


class Daas(Method):
    """Softmax of phi(alpha) times edge weights, entropies in the alpha step, derivation by beta."""

    Options = DaasOptions
    options: DaasOptions
    settings: ClassVar[Settings] = {"order": 1}
    competes = False
    varies = True

    def attach(self, network: SearchNetwork) -> None:
        super().attach(network)
        start = (
            2 / in_degrees(network.steps, network.alphas_normal.detach())[2:]
        )  # the first node keeps both of its edges, without betas
        for alpha, name in zip(network.alphas, NAMES, strict=True):
            alpha.data *= 0.1
            network.extra_alphas[name] = (start + 1e-4 * torch.randn(start.shape)).requires_grad_()

    def arch_optimizer(self, network: SearchNetwork) -> Optimizer:
        return self.adam(network.alphas, [network.extra_alphas[name] for name in NAMES])

    def arch_learning_rates(self) -> Sequence[float]:
        """While alphas wait, Adam's moments already follow their gradients."""
        rate = self.config.arch_lr
        return [rate if self.epoch + 1 >= self._start() else 0.0, rate]

    def _start(self) -> int:
        """The epoch E, from 1, at which alphas begin to move."""
        return max(1, round(self.options.delay * self.config.epochs))

    def growth(self) -> tuple[float, float]:
        """lambda_c and lambda_alpha of this epoch."""
        epoch, epochs, start = self.epoch + 1, self.config.epochs, self._start()
        common = (epoch - 1) / max(epochs - 1, 1)
        if epoch < start or epochs == start:
            return common, 0.0
        x = (epoch - start) / (epochs - start)  # constants below are the authors' for 50 epochs and a start at 8
        match self.options.schedule:
            case "log":
                value = math.log(epoch - start + 1) / math.log(max(epochs - start, 2))
            case "linear":
                value = x
            case "exp":
                value = 2 ** (8.4 * (x - 1))
            case "sigmoid":
                value = 1 / (1 + math.exp(-(10.5 * x - 5.25)))
            case "steps":
                value = min(int(4 * x), 3) / 3
            case "const":
                value = float(epoch > start)
        return common, value

    def relax(self, network: SearchNetwork, cell: int, alpha: Tensor) -> Mix:
        share, factor = phi(alpha).softmax(dim=-1), self._factor(network, cell)
        return Mix(share * factor[:, None])

    def _factor(self, network: SearchNetwork, cell: int) -> Tensor:
        """[edges]: 1 for the first node's; n * softmax of psi(beta) for those of a node with n."""
        weights = self._edge_weights(network, cell)
        factor = weights * in_degrees(network.steps, weights)
        return torch.cat([torch.ones_like(factor[:2]), factor[2:]])

    def _edge_weights(self, network: SearchNetwork, cell: int) -> Tensor:
        beta = network.extra_alphas[NAMES[cell]]
        return softmax_by_node(torch.cat([torch.ones_like(beta[:2]), beta.clamp(max=1)]), network.steps)

    def penalty(self, network: SearchNetwork) -> Tensor:
        options, (common, of_ops) = self.options, self.growth()
        ops, edges = self.entropies(network)
        return options.weight * common * (of_ops * ops + options.edge_weight * edges)

    def entropies(self, network: SearchNetwork) -> tuple[Tensor, Tensor]:
        """L_O and L_E, summed over both cell types."""
        ops = torch.stack([entropy(phi(alpha)) for alpha in network.alphas]).sum()
        edges = []
        for name in NAMES:
            beta = network.extra_alphas[name]
            for rows in groups(network.steps)[1:]:
                psi = beta[rows.start - 2 : rows.stop - 2].clamp(max=1)
                edges.append(entropy(psi) + self.options.kept_weight * (psi.clamp(min=0).sum() - 2) ** 2)
        return ops, torch.stack(edges).sum()

    def strength(self, network: SearchNetwork, cell: int, alpha: Tensor) -> Tensor:
        return phi(alpha.double()).softmax(dim=-1)  # what loses much still differs

    @torch.no_grad()
    def edge_weights(self, network: SearchNetwork) -> list[Tensor]:
        return [self._edge_weights(network, cell).cpu() for cell in (0, 1)]

    def derive(self, network: SearchNetwork, scores: Sequence[Tensor]) -> Genotype:
        """Each node keeps the two edges of largest beta, each edge its strongest op but `none`."""
        ranked = []
        for cell, score in enumerate(scores):
            beta = network.extra_alphas[NAMES[cell]].detach().cpu()
            place = torch.cat([beta.new_ones(2), beta]).argsort(stable=True).argsort()
            rank = score.argsort(descending=True, stable=True).argsort()  # within the edge; the strongest has 0
            ranked.append(place[:, None] - rank / rank.shape[1])
        return network.derive(ranked)

    def metrics(self, network: SearchNetwork) -> dict[str, Any]:
        with torch.no_grad():
            ops, edges = self.entropies(network)
        common, of_ops = self.growth()
        betas = {name: network.extra_alphas[name].tolist() for name in NAMES}
        entropies = {"entropy_ops": float(ops), "entropy_edges": float(edges)}
        return super().metrics(network) | entropies | {"weight_ops": common * of_ops, "weight_edges": common} | betas


def phi(alpha: Tensor) -> Tensor:
    """u = 2 alpha, u^3 below -1: losers lose more."""
    u = 2 * alpha
    return torch.where(u >= -1, u, u**3)


def entropy(logits: Tensor) -> Tensor:
    """Of the softmax over the last axis, summed over the others; finite for any finite logits."""
    log_p = logits.log_softmax(dim=-1)
    return -(log_p.exp() * log_p).sum()
