"""ReinMax: one sampled op an edge, with a gradient of second order (Liu et al., NeurIPS 2023, arXiv:2304.08612).

Each pass draws one op for every edge from the softmax of its alphas. The straight-through gradient takes a loss for
linear in the sample; ReinMax's is exact in expectation for a quadratic one, as of Heun's method instead of Euler's.

An alpha step runs all ops, because their gradient is needed; a weight step runs the drawn ops alone. In eval mode the
search network runs each edge's most likely op.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastdarts.bilevel.step import SearchStep
from fastdarts.methods import gumbel
from fastdarts.methods.method import Method, MethodOptions, Settings, hyper
from fastdarts.mixed.mix import Mix
from fastdarts.spaces.supernet import Supernet
from fastdarts.tasks.task import Batch


@dataclass(frozen=True, kw_only=True)
class ReinMaxOptions(MethodOptions):
    """Define the hyper-parameter of ReinMax; the authors take 1 to 2, and only 1 is exact for a quadratic loss."""

    tau: float = hyper("temperature of the gradient", 1.0, at_least=1)


class ReinMax(Method):
    """Draw one op an edge and train the alphas by ReinMax's gradient."""

    Options = ReinMaxOptions
    role = "relaxation"
    runs_one_op = True
    settings: ClassVar[Settings] = {"order": 1}
    draws = True
    sparse = True
    capturable = False  # the host decides which ops run
    _drawn_alone = False

    @contextmanager
    def weight_pass(self, step: SearchStep, train: Batch) -> Iterator[None]:
        """Inside, only the drawn ops run: without alphas to train, the others would change nothing but statistics."""
        self._drawn_alone = True
        try:
            yield
        finally:
            self._drawn_alone = False

    def relax(self, network: Supernet, group: str, alpha: Tensor) -> Mix:
        if not network.training:
            chosen = alpha.argmax(1)
        else:
            chosen = gumbel.sample(alpha.detach(), lambda: 1.0, self.generator).argmax(1)
        weights = Sample.apply(alpha, chosen, self.options.tau)
        if network.training and not self._drawn_alone:
            return Mix(weights)
        return Mix(weights, [[column] for column in chosen.tolist()])


class Sample(torch.autograd.Function):
    """Return 1 for the drawn column of each row and 0 elsewhere, with ReinMax's gradient (algorithm 2)."""

    @staticmethod
    def forward(ctx: Any, alpha: Tensor, chosen: Tensor, tau: float) -> Tensor:
        """Return the one-hot rows [rows, ops].

        Args:
            alpha: [rows, ops].
            chosen: [rows], drawn from the softmax of alpha.
            tau: temperature.
        """
        drawn = torch.zeros_like(alpha).scatter(1, chosen[:, None], 1.0)
        ctx.save_for_backward(alpha, drawn)
        ctx.tau = tau
        return drawn

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        alpha, drawn = ctx.saved_tensors
        p = alpha.softmax(1)
        middle = ((alpha / ctx.tau).softmax(1) + drawn) / 2
        return 2 * _through_softmax(middle, gradient) - _through_softmax(p, gradient) / 2, None, None


def _through_softmax(p: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient of a softmax's inputs, given its outputs p and their gradient, both [rows, ops]."""
    return p * (gradient - (p * gradient).sum(1, keepdim=True))
