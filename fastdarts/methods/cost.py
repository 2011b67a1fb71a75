"""Put the cost of an architecture into the loss of the alphas (ProxylessNAS, FBNet; any method, any space)."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from fastdarts.methods.method import Method
from fastdarts.spaces.cost import Cost
from fastdarts.spaces.group import Choice, Group
from fastdarts.spaces.supernet import Mixes, Supernet

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
        table: the costs of the method's space.
        form, weight: see `with_cost`; None takes the form's default.
        target: the cost that is wanted; None takes that of equal shares of all ops.

    Raises: ValueError for a target that no architecture can meet, or that the form cannot use.
    """

    def __init__(
        self,
        method: Method,
        network: Supernet,
        table: Cost,
        form: Form,
        weight: float | None = None,
        target: float | None = None,
    ) -> None:
        table.check(network.groups, "cost")
        self.method, self.table, self.form = method, table, form
        self.weight = WEIGHTS[form] if weight is None else weight
        self._candidates: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}
        for name, group in network.groups.items():
            none = [[op == "none" and not method.choice.none_wins and len(ops) > 1 for op in ops] for ops in group.ops]
            alpha = network.alphas[name]
            self._candidates[name] = 1 - torch.tensor(none).to(alpha)
            self._kept[name] = _kept(group, method.choice).to(alpha)
        self._price = table.priced(network.groups, alpha)
        with torch.no_grad():
            equal = {name: torch.ones_like(shares) for name, shares in self._candidates.items()}
            self.target = float(self._cost(equal)) if target is None else target
        shares = {name: self._candidates[name] * kept for name, kept in self._kept.items()}
        lowest = table.lowest(network.groups, shares)
        if target is not None and target < lowest:
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
                for name in self._kept
            }
        )

    def __call__(self, network: Supernet, loss: Tensor) -> Tensor:
        """Return what the cost adds to a loss."""
        return with_cost(loss, self.expected(network).to(loss), self.form, self.weight, self.target) - loss

    def rewarded(self, reward: float, mixes: Mixes) -> float:
        """Return a reward that includes the cost of op weights: the forms of the loss, with a reward's sign.

        "add" is reward - weight (cost / target - 1), "multiply" reward (target / cost)^weight (ProxylessNAS, with
        weight 0.1), "limit" "add" for a cost above the target and the reward alone below it.
        """
        weights = {name: mixes[name].weights[:, : c.shape[1]].detach() for name, c in self._candidates.items()}
        ratio = float(self._price({name: weight * self._kept[name] for name, weight in weights.items()})) / self.target
        if self.form == "multiply":
            return reward * ratio**-self.weight
        excess = self.weight * (ratio - 1)
        return reward - (max(excess, 0.0) if self.form == "limit" else excess)

    def _cost(self, strengths: Mapping[str, Tensor]) -> Tensor:
        shares = {}
        for name, strength in strengths.items():
            shares[name] = strength * self._candidates[name]
            if self.method.competes:
                shares[name] = shares[name] / shares[name].sum(1, keepdim=True).clamp_min(1e-30)
        return self._price({name: share * self._kept[name] for name, share in shares.items()})


def _kept(group: Group, choice: Choice) -> Tensor:
    """Return the share [rows, 1] of a row's ops in the derived architecture: k / n where k of n edges are kept."""
    kept = torch.ones(len(group.ops), 1, dtype=torch.float64)
    for rows, count in group.kept_edges(choice.edges_per_node):
        kept[rows] = count / (rows.stop - rows.start)
    return kept
