"""Lambda-DARTS: layers that agree (Movahedi et al., ICLR 2023, arXiv:2210.07998).

In DARTS the cells of a type share op weights, and the cells near the output decide them alone. The weights therefore
learn under a regulariser that raises Lambda, the mean cosine between the gradients of the training loss in the op
weights of each two cells. Its gradient in the weights is a finite difference along d = dLambda / d gradients: two more
passes over the batch of the weight step, with op weights that differ from cell to cell.

Differences from the authors' code: the cells that are compared are those of the type that has most (the normal cells
of a network of five cells and more); the two further passes do not move the running statistics of batch norm; where all
cells agree, and the direction is 0, nothing is added.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fastdarts.bilevel.architect import frozen_buffers
from fastdarts.bilevel.step import SearchStep, TrainPass
from fastdarts.methods.method import Method, MethodOptions, Settings, hyper, search_network
from fastdarts.spaces.space import Feature
from fastdarts.spaces.supernet import Mixes, Supernet
from fastdarts.tasks.task import Batch


@dataclass(frozen=True, kw_only=True)
class LambdaDartsOptions(MethodOptions):
    """Define the hyper-parameters of Lambda-DARTS; defaults are those of the authors' scripts for DARTS' space."""

    strength: float = hyper("weight of the regulariser in the last epoch; it grows linearly from 0", 0.25, at_least=0)
    eps: float = hyper("length of the finite difference in the op weights", 1e-3, above=0)
    form: Literal["cosine", "sign"] = hyper(
        "gradient of the mean cosine, or the authors' form of it by signs of the gradients", "cosine"
    )


class LambdaDarts(Method):
    """Add a regulariser to the gradient of the weights."""

    Options = LambdaDartsOptions
    role = "regulariser"
    settings: ClassVar[Settings] = {"order": 1}
    published: ClassVar[Settings] = {"batch_size": 96}
    needs: ClassVar[frozenset[Feature]] = frozenset({"weights by cell"})
    varies = True

    def attach(self, network: Supernet) -> None:
        super().attach(network)
        if len(network.mixed_ops(aligned_group(network))) < 2:
            raise ValueError(
                "method 'lambda-darts' compares cells of a type, and the network has one at most; raise layers to 3"
            )

    def strength_now(self) -> float:
        """Return lambda of this epoch."""
        return float(self.options.strength * self.epoch / max(self.config.epochs - 1, 1))

    def weight_gradients(self, step: SearchStep, train: Batch) -> TrainPass:
        weight = self.strength_now()
        if weight == 0:
            return step.train_pass(train)
        network = search_network(step)
        with torch.no_grad():
            mixes = network.op_weights()
        group = aligned_group(network)
        shared = mixes[group].weights
        leaves = [shared.clone().requires_grad_() for _ in network.mixed_ops(group)]
        with network.mixing(by_cell(mixes, group, leaves)):
            done = step.train_pass(train, leaves)
        count = len(leaves)
        of_cells = [g if g is not None else torch.zeros_like(shared) for g in done.gradients[-count:]]
        of_cells = step.architect.ranks.sum(of_cells)
        gradients = done.gradients[:-count]
        direction = DIRECTIONS[self.options.form](torch.stack([g.flatten() for g in of_cells]).double())
        length = direction.norm()
        eps = self.options.eps / length.clamp_min(1e-30)
        moves = (eps * direction).to(shared).view(count, *shared.shape)
        ends = []
        with frozen_buffers(network):
            for sign in (-1, 1):
                with network.mixing(by_cell(mixes, group, [shared + sign * move for move in moves])):
                    ends.append(step.train_pass(train).gradients)
        factor = torch.where(length > 0, weight / (2 * eps), 0.0)
        return done._replace(gradients=[_plus(g, factor, *pair) for g, *pair in zip(gradients, *ends, strict=True)])

    def metrics(self, network: Supernet) -> dict[str, Any]:
        return super().metrics(network) | {"lambda": self.strength_now()}


def aligned_group(network: Supernet) -> str:
    """Return the name of the group that most cells belong to; of equal ones the first."""
    return max(network.groups, key=lambda group: len(network.mixed_ops(group)))


def by_cell(mixes: Mixes, group: str, weights: Sequence[Tensor]) -> Mixes:
    """Return the mixes with op weights of its own for each cell of a group."""
    return mixes | {group: mixes[group]._replace(by_cell=weights)}


def mean_cosine(g: Tensor) -> Tensor:
    """Return Lambda: the mean cosine between each two rows of g [cells, n]."""
    u = torch.nn.functional.normalize(g, dim=1)
    count = len(g)
    return (u.sum(0).square().sum() - u.square().sum()) / (count * (count - 1))


def cosine_direction(g: Tensor) -> Tensor:
    """Return the gradient of `mean_cosine` in g [cells, n]."""
    norms = g.norm(dim=1, keepdim=True).clamp_min(1e-30)
    u = g / norms
    others = u.sum(0) - u
    along = (u * others).sum(1, keepdim=True)
    return (others - along * u) / norms / _pairs(g)


def sign_direction(g: Tensor) -> Tensor:
    """Return the authors' direction by signs [cells, n], for g [cells, n]."""
    norms = g.norm(dim=1).clamp_min(1e-30)
    products = norms[:, None] * norms
    cosines, signs = (g @ g.T) / products, g.sign()
    # sum over m != l of (1 - cos_lm sign_l sign_m) g_m / (|g_l| |g_m|)
    weights = (1 / products).fill_diagonal_(0)
    return (weights @ g - signs * ((weights * cosines) @ (signs * g))) / _pairs(g)


def _pairs(g: Tensor) -> float:
    return len(g) * (len(g) - 1) / 2


DIRECTIONS = {"cosine": cosine_direction, "sign": sign_direction}


def _plus(g: Tensor | None, factor: Tensor, below: Tensor | None, above: Tensor | None) -> Tensor | None:
    """Return g + factor (below - above); None for a weight that no pass uses."""
    if g is None or below is None or above is None:
        return g
    return g + factor.to(g) * (below - above)
