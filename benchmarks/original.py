"""Run the search step as the original code does: loops over parameters, a copy of the model for the virtual weights.

It is the baseline, so nothing here is slower than necessary: the copy is a `deepcopy` instead of a new model into which
the weights are loaded.
"""

import copy
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

Batch = tuple[Tensor, Tensor]


class OriginalSearch:
    """Run the steps of a network with `arch_parameters()`.

    Args:
        network: any search network.
        lr: learning rate of the weights' SGD, and xi of the virtual step.
        amp: autocast the network's passes to bfloat16.
    """

    def __init__(self, network: nn.Module, lr: float = 0.025, amp: bool = False) -> None:
        self.network, self.lr, self.amp = network, lr, amp
        self.alphas: list[Tensor] = network.arch_parameters()  # type: ignore[operator]
        self.sgd = torch.optim.SGD(network.parameters(), lr, momentum=0.9, weight_decay=3e-4)
        self.adam = torch.optim.Adam(self.alphas, 3e-4, (0.5, 0.999), weight_decay=1e-3)

    def search_step(self, train: Batch, valid: Batch, order: int) -> None:
        self.alpha_step(train, valid, order)
        self.weight_step(train)

    def weight_step(self, train: Batch) -> None:
        self.sgd.zero_grad()
        self._loss(self.network, train).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.sgd.step()

    def alpha_step(self, train: Batch, valid: Batch, order: int) -> None:
        self.adam.zero_grad()
        if order == 1:
            self._loss(self.network, valid).backward()  # the weights get gradients too, which are not used
        else:
            for alpha, gradient in zip(self.alphas, self._second_order(train, valid), strict=True):
                alpha.grad = gradient
        self.adam.step()

    def _second_order(self, train: Batch, valid: Batch) -> list[Tensor]:
        weights = list(self.network.parameters())
        gradients = torch.autograd.grad(self._loss(self.network, train), weights)
        virtual = copy.deepcopy(self.network)
        with torch.no_grad():
            for w, original, g in zip(virtual.parameters(), weights, gradients, strict=True):
                buffer = self.sgd.state[original].get("momentum_buffer", torch.zeros_like(g))
                w.copy_(original - self.lr * (0.9 * buffer + g + 3e-4 * original))
        alphas: list[Tensor] = virtual.arch_parameters()  # type: ignore[operator]
        self._loss(virtual, valid).backward()
        direct = [alpha.grad for alpha in alphas if alpha.grad is not None]
        implicit = self._hessian_vector([w.grad for w in virtual.parameters()], train)
        return [a - self.lr * h for a, h in zip(direct, implicit, strict=True)]

    def _hessian_vector(self, v: list[Tensor | None], train: Batch) -> list[Tensor]:
        directions = [d for d in v if d is not None]
        epsilon = 0.01 / torch.cat([d.reshape(-1) for d in directions]).norm().item()
        self._move(directions, epsilon)
        plus = torch.autograd.grad(self._loss(self.network, train), self.alphas)
        self._move(directions, -2 * epsilon)
        minus = torch.autograd.grad(self._loss(self.network, train), self.alphas)
        self._move(directions, epsilon)
        return [(p - m) / (2 * epsilon) for p, m in zip(plus, minus, strict=True)]

    @torch.no_grad()
    def _move(self, directions: list[Tensor], step: float) -> None:
        for w, direction in zip(self.network.parameters(), directions, strict=True):
            w.add_(direction, alpha=step)

    def _loss(self, network: nn.Module, batch: Batch) -> Tensor:
        with autocast(batch[0].device, self.amp):
            outputs = network(batch[0])
        return cross_entropy(outputs.float(), batch[1])


def autocast(device: torch.device, enabled: bool) -> AbstractContextManager[object]:
    """Return autocast to bfloat16 with its cache of cast weights, as it is commonly used."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
