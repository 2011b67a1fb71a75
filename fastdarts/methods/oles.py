"""OLES: operation-level early stopping (Jiang et al., NeurIPS 2023, arXiv:2305.06409).

An op whose weights begin to overfit is frozen for the rest of the search: from then on its weights get no gradient.
Overfitting shows in the cosine of the op's gradients of the training loss and of the validation loss, averaged over a
window of steps. Each instance of an op, on its edge of its cell, is judged by itself; stem, preprocessing and
classifier never are.

Differences from the authors' code: both gradients are those of one step (theirs compares with the training gradient of
the step before); a window has the number of steps that it says (theirs has one more, at the same divisor); every op
with weights is judged, also reductions in place of skip connections; the cells are those of the last epoch.

The authors' code does not clear the training gradient before it adds that of the validation loss, so that it compares
g_train + g_valid with g_train, which is positive even for gradients that are independent of each other; their threshold
of 0.4 belongs to that score, which `score=released` computes. By the paper's cosine, the default, ops are frozen below
0, where a step down the training loss raises the validation loss.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fastdarts.bilevel.step import SearchStep, TrainPass
from fastdarts.config.search_options import SearchOptions
from fastdarts.methods.method import Method, MethodOptions, Settings, hyper, search_network
from fastdarts.spaces.supernet import Supernet
from fastdarts.tasks.task import Batch


@dataclass(frozen=True, kw_only=True)
class OlesOptions(MethodOptions):
    """Define the hyper-parameters of OLES."""

    score: Literal["paper", "released"] = hyper(
        "cosine of the gradients, or the one that the authors' code computes", "paper"
    )
    window: int = hyper("steps over which the score is averaged", 20, at_least=1)
    threshold: float | None = hyper(
        "freeze ops below this score (default: 0; released: 0.4)", None, at_least=-1, at_most=1
    )


class Oles(Method):
    """Freeze the weights of ops, one after another."""

    Options = OlesOptions
    role = "freezing"
    measures_images = True
    settings: ClassVar[Settings] = {"order": 1}
    keep_weight_gradients = True
    sparse = True  # a frozen weight has no gradient: it is not decayed either

    def __init__(self, config: SearchOptions) -> None:
        super().__init__(config)
        self.frozen: set[int] = set()
        """Numbers of the ops that are frozen, as in `ops_with_weights`."""
        self._sum: Tensor | None = None  # of the scores of the window's steps so far, float64 [ops]
        self._steps = 0

    @classmethod
    def check(cls, config: SearchOptions) -> None:
        super().check(config)
        if config.order == 2:
            raise ValueError("method 'oles' has no second order: it compares gradients at the same weights")

    def threshold(self) -> float:
        """Return the score below which ops are frozen."""
        if self.options.threshold is not None:
            return float(self.options.threshold)
        return 0.4 if self.options.score == "released" else 0.0

    def weight_gradients(self, step: SearchStep, train: Batch) -> TrainPass:
        done = step.train_pass(train)
        places = {id(weight): place for place, weight in enumerate(step.architect.flat.weights)}
        ops = [[places[id(p)] for p in op] for op in ops_with_weights(search_network(step))]
        if self.level_now() == "bilevel":
            self._look(step, done.gradients, ops)
        held = {place for number in self.frozen for place in ops[number]}
        return done._replace(gradients=[None if i in held else g for i, g in enumerate(done.gradients)])

    def _look(self, step: SearchStep, gradients: Sequence[Tensor | None], ops: Sequence[Sequence[int]]) -> None:
        """Add the scores of a step; at the end of a window, freeze ops."""
        architect = step.architect
        weights = architect.flat.weights
        train = architect.ranks.sum(
            [torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients, strict=True)]
        )
        valid = architect.weight_gradients
        if self.options.score == "released":
            scores = released_scores(train, valid, ops, step.grad_clip)
        else:
            scores = paper_scores(train, valid, ops)
        self._sum = scores if self._sum is None else self._sum.to(scores.device) + scores
        self._steps += 1
        if self._steps == self.options.window:
            below = (self._sum / self.options.window < self.threshold()).nonzero().flatten()
            self.frozen |= set(below.tolist())
            self._sum, self._steps = None, 0

    def metrics(self, network: Supernet) -> dict[str, Any]:
        share = len(self.frozen) / len(ops_with_weights(network))
        return super().metrics(network) | {"frozen_ops": len(self.frozen), "frozen_share": share}

    def state_dict(self) -> dict[str, Any]:
        own = {"frozen": sorted(self.frozen), "sum": self._sum, "steps": self._steps}
        return super().state_dict() | own

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.frozen, self._sum, self._steps = set(state["frozen"]), state["sum"], state["steps"]


def ops_with_weights(network: Supernet) -> list[list[torch.nn.Parameter]]:
    """Return the weights of each op of each edge of each cell that has some, in the order of the groups."""
    edges = [edge for group in network.groups for cell in network.mixed_ops(group) for edge in cell]
    found = [list(op.parameters()) for edge in edges for op in edge._ops]
    return [weights for weights in found if weights]


def paper_scores(train: Sequence[Tensor], valid: Sequence[Tensor], ops: Sequence[Sequence[int]]) -> Tensor:
    """Return the cosine [ops] of the gradients of each op, over all its weights; float64.

    Args:
        train, valid: gradients of the two losses for each weight.
        ops: the places of each op's weights in them.
    """
    sums = _of_ops(_per_weight(train, valid, _products), ops)
    return sums[:, 0] / (sums[:, 1] * sums[:, 2]).sqrt().clamp_min(1e-30)


def released_scores(
    train: Sequence[Tensor], valid: Sequence[Tensor], ops: Sequence[Sequence[int]], max_norm: float | None
) -> Tensor:
    """Return the score [ops] of the authors' code; float64.

    For each weight it is the mean, over all but the first dimension (output channels), of the cosine along the first
    dimension of g_train + g_valid and g_train, with g_train clipped; for an op, the mean of its weights.

    Args:
        train, valid, ops: as for `paper_scores`.
        max_norm: the norm to which all of `train` together is clipped.
    """
    norm = torch.stack([g.double().square().sum() for g in train]).sum().sqrt()
    scale = 1.0 if max_norm is None else (max_norm / norm.clamp_min(1e-30)).clamp(max=1)

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        a = a * scale
        return torch.cosine_similarity(a + b, a, dim=1).reshape(len(a), -1).mean(1, keepdim=True)

    counts = torch.tensor([[len(places)] for places in ops]).to(train[0].device)
    return (_of_ops(_per_weight(train, valid, cosine), ops) / counts)[:, 0]


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Return <a, b>, <a, a> and <b, b> [n, 3] of the rows of a and b [n, ...]."""
    a, b = a.flatten(1), b.flatten(1)
    return torch.stack([(a * b).sum(1), a.square().sum(1), b.square().sum(1)], dim=1)


def _per_weight(
    train: Sequence[Tensor], valid: Sequence[Tensor], measure: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Return measure(train, valid) [weights, numbers] in float64, computed for all weights of a shape at once."""
    by_shape: dict[torch.Size, list[int]] = {}
    for place, gradient in enumerate(train):
        by_shape.setdefault(gradient.shape, []).append(place)
    parts = [
        measure(*(torch.stack([gradients[place] for place in places]).double() for gradients in (train, valid)))
        for places in by_shape.values()
    ]
    order = torch.tensor([place for places in by_shape.values() for place in places])
    return torch.cat(parts)[order.argsort().to(train[0].device)]


def _of_ops(values: Tensor, ops: Sequence[Sequence[int]]) -> Tensor:
    """Return the sum [ops, numbers] of the values [weights, numbers] of each op's weights."""
    owners = torch.tensor([number for number, places in enumerate(ops) for _ in places]).to(values.device)
    places = torch.tensor([place for places in ops for place in places]).to(values.device)
    return values.new_zeros(len(ops), values.shape[1]).index_add_(0, owners, values[places])
