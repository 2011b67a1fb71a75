"""A search network in the style of the original code: ModuleLists called `_ops`, softmax in the network's forward.

The alphas are kept beside the parameters, `new()` builds a model for the virtual weights, and the alpha step is of
second order, with loops over parameters.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]

PRIMITIVES = [
    *("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect"),
    *("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"),
]


class ReLUConvBN(nn.Module):
    def __init__(self, C_in: int, C_out: int) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(inplace=False), nn.Conv2d(C_in, C_out, 1, bias=False), nn.BatchNorm2d(C_out, affine=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class DilConv(nn.Module):
    def __init__(self, C: int, kernel: int, stride: int, padding: int, dilation: int) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(inplace=False),
            nn.Conv2d(C, C, kernel, stride=stride, padding=padding, dilation=dilation, groups=C, bias=False),
            nn.Conv2d(C, C, kernel_size=1, padding=0, bias=False),
            nn.BatchNorm2d(C, affine=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class SepConv(nn.Module):
    def __init__(self, C: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(inplace=False),
            nn.Conv2d(C, C, kernel, stride=stride, padding=padding, groups=C, bias=False),
            nn.Conv2d(C, C, kernel_size=1, padding=0, bias=False),
            nn.BatchNorm2d(C, affine=False),
            nn.ReLU(inplace=False),
            nn.Conv2d(C, C, kernel, stride=1, padding=padding, groups=C, bias=False),
            nn.Conv2d(C, C, kernel_size=1, padding=0, bias=False),
            nn.BatchNorm2d(C, affine=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Identity(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Zero(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            return x.mul(0.0)
        return x[:, :, :: self.stride, :: self.stride].mul(0.0)


class FactorizedReduce(nn.Module):
    def __init__(self, C_in: int, C_out: int) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=False)
        self.conv_1 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, padding=0, bias=False)
        self.conv_2 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, padding=0, bias=False)
        self.bn = nn.BatchNorm2d(C_out, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1))


OPS: dict[str, Callable[[int, int], nn.Module]] = {
    "none": lambda C, stride: Zero(stride),
    "max_pool_3x3": lambda C, stride: nn.MaxPool2d(3, stride=stride, padding=1),
    "avg_pool_3x3": lambda C, stride: nn.AvgPool2d(3, stride=stride, padding=1, count_include_pad=False),
    "skip_connect": lambda C, stride: Identity() if stride == 1 else FactorizedReduce(C, C),
    "sep_conv_3x3": lambda C, stride: SepConv(C, 3, stride, 1),
    "sep_conv_5x5": lambda C, stride: SepConv(C, 5, stride, 2),
    "dil_conv_3x3": lambda C, stride: DilConv(C, 3, stride, 2, 2),
    "dil_conv_5x5": lambda C, stride: DilConv(C, 5, stride, 4, 2),
}


class MixedOp(nn.Module):
    def __init__(self, C: int, stride: int) -> None:
        super().__init__()
        self._ops = nn.ModuleList()
        for primitive in PRIMITIVES:
            op = OPS[primitive](C, stride)
            if "pool" in primitive:
                op = nn.Sequential(op, nn.BatchNorm2d(C, affine=False))
            self._ops.append(op)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self._ops, strict=True))  # type: ignore[return-value]


MixedOpClass = Callable[[int, int], nn.Module]


class Cell(nn.Module):
    def __init__(
        self, mixed_op: MixedOpClass, C_prev_prev: int, C_prev: int, C: int, reduction: bool, reduction_prev: bool
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.preprocess0 = FactorizedReduce(C_prev_prev, C) if reduction_prev else ReLUConvBN(C_prev_prev, C)
        self.preprocess1 = ReLUConvBN(C_prev, C)
        self._steps = 2
        self._ops = nn.ModuleList()
        for i in range(self._steps):
            for j in range(2 + i):
                self._ops.append(mixed_op(C, 2 if reduction and j < 2 else 1))

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        offset = 0
        for _ in range(self._steps):
            s = sum(self._ops[offset + j](h, weights[offset + j]) for j, h in enumerate(states))
            offset += len(states)
            states.append(s)  # type: ignore[arg-type]
        return torch.cat(states[2:], dim=1)


class Network(nn.Module):
    def __init__(self, mixed_op: MixedOpClass = MixedOp, C: int = 4, layers: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self._mixed_op, self._C, self._layers, self._num_classes = mixed_op, C, layers, num_classes
        self.stem = nn.Sequential(nn.Conv2d(1, 3 * C, 3, padding=1, bias=False), nn.BatchNorm2d(3 * C))
        self.cells = nn.ModuleList()
        C_prev_prev, C_prev, C_curr, reduction_prev = 3 * C, 3 * C, C, False
        for i in range(layers):
            reduction = i in (layers // 3, 2 * layers // 3)
            C_curr *= 2 if reduction else 1
            self.cells.append(Cell(mixed_op, C_prev_prev, C_prev, C_curr, reduction, reduction_prev))
            reduction_prev = reduction
            C_prev_prev, C_prev = C_prev, 2 * C_curr
        self.classifier = nn.Linear(C_prev, num_classes)
        self._arch_parameters = [(1e-3 * torch.randn(5, len(PRIMITIVES))).requires_grad_() for _ in range(2)]

    def new(self) -> "Network":
        model = Network(self._mixed_op, self._C, self._layers, self._num_classes).to(next(self.parameters()))
        model._arch_parameters = [a.detach().clone().requires_grad_() for a in self._arch_parameters]
        return model

    def arch_parameters(self) -> list[Tensor]:
        return self._arch_parameters

    def forward(self, x: Tensor) -> Tensor:
        s0 = s1 = self.stem(x)
        for cell in self.cells:
            weights = F.softmax(self._arch_parameters[cell.reduction], dim=-1)
            s0, s1 = s1, cell(s0, s1, weights)
        return self.classifier(s1.mean((2, 3)))

    def _loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])


class Search:
    def __init__(self, model: Network, lr: float = 0.025) -> None:
        self.model, self.lr = model, lr
        self.sgd = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=3e-4)
        self.adam = torch.optim.Adam(model.arch_parameters(), lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)

    def step(self, train: Batch, valid: Batch) -> float:
        """One search step; returns the loss of its weight step."""
        for alpha, gradient in zip(self.model.arch_parameters(), self._unrolled(train, valid), strict=True):
            alpha.grad = gradient
        self.adam.step()
        self.sgd.zero_grad()
        loss = self.model._loss(train)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.sgd.step()
        return loss.item()

    def _unrolled(self, train: Batch, valid: Batch) -> list[Tensor]:
        weights = list(self.model.parameters())
        gradients = torch.autograd.grad(self.model._loss(train), weights)
        virtual = self.model.new()
        virtual.load_state_dict(self.model.state_dict())
        with torch.no_grad():
            for w, original, g in zip(virtual.parameters(), weights, gradients, strict=True):
                momentum = self.sgd.state[original].get("momentum_buffer", torch.zeros_like(g))
                w.copy_(original - self.lr * (0.9 * momentum + g + 3e-4 * original))
        virtual._loss(valid).backward()
        vector = [w.grad for w in virtual.parameters()]
        epsilon = 0.01 / torch.cat([v.reshape(-1) for v in vector if v is not None]).norm()
        ends = []
        for step in (epsilon, -2 * epsilon, epsilon):
            with torch.no_grad():
                for w, v in zip(weights, vector, strict=True):
                    w.add_(step * v)  # type: ignore[operator]
            if len(ends) < 2:
                ends.append(torch.autograd.grad(self.model._loss(train), self.model.arch_parameters()))
        implicit = [(p - m) / (2 * epsilon) for p, m in zip(*ends, strict=True)]
        alphas = virtual.arch_parameters()
        return [a.grad - self.lr * h for a, h in zip(alphas, implicit, strict=True) if a.grad is not None]
