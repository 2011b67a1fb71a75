"""The cost of an architecture, such as its multiply-adds or its latency: a number for each choice of each row."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastdarts.config.files import write_atomically
from fastdarts.config.reading import parse_json, read_text
from fastdarts.primitives.table import EdgeOps
from fastdarts.spaces.group import Group
from fastdarts.spaces.supernet import Supernet

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """An op where it runs: a candidate of a row in one cell.

    Attributes:
        name: the op's name.
        op: its module, on the meta device.
        shape: of its input, [N, C, H, W].
        out: of its output.
    """

    name: str
    op: nn.Module
    shape: Shape
    out: Shape

    @property
    def key(self) -> str:
        """Return the words under which equal work is counted or measured once."""
        return f"{self.name} {_size(self.shape)} -> {_size(self.out)}"


class Cost(Protocol):
    """Costs of architectures, from a table or a fitted function."""

    @property
    def unit(self) -> str: ...

    @property
    def about(self) -> dict[str, Any]: ...

    def of(self, network: Supernet, architecture: Any) -> float: ...

    def check(self, groups: Mapping[str, Group], what: str) -> None: ...

    def priced(self, groups: Mapping[str, Group], like: Tensor) -> Callable[[Mapping[str, Tensor]], Tensor]: ...

    def lowest(self, groups: Mapping[str, Group], shares: Mapping[str, Tensor]) -> float: ...


@dataclass(frozen=True)
class CostTable:
    """Costs of all choices of a space.

    Attributes:
        unit: unit of the numbers.
        ops: the names of the choices of each row of each group.
        rows: [rows, ops] of each group, float64 on the CPU: the sum over all cells that a group describes.
        constant: cost of everything else.
        about: how the numbers were made.
    """

    unit: str
    ops: dict[str, EdgeOps]
    rows: dict[str, Tensor]
    constant: float
    about: dict[str, Any]

    def of(self, network: Supernet, architecture: Any) -> float:
        """Return the cost of an architecture, of which `network` knows the ops; it may have fewer than the table."""
        mixes = network.mixes_of(architecture)
        total = self.constant
        for name, group in network.groups.items():
            weights = mixes[name].weights[:, : group.shape[1]].double().cpu()
            total += float((weights * self.costs(name, group)).sum())
        return total

    def costs(self, name: str, group: Group) -> Tensor:
        """Return the costs [rows, ops] of a group that may have fewer ops than the table, or others' order."""
        return self.rows[name].gather(1, columns_of(self.ops[name], group))

    def check(self, groups: Mapping[str, Group], what: str) -> None:
        """Raise ValueError unless the table, called `what` in the message, has a number for each choice of `groups`."""
        check_ops(self.ops, groups, what)

    def priced(self, groups: Mapping[str, Group], like: Tensor) -> Callable[[Mapping[str, Tensor]], Tensor]:
        """Return the function from op weights [rows, ops] of `groups` to the cost, on the device of `like`."""
        costs = {name: self.costs(name, group).to(like) for name, group in groups.items()}

        def cost(weights: Mapping[str, Tensor]) -> Tensor:
            return torch.stack([(weights[name] * table).sum() for name, table in costs.items()]).sum() + self.constant

        return cost

    def lowest(self, groups: Mapping[str, Group], shares: Mapping[str, Tensor]) -> float:
        """Return the cost of each row's cheapest op.

        Args:
            groups: the choices.
            shares: [rows, ops] of each, the share of a row's ops that is kept; 0 for ops that cannot be chosen.
        """
        total = self.constant
        for name, group in groups.items():
            share = shares[name].double().cpu()
            total += float((self.costs(name, group) * share).masked_fill(share == 0, math.inf).min(1).values.sum())
        return total

    def save(self, path: Path) -> None:
        """Write a JSON file that `load` reads."""
        value = {
            "unit": self.unit,
            "constant": self.constant,
            "ops": self.ops,
            "rows": {name: rows.tolist() for name, rows in self.rows.items()},
            "about": self.about,
        }
        write_atomically(path, json.dumps(value, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> CostTable:
        """Read what `save` wrote; ValueError names the file and says what is wrong with it."""
        try:
            value = parse_json(read_text(path))
            rows = {name: torch.tensor(table, dtype=torch.float64) for name, table in value["rows"].items()}
            ops = {name: tuple(tuple(map(str, row)) for row in table) for name, table in value["ops"].items()}
            table = cls(str(value["unit"]), ops, rows, float(value["constant"]), dict(value.get("about", {})))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is no table of costs, as `fastdarts latency` writes it: {error}") from None
        for name, costs in table.rows.items():
            sizes = [len(row) for row in table.ops.get(name, ())]
            if not costs.isfinite().all() or sizes != [len(row) for row in costs]:
                raise ValueError(f"{path} is no table of costs: {name} must have a finite number for each of its ops")
        return table


def columns_of(known: EdgeOps, group: Group) -> Tensor:
    """Return the place [rows, ops] of each of a group's ops among the names `known` of its row."""
    return torch.tensor([[names.index(op) for op in ops] for names, ops in zip(known, group.ops, strict=True)])


def check_ops(known: Mapping[str, EdgeOps], groups: Mapping[str, Group], what: str) -> None:
    """Raise ValueError unless the costs called `what`, of ops of these names, know each choice of `groups`."""
    for name, group in groups.items():
        ours = known.get(name, ())
        if len(ours) != len(group.ops):
            raise ValueError(
                f"{what} must have {len(group.ops)} rows for the space's {group.title}; got {len(ours)}. Was the "
                "table made for the same space and number of layers?"
            )
        for row, (has, ops) in enumerate(zip(ours, group.ops, strict=True)):
            missing = [op for op in ops if op not in has]
            if missing:
                raise ValueError(f"{what} has no number for {', '.join(missing)} in row {row} of {group.title}")


def tabulate(network: Supernet, image_shape: Shape, cost: Callable[[Place], float]) -> dict[str, Tensor]:
    """Return the cost of each choice, summed over the cells that a group describes.

    Args:
        network: a search network with backend "reference" on the meta device.
        image_shape: [N, C, H, W] of its input.
        cost: cost of one op; called once for equal work (`Place.key`).
    """
    known: dict[str, float] = {}
    rows = {name: torch.zeros(group.shape, dtype=torch.float64) for name, group in network.groups.items()}
    for (group, row, column), place in places(network, image_shape):
        if place.key not in known:
            known[place.key] = cost(place)
        rows[group][row, column] += known[place.key]
    return rows


def names_of(network: Supernet) -> dict[str, EdgeOps]:
    """Return the names of the choices of each row of each group."""
    return {name: group.ops for name, group in network.groups.items()}


def places(network: Supernet, image_shape: Shape) -> list[tuple[tuple[str, int, int], Place]]:
    """Return all ops that a pass of `network` (see `tabulate`) calls, each with its group, row and column."""
    found: list[tuple[tuple[str, int, int], Place]] = []
    handles = []
    for group, rows in network.groups.items():
        for cell in network.mixed_ops(group):
            for row, choices in enumerate(cell):
                for column, op in enumerate(list(choices._ops)[: rows.shape[1]]):
                    at, name = (group, row, column), rows.ops[row][column]

                    def note(op: nn.Module, x: Any, out: Tensor, at: Any = at, name: str = name) -> None:
                        found.append((at, Place(name, op, tuple(x[0].shape), tuple(out.shape))))

                    handles.append(op.register_forward_hook(note))
    try:
        with torch.no_grad():
            network.eval()(torch.empty(image_shape, device="meta"))
    finally:
        for handle in handles:
            handle.remove()
    return found


def multiply_adds(network: Supernet, image_shape: Shape) -> CostTable:
    """Count the multiply-adds of convolutions and linear layers for one image, in millions (see `tabulate`)."""
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton, which takes 0.2 s

    def count(module: nn.Module, shape: Shape) -> float:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(torch.empty(shape, device="meta"))
        return counter.get_total_flops() / 2e6

    rows = tabulate(network, image_shape, lambda place: count(place.op, place.shape))
    all_ops = sum(float(table.sum()) for table in rows.values())
    return CostTable(
        "million multiply-adds", names_of(network), rows, max(count(network, image_shape) - all_ops, 0.0), {}
    )


def parameters(network: Supernet, image_shape: Shape) -> CostTable:
    """Count the weights, in millions (see `tabulate`)."""

    def count(module: nn.Module) -> float:
        return sum(weight.numel() for weight in module.parameters()) / 1e6

    rows = {name: torch.zeros(group.shape, dtype=torch.float64) for name, group in network.groups.items()}
    for (group, row, column), place in places(network, image_shape):
        rows[group][row, column] += count(place.op)
    all_ops = sum(float(table.sum()) for table in rows.values())
    return CostTable("million parameters", names_of(network), rows, max(count(network) - all_ops, 0.0), {})


def _size(shape: Shape) -> str:
    return "x".join(map(str, shape[1:]))
