"""Cross and mutate architectures of any space, by the rows of its groups."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastdarts.mixed.mix import Mix
from fastdarts.spaces.group import Choice, Group
from fastdarts.spaces.supernet import Supernet

_NOISE = 1e-3  # breaks ties where a row gives no op, which a derived cell must have


def crossed(
    network: Supernet, first: Any, second: Any, share: float, generator: torch.Generator, max_skips: int | None = None
) -> Any:
    """Return `first` with about a `share` of its rows taken from `second`.

    The edges that enter a node of a cell come from one parent, unless all of them are kept in both. An op that the
    space's derivation never keeps (`none` in a cell of DARTS) is replaced at random.

    Args:
        network: the search network of both.
        first, second: architectures.
        share: probability that a row, or a node's edges, come from `second`.
        generator: on the CPU.
        max_skips: most skip connections, see `Choice`.
    """
    ours, theirs = network.mixes_of(first), network.mixes_of(second)
    scores = {}
    for name, group in network.groups.items():
        taken = torch.zeros(len(group.ops), 1, dtype=torch.bool)
        for rows in _parts(group, ours[name], theirs[name]):
            taken[rows] = bool(torch.rand((), generator=generator) < share)
        chosen = torch.where(taken, _weights(theirs[name], group), _weights(ours[name], group))
        scores[name] = chosen + _NOISE * torch.rand(chosen.shape, generator=generator)
    return network.derive(scores, Choice(max_skips=max_skips))


def mutated(
    network: Supernet, architecture: Any, share: float, generator: torch.Generator, max_skips: int | None = None
) -> Any:
    """Return an architecture with about a `share` of its rows drawn anew; see `crossed`."""
    fresh = network.random(generator, max_skips)
    return crossed(network, architecture, fresh, share, generator, max_skips)


def keeps_all_rows(network: Supernet, architecture: Any) -> bool:
    """Return True if each row of the architecture has an op, so that rows can be chosen one by one."""
    return all(mix.active is not None and all(mix.active) for mix in network.mixes_of(architecture).values())


def _weights(mix: Mix, group: Group) -> Tensor:
    return mix.weights[:, : group.shape[1]].float().cpu()


def _parts(group: Group, first: Mix, second: Mix) -> Iterator[slice]:
    """Yield the rows that go together."""
    assert first.active is not None
    assert second.active is not None
    whole = group.entering() if group.ends else [slice(row, row + 1) for row in range(len(group.ops))]
    for rows in whole:
        if all(first.active[rows]) and all(second.active[rows]):
            yield from (slice(row, row + 1) for row in range(rows.start, rows.stop))
        else:
            yield rows
