"""DARTS' bilevel step as the paper has it: one parameter at a time, other weights than the model's in a copy of it."""

import copy

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fastdarts.spaces.darts.supernet import SearchNetwork

Batch = tuple[Tensor, Tensor]


def loss_of(model: torch.nn.Module, batch: Batch) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1])


def plain_alpha_gradients(
    network: torch.nn.Module,
    train: Batch,
    valid: Batch,
    xi: float,
    momentum_buffers: list[Tensor] | None,
    *,
    momentum: float = 0.9,
    weight_decay: float = 3e-4,
    r: float = 0.01,
) -> list[Tensor]:
    """Second order (equations 7 and 8); `momentum_buffers` in the parameters' order, None before the first step."""
    weights = list(network.parameters())
    buffers = momentum_buffers or [torch.zeros_like(w) for w in weights]
    other = copy.deepcopy(network)
    gradients = torch.autograd.grad(loss_of(other, train), list(other.parameters()))
    with torch.no_grad():
        for w, g, buffer, original in zip(other.parameters(), gradients, buffers, weights, strict=True):
            w -= xi * (momentum * buffer + g + weight_decay * original)
    alphas = other.arch_parameters()
    both = torch.autograd.grad(loss_of(other, valid), [*alphas, *other.parameters()])
    direct, v = both[: len(alphas)], both[len(alphas) :]
    epsilon = r / sum(float((t.double() ** 2).sum()) for t in v) ** 0.5
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for w, original, direction in zip(other.parameters(), weights, v, strict=True):
                w.copy_(original + sign * epsilon * direction)
        ends.append(torch.autograd.grad(loss_of(other, train), alphas))
    return [a - xi * (p - m) / (2 * epsilon) for a, p, m in zip(direct, *ends, strict=True)]


class PlainSearch:
    """Alpha step with Adam, then clipped SGD with momentum, written out."""

    def __init__(self, network: SearchNetwork, lr: float, arch_lr: float, order: int = 2) -> None:
        self.network, self.lr, self.order = network, lr, order
        self.adam = torch.optim.Adam(network.arch_parameters(), arch_lr, (0.5, 0.999), weight_decay=1e-3, foreach=False)
        self.buffers: list[Tensor] | None = None

    def step(
        self, train: Batch, valid: Batch, momentum: float = 0.9, weight_decay: float = 3e-4, clip: float = 5.0
    ) -> None:
        alphas = self.network.arch_parameters()
        if self.order == 2:
            gradients = plain_alpha_gradients(self.network, train, valid, self.lr, self.buffers)
        else:
            twin = copy.deepcopy(self.network)
            gradients = list(torch.autograd.grad(loss_of(twin, valid), twin.arch_parameters()))
        for alpha, gradient in zip(alphas, gradients, strict=True):
            alpha.grad = gradient
        self.adam.step()
        self.adam.zero_grad()
        weights = list(self.network.parameters())
        w_gradients = torch.autograd.grad(loss_of(self.network, train), weights)
        norm = sum(float((g.double() ** 2).sum()) for g in w_gradients) ** 0.5
        factor = min(1.0, clip / (norm + 1e-6))
        with torch.no_grad():
            moved = [factor * g + weight_decay * w for g, w in zip(w_gradients, weights, strict=True)]
            if self.buffers is not None:
                moved = [momentum * buffer + d for buffer, d in zip(self.buffers, moved, strict=True)]
            self.buffers = moved
            for w, d in zip(weights, moved, strict=True):
                w -= self.lr * d
