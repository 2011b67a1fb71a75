"""A regressor as the cost of an architecture: an MLP from op weights to milliseconds (Xu et al., arXiv:2001.06392).

Latency-DARTS fits it to measured architectures, so that it knows what a sum of single ops does not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdarts.config.files import write_atomically
from fastdarts.primitives.table import EdgeOps
from fastdarts.spaces.cost import check_ops, columns_of
from fastdarts.spaces.group import Group
from fastdarts.spaces.supernet import Mixes, Supernet

_STEPS = 2_000
_RATE = 3e-3
_DECAY = 1e-2
_HIDDEN = (64, 64)


@dataclass(frozen=True)
class CostModel:
    """A fitted regressor.

    Attributes:
        unit: unit of the cost.
        ops: the names of the choices of each row of each group; op weights in this order are the input.
        layers: (weight, bias) of each linear layer, float64 on the CPU; ReLU between them.
        least: the smallest cost that was measured.
        about: how the numbers were made.
    """

    unit: str
    ops: dict[str, EdgeOps]
    layers: list[tuple[Tensor, Tensor]]
    least: float
    about: dict[str, Any]

    def of(self, network: Supernet, architecture: Any) -> float:
        """Return the cost of an architecture, of which `network` knows the ops."""
        with torch.no_grad():
            weights = weights_of(network.mixes_of(architecture), network.groups)
            return float(self.priced(network.groups, torch.zeros((), dtype=torch.float64))(weights))

    def check(self, groups: Mapping[str, Group], what: str) -> None:
        """Raise ValueError unless the regressor, called `what` in the message, knows each choice of `groups`."""
        check_ops(self.ops, groups, what)

    def priced(self, groups: Mapping[str, Group], like: Tensor) -> Callable[[Mapping[str, Tensor]], Tensor]:
        """Return the function from op weights [rows, ops] of `groups` to the cost, on the device of `like`."""
        layers = [(weight.to(like), bias.to(like)) for weight, bias in self.layers]
        columns = {name: columns_of(self.ops[name], group).to(like.device) for name, group in groups.items()}

        def cost(weights: Mapping[str, Tensor]) -> Tensor:
            parts = []
            for name, rows in self.ops.items():
                whole = weights[name].new_zeros(len(rows), len(rows[0]))
                parts.append(whole.scatter(1, columns[name], weights[name]).flatten())
            x = torch.cat(parts).to(like.dtype)
            for index, (weight, bias) in enumerate(layers):
                x = weight @ (x.relu() if index else x) + bias
            return x[0]

        return cost

    def lowest(self, groups: Mapping[str, Group], shares: Mapping[str, Tensor]) -> float:
        """Return the smallest cost that was measured: that of the cheapest architecture is not known."""
        return self.least

    def save(self, path: Path) -> None:
        """Write a JSON file that `load` reads."""
        value = {
            "unit": self.unit,
            "ops": self.ops,
            "regressor": [[weight.tolist(), bias.tolist()] for weight, bias in self.layers],
            "least": self.least,
            "about": self.about,
        }
        write_atomically(path, json.dumps(value) + "\n")

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> CostModel:
        """Read the contents of a file that `save` wrote; an error of any kind says what is wrong with them."""
        ops = {name: tuple(tuple(map(str, row)) for row in table) for name, table in value["ops"].items()}
        layers = [
            (torch.tensor(weight, dtype=torch.float64), torch.tensor(bias, dtype=torch.float64))
            for weight, bias in value["regressor"]
        ]
        inputs = sum(len(row) for table in ops.values() for row in table)
        for weight, bias in layers:
            if weight.shape != (len(bias), inputs) or not weight.isfinite().all() or not bias.isfinite().all():
                raise ValueError(f"regressor must have finite layers from {inputs} numbers on")
            inputs = len(bias)
        return cls(str(value["unit"]), ops, layers, float(value["least"]), dict(value.get("about", {})))


def weights_of(mixes: Mixes, groups: Mapping[str, Group]) -> dict[str, Tensor]:
    """Return the op weights [rows, ops] of each group, float64 on the CPU, without auxiliary ops."""
    return {name: mixes[name].weights[:, : group.shape[1]].double().cpu() for name, group in groups.items()}


def fit(
    ops: dict[str, EdgeOps], samples: Sequence[Mapping[str, Tensor]], costs: Sequence[float], unit: str, seed: int
) -> CostModel:
    """Fit a regressor by Adam, all samples at once, to the relative error.

    Args:
        ops: the names of the choices.
        samples: op weights of each measured architecture.
        costs: their costs, above 0.
        unit: unit of the costs.
        seed: of the initial weights.
    """
    x = torch.stack([torch.cat([sample[name].flatten() for name in ops]) for sample in samples])
    y = torch.tensor(costs, dtype=torch.float64)
    scale = y.mean()
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        sizes = (x.shape[1], *_HIDDEN, 1)
        linear = [nn.Linear(inside, outside, dtype=torch.float64) for inside, outside in pairwise(sizes)]
    network = nn.Sequential(linear[0], *(part for layer in linear[1:] for part in (nn.ReLU(), layer)))
    nn.init.ones_(linear[-1].bias)  # the mean cost, in units of itself
    optimizer = torch.optim.AdamW(network.parameters(), _RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        ((network(x)[:, 0] * scale - y) / y).square().mean().backward()
        optimizer.step()
        schedule.step()
    layers = [(layer.weight.detach().clone(), layer.bias.detach().clone()) for layer in linear]
    layers[-1] = layers[-1][0] * scale, layers[-1][1] * scale
    return CostModel(unit, ops, layers, min(costs), {})
