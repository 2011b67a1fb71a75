"""Choose one path for each stage of a network, of least summed error under a limit of the summed cost (DNA)."""

from collections.abc import Sequence
from typing import NamedTuple


class Combination(NamedTuple):
    """A path for each of the first stages."""

    error: float
    """Sum of the errors of the paths."""
    cost: float
    """Sum of their costs."""
    paths: tuple[int, ...]
    """The number of each stage's path."""


def front(stages: Sequence[Sequence[tuple[float, float]]]) -> list[Combination]:
    """Return the combinations that no other beats in error without a higher cost, the cheapest first.

    Exact: a part that another beats in both sums loses to it in every combination, so that only undominated parts go
    on from stage to stage. Ties go to the first paths.

    Args:
        stages: (error, cost) of each path of each stage.
    """
    found = [Combination(0.0, 0.0, ())]
    for paths in stages:
        own = _undominated([Combination(error, cost, (at,)) for at, (error, cost) in enumerate(paths)])
        found = _undominated(
            [
                Combination(part.error + path.error, part.cost + path.cost, part.paths + path.paths)
                for part in found
                for path in own
            ]
        )
    return found


def _undominated(combinations: Sequence[Combination]) -> list[Combination]:
    kept: list[Combination] = []
    for one in sorted(combinations, key=lambda each: (each.cost, each.error, each.paths)):
        if not kept or one.error < kept[-1].error:
            kept.append(one)
    return kept
