"""Architectures with the numbers by which they are compared."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class Scored(NamedTuple):
    """An architecture and how it does with the weights of the search network."""

    architecture: Any
    score: float
    """Accuracy, or minus the loss where targets are not classes; more is better."""
    cost: float | None = None
    """Its cost; None where the search has no table of costs."""


def pareto_front(scored: Sequence[Scored]) -> list[Scored]:
    """Return those that no other beats in score without a higher cost, the cheapest first; without costs the best."""
    front: list[Scored] = []
    for one in sorted(scored, key=lambda each: (each.cost or 0.0, -each.score)):
        if not front or one.score > front[-1].score:
            front.append(one)
    return front if scored and scored[0].cost is not None else front[-1:]


def best_within(scored: Sequence[Scored], limit: float | None) -> Scored:
    """Return the best of those whose cost is at most `limit`; the cheapest if there is none; ties to the first."""
    within = [one for one in scored if limit is None or one.cost is None or one.cost <= limit]
    return max(within, key=lambda one: one.score) if within else min(scored, key=lambda one: one.cost or 0.0)
