"""Put the cost of an architecture into the loss of the alphas (ProxylessNAS, FBNet; any method, any space)."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from fastdarts.methods.method import Method
from fastdarts.spaces.cost import CostTable
from fastdarts.spaces.group import Choice, Group
from fastdarts.spaces.supernet import Supernet

Form = Literal["add", "multiply", "limit"]

WEIGHTS: Mapping[Form, float] = {"add": 0.1, "multiply": 0.3, "limit": 0.1}
"""Default weights: ProxylessNAS' for "add" and "multiply" (Cai et al., ICLR 2019, released code)."""


def with_cost(loss: Tensor, cost: Tensor, form: Form, weight: float, target: float) -> Tensor:
    """Return a loss that includes a cost.

    "add" is loss + weight (cost / target - 1), "multiply" 0.2 loss (log cost / log target)^weight, "limit" "add" for a
    cost above the target and the loss alone below it.

    Args:
        loss: a scalar.
        cost: a scalar; above 1 for "multiply".
        form: see above.
        weight: strength of the cost.
        target: the cost that is wanted; above 1 for "multiply".
    """
    if form == "multiply":
        return 0.2 * loss * (cost.log() / math.log(target)) ** weight
    excess = weight * (cost / target - 1)
    return loss + (excess.clamp_min(0) if form == "limit" else excess)


class CostTerm:
    """The expected cost of the architecture that a method would derive, and its part of the loss.

    An op's probability is its share of its row's strengths, without `none` where that cannot win; where a node keeps k
    of its n edges, each counts k / n. Of methods whose ops do not compete the strengths themselves are taken.

    Args:
        method: the search method.
        network: the search network, on its device.
        table: the costs of all choices of the method's space.
        form, weight: see `with_cost`; None takes the form's default.
        target: the cost that is wanted; None takes that of equal shares of all ops.

    Raises: ValueError for a target that no architecture can meet, or that the form cannot use.
    """

    def __init__(
        self,
        method: Method,
        network: Supernet,
        table: CostTable,
        form: Form,
        weight: float | None = None,
        target: float | None = None,
    ) -> None:
        table.check(network.groups, "cost")
        self.method, self.table, self.form = method, table, form
        self.weight = WEIGHTS[form] if weight is None else weight
        self._candidates: dict[str, Tensor] = {}
        self._costs: dict[str, Tensor] = {}
        for name, group in network.groups.items():
            none = [[op == "none" and not method.choice.none_wins and len(ops) > 1 for op in ops] for ops in group.ops]
            alpha = network.alphas[name]
            self._candidates[name] = 1 - torch.tensor(none).to(alpha)
            self._costs[name] = (table.costs(name, group) * _kept(group, method.choice)).to(alpha)
        with torch.no_grad():
            equal = {name: torch.ones_like(costs) for name, costs in self._costs.items()}
            self.target = float(self._cost(equal)) if target is None else target
            least = {name: self._cheapest(name) for name in self._costs}
            lowest = float(self._cost(least))
        if self.target < lowest:
            raise ValueError(
                f"cost_target must be at least {lowest:.4g} {table.unit}, the cost of the cheapest ops; "
                f"got {self.target:.4g}"
            )
        if form == "multiply" and min(self.target, lowest) <= 1:
            raise ValueError(
                f"cost_form 'multiply' takes logarithms and needs costs above 1; the cheapest ops cost {lowest:.4g} "
                f"{table.unit} and the target is {self.target:.4g}: take 'add', or a table in a smaller unit"
            )

    def expected(self, network: Supernet) -> Tensor:
        """Return the expected cost of the present alphas, differentiable in them."""
        return self._cost(
            {
                name: self.method.strength(network, name, self.method.masked(name, network.alphas[name]))
                for name in self._costs
            }
        )

    def __call__(self, network: Supernet, loss: Tensor) -> Tensor:
        """Return what the cost adds to a loss."""
        return with_cost(loss, self.expected(network).to(loss), self.form, self.weight, self.target) - loss

    def _cost(self, strengths: Mapping[str, Tensor]) -> Tensor:
        sums = []
        for name, strength in strengths.items():
            shares = strength * self._candidates[name]
            if self.method.competes:
                shares = shares / shares.sum(1, keepdim=True).clamp_min(1e-30)
            sums.append((shares * self._costs[name]).sum())
        return torch.stack(sums).sum() + self.table.constant

    def _cheapest(self, group: str) -> Tensor:
        """Return strengths of 1 for each row's cheapest op."""
        costs = self._costs[group].masked_fill(self._candidates[group] == 0, math.inf)
        return nn.functional.one_hot(costs.argmin(1), costs.shape[1]).to(costs)


def _kept(group: Group, choice: Choice) -> Tensor:
    """Return the share [rows, 1] of a row's ops in the derived architecture: k / n where k of n edges are kept."""
    kept = torch.ones(len(group.ops), 1, dtype=torch.float64)
    for rows, count in group.kept_edges(choice.edges_per_node):
        kept[rows] = count / (rows.stop - rows.start)
    return kept
