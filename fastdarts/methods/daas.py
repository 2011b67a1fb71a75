"""DAAS: discretisation-aware architecture search (Tian et al., Pattern Recognition 2021, arXiv:2007.03154).

Edges have weights beta besides the op weights. The alpha step adds the entropies of op weights and edge weights to the
loss, with a factor that grows, so that cutting edges and ops loses little (the report's discretisation error).

Differences from the authors' code: beta_normal weights the edges of the normal cell (theirs weights the reduction
cell's, although their derivation uses it for the normal cell); entropies are computed with log-softmax (theirs are NaN
for alpha = -3); a derived cell never contains `none`; the weight step omits the entropies, which do not depend on the
weights.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from fastdarts.methods.edges import first_edges, in_degrees, softmax_by_node
from fastdarts.methods.method import Method, MethodOptions, Settings, hyper
from fastdarts.mixed.mix import Mix
from fastdarts.spaces.space import Feature
from fastdarts.spaces.supernet import Supernet


def beta_name(group: str) -> str:
    """Return the name of a group's edge weights among the extra alphas."""
    return f"betas_{group}"


@dataclass(frozen=True, kw_only=True)
class DaasOptions(MethodOptions):
    """Define the hyper-parameters of DAAS; defaults are the authors'."""

    weight: float = hyper("lambda_0: factor of both entropies in the loss", 0.1, at_least=0)
    edge_weight: float = hyper("factor of the edges' entropy, relative to that of the ops", 4.0, at_least=0)
    kept_weight: float = hyper("factor of (sum of positive betas - 2)^2 in a node's entropy", 0.2, at_least=0)
    schedule: Literal["log", "linear", "exp", "sigmoid", "steps", "const"] = hyper(
        "how the factor of the ops' entropy grows", "log"
    )
    delay: float = hyper(
        "share of the epochs before it grows and alphas are trained; betas always are", 0.16, at_least=0, below=1
    )


class Daas(Method):
    """Weight ops by softmax(phi(alpha)) times edge weights, penalise entropies, derive cells by beta."""

    Options = DaasOptions
    options: DaasOptions
    settings: ClassVar[Settings] = {"order": 1}
    competes = False
    varies = True
    needs: ClassVar[frozenset[Feature]] = frozenset({"edges"})

    def attach(self, network: Supernet) -> None:
        super().attach(network)
        for group, alpha in network.alphas.items():
            # The first node keeps all of its edges, so they have no betas.
            start = 2 / in_degrees(network.groups[group], alpha.detach())[first_edges(network.groups[group]) :]
            alpha.data *= 0.1
            network.extra_alphas[beta_name(group)] = (start + 1e-4 * torch.randn(start.shape)).requires_grad_()

    def arch_optimizer(self, network: Supernet) -> Optimizer:
        return self.adam(list(network.alphas.values()), list(network.extra_alphas.values()))

    def arch_learning_rates(self) -> Sequence[float]:
        """Return the rates of alphas and betas; delayed alphas have rate 0, but Adam updates their moments."""
        rate = self.config.arch_lr
        return [rate if self.epoch + 1 >= self._start() else 0.0, rate]

    def _start(self) -> int:
        """Return the first epoch, counted from 1, in which alphas are trained."""
        return max(1, round(self.options.delay * self.config.epochs))

    def growth(self) -> tuple[float, float]:
        """Return lambda_c and lambda_alpha of this epoch."""
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

    def relax(self, network: Supernet, group: str, alpha: Tensor) -> Mix:
        share, factor = phi(alpha).softmax(dim=-1), self._factor(network, group)
        return Mix(share * factor[:, None])

    def _factor(self, network: Supernet, name: str) -> Tensor:
        """Return [edges]: 1 for edges into the first node; n * softmax(psi(beta)) for the n edges into another node."""
        group, weights = network.groups[name], self._edge_weights(network, name)
        factor, first = weights * in_degrees(group, weights), first_edges(group)
        return torch.cat([torch.ones_like(factor[:first]), factor[first:]])

    def _edge_weights(self, network: Supernet, name: str) -> Tensor:
        group, beta = network.groups[name], network.extra_alphas[beta_name(name)]
        return softmax_by_node(torch.cat([beta.new_ones(first_edges(group)), beta.clamp(max=1)]), group)

    def penalty(self, network: Supernet) -> Tensor:
        options, (common, of_ops) = self.options, self.growth()
        ops, edges = self.entropies(network)
        return options.weight * common * (of_ops * ops + options.edge_weight * edges)

    def entropies(self, network: Supernet) -> tuple[Tensor, Tensor]:
        """Return L_O and L_E, summed over all groups."""
        ops = torch.stack([entropy(phi(alpha)) for alpha in network.alphas.values()]).sum()
        edges = []
        for name, group in network.groups.items():
            beta, first = network.extra_alphas[beta_name(name)], first_edges(group)
            for rows in group.entering()[1:]:
                psi = beta[rows.start - first : rows.stop - first].clamp(max=1)
                edges.append(entropy(psi) + self.options.kept_weight * (psi.clamp(min=0).sum() - 2) ** 2)
        return ops, torch.stack(edges).sum()

    def strength(self, network: Supernet, group: str, alpha: Tensor) -> Tensor:
        return phi(alpha.double()).softmax(dim=-1)  # float64 keeps very weak ops apart

    @torch.no_grad()
    def edge_weights(self, network: Supernet) -> dict[str, Tensor]:
        return {group: self._edge_weights(network, group).cpu() for group in network.groups}

    def ranking(self, network: Supernet, group: str, score: Tensor) -> Tensor:
        """Rank edges by beta and the ops of an edge by score, so that a node keeps the edges of largest beta."""
        beta = network.extra_alphas[beta_name(group)].detach().cpu()
        first = first_edges(network.groups[group])
        place = torch.cat([beta.new_ones(first), beta]).argsort(stable=True).argsort()
        rank = score.argsort(descending=True, stable=True).argsort()  # within the edge; the strongest op has rank 0
        return place[:, None] - rank / rank.shape[1]

    def metrics(self, network: Supernet) -> dict[str, Any]:
        with torch.no_grad():
            ops, edges = self.entropies(network)
        common, of_ops = self.growth()
        betas = {name: beta.tolist() for name, beta in network.extra_alphas.items()}
        entropies = {"entropy_ops": float(ops), "entropy_edges": float(edges)}
        return super().metrics(network) | entropies | {"weight_ops": common * of_ops, "weight_edges": common} | betas


def phi(alpha: Tensor) -> Tensor:
    """Return u = 2 alpha, and u^3 where u < -1, which lowers weak ops further."""
    u = 2 * alpha
    return torch.where(u >= -1, u, u**3)


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of softmax(logits) over the last axis, summed over the others; finite for finite logits."""
    log_p = logits.log_softmax(dim=-1)
    return -(log_p.exp() * log_p).sum()
