"""A search network in the style of the partially connected successors: channel slices, shuffle, edge weights.

The mixed sum sees the first quarter of the channels (a slice: not contiguous), the others pass by; channels are then
shuffled. A node weighs its edges by a softmax of their own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import original
from .original import Batch, MixedOp, MixedOpClass

K = 4


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    N, C, H, W = x.shape
    return x.view(N, groups, C // groups, H, W).transpose(1, 2).contiguous().view(N, C, H, W)


class PartialOp(nn.Module):
    """The mixed sum as a module of its own, which another class can take the place of."""

    def __init__(self, mixed_op: MixedOpClass, C: int, stride: int) -> None:
        super().__init__()
        self.mp = nn.MaxPool2d(2, 2)
        self.stride = stride
        self.mix = mixed_op(C // K, stride)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        quarter = x.shape[1] // K
        mixed = self.mix(x[:, :quarter], weights)
        rest = x[:, quarter:] if self.stride == 1 else self.mp(x[:, quarter:])
        return channel_shuffle(torch.cat([mixed, rest], dim=1), K)


class PartialMixedOp(MixedOp):
    """The same all in one: a mixed op that is no weighted sum of its ops."""

    def __init__(self, C: int, stride: int) -> None:
        super().__init__(C // K, stride)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        quarter = x.shape[1] // K
        mixed = super().forward(x[:, :quarter], weights)
        return channel_shuffle(torch.cat([mixed, x[:, quarter:]], dim=1), K)


class Cell(nn.Module):
    def __init__(self, mixed_op: MixedOpClass, C_in: int, C: int, reduction: bool) -> None:
        super().__init__()
        self.reduction = reduction
        self.preprocess = nn.ModuleList(original.ReLUConvBN(C_in, C) for _ in range(2))
        self._ops = nn.ModuleList(
            PartialOp(mixed_op, C, 2 if reduction and j < 2 else 1) for i in range(2) for j in range(2 + i)
        )

    def forward(self, x: Tensor, weights: Tensor, edge_weights: list[Tensor]) -> Tensor:
        states = [preprocess(x) for preprocess in self.preprocess]
        offset = 0
        for beta in edge_weights:
            terms = [beta[j] * self._ops[offset + j](h, weights[offset + j]) for j, h in enumerate(states)]
            offset += len(states)
            states.append(torch.stack(terms).sum(0))
        return torch.cat(states[2:], dim=1)


class Network(nn.Module):
    def __init__(self, mixed_op: MixedOpClass = MixedOp, C: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))
        self.cells = nn.ModuleList([Cell(mixed_op, C, C, False), Cell(mixed_op, 2 * C, 2 * C, True)])
        self.classifier = nn.Linear(4 * C, 10)
        self.alphas = nn.ParameterList(1e-3 * torch.randn(5, len(original.PRIMITIVES)) for _ in range(2))
        self.betas = nn.ParameterList(1e-3 * torch.randn(5) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for cell in self.cells:
            kind = int(cell.reduction)
            edge_weights = [F.softmax(part, dim=-1) for part in self.betas[kind].split([2, 3])]
            x = cell(x, F.softmax(self.alphas[kind], dim=-1), edge_weights)
        return self.classifier(x.mean((2, 3)))

    def arch_parameters(self) -> list[Tensor]:
        return [*self.alphas, *self.betas]


class Search:
    def __init__(self, model: Network) -> None:
        self.model = model
        architecture = {id(a) for a in model.arch_parameters()}
        weights = [w for w in model.parameters() if id(w) not in architecture]
        self.sgd = torch.optim.SGD(weights, 0.1, momentum=0.9, weight_decay=3e-4)
        self.adam = torch.optim.Adam(model.arch_parameters(), 6e-4, betas=(0.5, 0.999), weight_decay=1e-3)

    def step(self, train: Batch, valid: Batch) -> float:
        """One search step of first order; returns the loss of its weight step."""
        self.adam.zero_grad()
        F.cross_entropy(self.model(valid[0]), valid[1]).backward()
        self.adam.step()
        self.sgd.zero_grad()
        loss = F.cross_entropy(self.model(train[0]), train[1])
        loss.backward()
        self.sgd.step()
        return loss.item()
