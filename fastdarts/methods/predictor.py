"""Predict how an architecture scores, from scores of others (Cai et al., ICLR 2020; Wang et al., CVPR 2020)."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fastdarts.methods.scored import Scored
from fastdarts.spaces.supernet import Supernet

HIDDEN = 400
_STEPS, _RATE, _DECAY = 300, 1e-3, 1e-4


def encoded(network: Supernet, architecture: Any) -> Tensor:
    """Return the choices of all rows as ones among zeros: [sum over groups of rows x ops], float32 on the CPU."""
    mixes = network.mixes_of(architecture)
    parts = [mixes[name].weights[:, : group.shape[1]].flatten() for name, group in network.groups.items()]
    return torch.cat(parts).float().cpu()


def fit(network: Supernet, known: Sequence[Scored], seed: int) -> Callable[[Any], float]:
    """Fit an MLP with three hidden layers of 400 ReLUs to scores, by Adam on all of them at once.

    Args:
        network: the search network of the architectures.
        known: scored architectures.
        seed: of the initial weights.

    Returns: a function from an architecture to its predicted score.
    """
    x = torch.stack([encoded(network, one.architecture) for one in known])
    y = torch.tensor([one.score for one in known])
    base, scale = y.mean(), y.std(correction=0).clamp_min(1e-6)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        sizes = (x.shape[1], HIDDEN, HIDDEN, HIDDEN)
        hidden = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
        model = nn.Sequential(*hidden, nn.Linear(HIDDEN, 1)).to(torch.float32)
    minimise(model, lambda: (model(x)[:, 0] - (y - base) / scale).square().mean())

    @torch.no_grad()
    def predicted(architecture: Any) -> float:
        return float(base + scale * model(encoded(network, architecture)))

    return predicted


def minimise(model: nn.Module, loss: Callable[[], Tensor]) -> None:
    """Take the steps of a predictor's fitting."""
    optimizer = torch.optim.AdamW(model.parameters(), _RATE, weight_decay=_DECAY)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
