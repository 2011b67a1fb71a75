"""REINFORCE: move alphas by rewards of sampled networks, without a gradient through them (Cai et al., ICLR 2019).

The gradient of the mean reward is E[(R - b) d log p / d alpha]; a baseline b that does not depend on the sample leaves
it as it is and lowers its variance.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastdarts.bilevel.architect import Architect, frozen_buffers
from fastdarts.data.share import SharedBatch
from fastdarts.mixed.mix import Mix
from fastdarts.spaces.supernet import Mixes, Supernet
from fastdarts.tasks.task import Batch


class Measured(NamedTuple):
    """Hold the reward of a network on a batch, and its loss as a scalar on the device."""

    reward: float
    loss: Tensor


@torch.no_grad()
def measured(architect: Architect, batch: Batch, mixes: Mixes) -> Measured:
    """Measure one network: reward is its accuracy, or exp(-loss) where targets are not classes.

    Batch norms use the batch; their running statistics stay as they are.

    Args:
        architect: holds the search network, in train mode, and the task.
        batch: of all ranks the same.
        mixes: op weights of the network.
    """
    network, ranks = architect.network, architect.ranks
    assert isinstance(network, Supernet)
    with frozen_buffers(network), network.mixing(mixes):
        loss, outputs = architect.forward(batch)
    correct, whole = ranks.sum([architect.task.correct(outputs, batch).to(loss), ranks.part(loss)])
    size = batch.share.total if isinstance(batch, SharedBatch) else len(batch[0])
    accuracy = float(correct) / size
    return Measured(math.exp(-float(whole)) if math.isnan(accuracy) else accuracy, loss)


@torch.no_grad()
def policy_gradients(
    network: Supernet,
    samples: Sequence[Mixes],
    advantages: Sequence[float],
    temperature: float = 1.0,
    entropy: float = 0.0,
) -> list[Tensor]:
    """Return the gradients that descend towards higher rewards, one tensor for each of the network's alphas.

    With p = softmax(alpha / T) and one-hot samples h they are the mean of (R - b) (p - h) / T, and
    w p (log p + H(p)) / T for a weight w of the rows' entropies H.

    Args:
        network: holds the alphas; further architecture parameters get zeros.
        samples: one-hot op weights of each network.
        advantages: R - b of each.
        temperature: T.
        entropy: w.
    """
    gradients = []
    for name, alpha in network.alphas.items():
        log_p = (alpha / temperature).log_softmax(dim=-1)
        shares = log_p.exp()
        terms = [
            advantage * (shares - mixes[name].weights.to(shares))
            for mixes, advantage in zip(samples, advantages, strict=True)
        ]
        rows = -(shares * log_p).sum(1, keepdim=True)
        gradients.append((torch.stack(terms).mean(0) + entropy * shares * (log_p + rows)) / temperature)
    return [*gradients, *map(torch.zeros_like, network.extra_alphas.values())]


def draw(shares: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` different columns for each row of shares [rows, ops] -> [rows, count]; `generator` is on the CPU."""
    least = math.ulp(0.0)  # a masked op keeps the rest of a row drawable
    return shares.double().cpu().clamp_min(least).multinomial(count, generator=generator).to(shares.device)


def gates(chosen: Tensor, like: Tensor) -> Mix:
    """Return one-hot op weights in the shape and kind of `like` [rows, ops], given the columns `chosen` [rows]."""
    weights = torch.zeros_like(like).scatter(1, chosen[:, None], 1.0)
    return Mix(weights, [[column] for column in chosen.tolist()])
