"""A search network in the style of the PyTorch ports: weights as lists per node, `none` last, data parallel.

Layers have other names than the original's (a separable convolution is two dilated ones of dilation 1; attributes are
called `net`), alphas are parameters of a controller, which scatters them and the images over replicas.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]

PRIMITIVES = [
    *("max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3"),
    *("sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5", "none"),
]


class PoolBN(nn.Module):
    def __init__(self, kind: str, C: int, stride: int) -> None:
        super().__init__()
        if kind == "max":
            self.pool: nn.Module = nn.MaxPool2d(3, stride, 1)
        else:
            self.pool = nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        self.bn = nn.BatchNorm2d(C, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.pool(x))


class StdConv(nn.Module):
    def __init__(self, C_in: int, C_out: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.ReLU(), nn.Conv2d(C_in, C_out, 1, 1, 0, bias=False), nn.BatchNorm2d(C_out, affine=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class DilConv(nn.Module):
    def __init__(self, C: int, kernel: int, stride: int, padding: int, dilation: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C, C, kernel, stride, padding, dilation=dilation, groups=C, bias=False),
            nn.Conv2d(C, C, 1, stride=1, padding=0, bias=False),
            nn.BatchNorm2d(C, affine=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class SepConv(nn.Module):
    def __init__(self, C: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            DilConv(C, kernel, stride, padding, dilation=1), DilConv(C, kernel, 1, padding, dilation=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Zero(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return (x if self.stride == 1 else x[:, :, :: self.stride, :: self.stride]) * 0.0


class FactorizedReduce(nn.Module):
    def __init__(self, C_in: int, C_out: int) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.conv1 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, padding=0, bias=False)
        self.conv2 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, padding=0, bias=False)
        self.bn = nn.BatchNorm2d(C_out, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return self.bn(torch.cat([self.conv1(x), self.conv2(x[:, :, 1:, 1:])], dim=1))


OPS: dict[str, Callable[[int, int], nn.Module]] = {
    "none": lambda C, stride: Zero(stride),
    "avg_pool_3x3": lambda C, stride: PoolBN("avg", C, stride),
    "max_pool_3x3": lambda C, stride: PoolBN("max", C, stride),
    "skip_connect": lambda C, stride: nn.Identity() if stride == 1 else FactorizedReduce(C, C),
    "sep_conv_3x3": lambda C, stride: SepConv(C, 3, stride, 1),
    "sep_conv_5x5": lambda C, stride: SepConv(C, 5, stride, 2),
    "dil_conv_3x3": lambda C, stride: DilConv(C, 3, stride, 2, 2),
    "dil_conv_5x5": lambda C, stride: DilConv(C, 5, stride, 4, 2),
}


class MixedOp(nn.Module):
    def __init__(self, C: int, stride: int) -> None:
        super().__init__()
        self.candidates = nn.ModuleList([OPS[name](C, stride) for name in PRIMITIVES])

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        total = 0.0
        for weight, op in zip(weights, self.candidates, strict=True):
            total = total + weight * op(x)
        return total  # type: ignore[return-value]


class SearchCell(nn.Module):
    def __init__(
        self,
        mixed_op: Callable[[int, int], nn.Module],
        C_pp: int,
        C_p: int,
        C: int,
        reduction: bool,
        reduction_p: bool,
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.preproc0 = FactorizedReduce(C_pp, C) if reduction_p else StdConv(C_pp, C)
        self.preproc1 = StdConv(C_p, C)
        self.dag = nn.ModuleList(
            nn.ModuleList(mixed_op(C, 2 if reduction and j < 2 else 1) for j in range(2 + i)) for i in range(2)
        )

    def forward(self, s0: Tensor, s1: Tensor, w_dag: list[Tensor]) -> Tensor:
        states = [self.preproc0(s0), self.preproc1(s1)]
        for edges, w_list in zip(self.dag, w_dag, strict=True):
            s_cur = sum(edge(s, w) for edge, s, w in zip(edges, states, w_list, strict=True))  # type: ignore[arg-type]
            states.append(s_cur)  # type: ignore[arg-type]
        return torch.cat(states[2:], dim=1)


class SearchCNN(nn.Module):
    def __init__(self, mixed_op: Callable[[int, int], nn.Module], C: int, n_layers: int, n_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 3 * C, 3, 1, 1, bias=False), nn.BatchNorm2d(3 * C))
        C_pp, C_p, C_cur, reduction_p = 3 * C, 3 * C, C, False
        self.cells = nn.ModuleList()
        for i in range(n_layers):
            reduction = i in (n_layers // 3, 2 * n_layers // 3)
            C_cur *= 2 if reduction else 1
            self.cells.append(SearchCell(mixed_op, C_pp, C_p, C_cur, reduction, reduction_p))
            reduction_p = reduction
            C_pp, C_p = C_p, 2 * C_cur
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(C_p, n_classes)

    def forward(self, x: Tensor, w_normal: list[Tensor], w_reduce: list[Tensor]) -> Tensor:
        s0 = s1 = self.stem(x)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, w_reduce if cell.reduction else w_normal)
        return self.linear(self.gap(s1).flatten(1))


class SearchCNNController(nn.Module):
    def __init__(self, mixed_op: Callable[[int, int], nn.Module] = MixedOp, C: int = 4, n_layers: int = 3) -> None:
        super().__init__()
        self.alpha_normal = nn.ParameterList(nn.Parameter(1e-3 * torch.randn(i + 2, 8)) for i in range(2))
        self.alpha_reduce = nn.ParameterList(nn.Parameter(1e-3 * torch.randn(i + 2, 8)) for i in range(2))
        self.net = nn.DataParallel(SearchCNN(mixed_op, C, n_layers, 10))

    def forward(self, x: Tensor) -> Tensor:
        weights = [[F.softmax(a, dim=-1) for a in alphas] for alphas in (self.alpha_normal, self.alpha_reduce)]
        return self.net(x, *weights)

    def alphas(self) -> list[Tensor]:
        return [*self.alpha_normal, *self.alpha_reduce]

    def weights(self) -> list[Tensor]:
        return list(self.net.parameters())


class Search:
    def __init__(self, model: SearchCNNController) -> None:
        self.model = model
        self.w_optim = torch.optim.SGD(model.weights(), 0.025, momentum=0.9, weight_decay=3e-4)
        self.alpha_optim = torch.optim.Adam(model.alphas(), 3e-4, betas=(0.5, 0.999), weight_decay=1e-3)

    def step(self, train: Batch, valid: Batch) -> float:
        """One search step of first order; returns the loss of its weight step."""
        self.alpha_optim.zero_grad()
        F.cross_entropy(self.model(valid[0]), valid[1]).backward()
        self.alpha_optim.step()
        self.w_optim.zero_grad()
        loss = F.cross_entropy(self.model(train[0]), train[1])
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.weights(), 5.0)
        self.w_optim.step()
        return loss.item()
