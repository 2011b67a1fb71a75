"""Sample architectures to be scored with shared weights: at random, all of them, or by evolution; in any space."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import nn

from fastdarts.methods.recombination import crossed, keeps_all_rows, mutated
from fastdarts.methods.scored import Scored
from fastdarts.spaces.supernet import Supernet

Score = Callable[[Any], Scored]
Order = Callable[[Sequence[Scored]], list[Scored]]
"""Returns architectures with the best first."""

MOST = 20_000
"""Largest number of architectures that are enumerated."""
_TRIES = 100  # draws for a new architecture before a space counts as exhausted
_CHEAPER = 0.2  # share of the rows that are drawn anew on the way below a limit


class Limit(NamedTuple):
    """Hold the largest cost that architectures may have, and the function that computes it."""

    cost: Callable[[Any], float]
    most: float


@dataclass(frozen=True)
class Draws:
    """Draw architectures of a search network.

    Attributes:
        network: the search network.
        generator: on the CPU.
        max_skips: most skip connections; None for any number.
        limit: of their cost; an architecture above it gives way to cheaper mutations, one after another.
    """

    network: Supernet
    generator: torch.Generator
    max_skips: int | None = None
    limit: Limit | None = None

    def random(self) -> Any:
        return self._within(self.network.random(self.generator, self.max_skips))

    def crossed(self, first: Any, second: Any) -> Any:
        return self._within(crossed(self.network, first, second, 0.5, self.generator, self.max_skips))

    def mutated(self, architecture: Any, share: float) -> Any:
        return self._within(self._mutation(architecture, share))

    def _within(self, architecture: Any) -> Any:
        """Return an architecture within the limit; one above it where a hundred mutations do not lead below."""
        if self.limit is None:
            return architecture
        cost = self.limit.cost(architecture)
        for _ in range(_TRIES):
            if cost <= self.limit.most:
                break
            other = self._mutation(architecture, _CHEAPER)
            if (lower := self.limit.cost(other)) < cost:
                architecture, cost = other, lower
        return architecture

    def _mutation(self, architecture: Any, share: float) -> Any:
        return mutated(self.network, architecture, share, self.generator, self.max_skips)

    def choose(self, count: int) -> int:
        """Return a number below `count`, the smaller of two: a tournament among architectures in order."""
        return int(torch.randint(count, (2,), generator=self.generator).min())


def everything(network: Supernet) -> Iterator[Any]:
    """Yield all architectures of a space whose rows each keep one op."""
    rows = [(name, range(len(ops))) for name, group in network.groups.items() for ops in group.ops]
    for columns in product(*(choices for _, choices in rows)):
        picked: dict[str, list[int]] = {name: [] for name in network.groups}
        for (name, _), column in zip(rows, columns, strict=True):
            picked[name].append(column)
        yield network.derive(
            {
                name: nn.functional.one_hot(torch.tensor(row), network.groups[name].shape[1]).float()
                for name, row in picked.items()
            }
        )


def check_enumerable(network: Supernet) -> None:
    """Raise a ValueError that says why the architectures of a space cannot be enumerated."""
    count = math.prod(len(ops) for group in network.groups.values() for ops in group.ops)
    if not keeps_all_rows(network, network.random(torch.Generator())):
        raise ValueError("sampler 'enumeration' needs a space in which each row keeps an op; here edges are dropped")
    if count > MOST:
        raise ValueError(f"sampler 'enumeration' takes at most {MOST:,} architectures; this space has {count:,}")


def evolve(draws: Draws, score: Score, order: Order, cells: int, population: int, mutation: float) -> list[Scored]:
    """Score architectures in generations; each is bred from the best `population` before it.

    Half of a generation are crossings of two parents, half are mutations of one; parents win tournaments of two.

    Args:
        draws: where architectures come from.
        score: scores one.
        order: the survivors are the first in this order.
        cells: number of architectures in all; fewer where the space has no more.
        population: size of a generation.
        mutation: share of the rows that a mutation draws anew.

    Returns: all architectures that were scored, in their order.
    """
    known: dict[str, Scored] = {}

    def add(make: Callable[[], Any], count: int) -> None:
        for _ in range(min(count, cells - len(known))):
            for _ in range(_TRIES):
                architecture = make()
                key = architecture.to_json()
                if key not in known:
                    known[key] = score(architecture)
                    break

    add(draws.random, population)
    before = 0
    while before < len(known) < cells:
        before = len(known)
        parents = [one.architecture for one in order(list(known.values()))[:population]]

        def cross(parents: Sequence[Any] = parents) -> Any:
            return draws.crossed(parents[draws.choose(len(parents))], parents[draws.choose(len(parents))])

        def mutate(parents: Sequence[Any] = parents) -> Any:
            return draws.mutated(parents[draws.choose(len(parents))], mutation)

        add(cross, population // 2)
        add(mutate, population - population // 2)
    return list(known.values())
