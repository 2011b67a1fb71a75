"""Carry weights over into a wider network between two stages of a search (DrNAS, Chen et al., ICLR 2021, section 3.3).

Where the ops of an edge see more channels than before, each further channel copies an old one, which is drawn, with the
momentum of its weights. All that has the same shape in both networks is copied as it is.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastdarts.primitives.modules import FactorizedReduce
from fastdarts.spaces.supernet import Choices, Supernet

Pair = tuple[nn.Module, nn.Module, "Channels"]


class Channels:
    """Draw, for the dimensions of an op's tensors, the old channel that each new one copies.

    Args:
        generator: generator on the CPU.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator
        self._sources: dict[tuple[int, int], Tensor] = {}
        self._of_halves: dict[tuple[int, int], Tensor] = {}

    def sources(self, old: int, new: int) -> Tensor:
        """Return the old channel of each new one [new]: the old ones in their order, then drawn ones.

        Dimensions of the same two sizes get the same channels.
        """
        if (old, new) not in self._sources:
            more = torch.randint(old, (new - old,), generator=self._generator)
            self._sources[old, new] = torch.cat([torch.arange(old), more])
        return self._sources[old, new]

    def join_halves(self, old: int, new: int) -> None:
        """Let `old` and `new` output channels be two halves, of each of which the same channels are copied."""
        half = self.sources(old // 2, new // 2)
        self._of_halves[old, new] = torch.cat([half, half + old // 2])

    def widen(self, tensor: Tensor, shape: torch.Size) -> Tensor:
        """Return a tensor of this shape whose further channels, in any dimension, are copies."""
        for dim, (old, new) in enumerate(zip(tensor.shape, shape, strict=True)):
            if old != new:
                halves = self._of_halves.get((old, new)) if dim == 0 else None
                sources = self.sources(old, new) if halves is None else halves
                tensor = tensor.index_select(dim, sources.to(tensor.device))
        return tensor


@torch.no_grad()
def carry_over(
    old: Supernet,
    new: Supernet,
    old_optimizer: Optimizer,
    new_optimizer: Optimizer,
    generator: torch.Generator,
) -> None:
    """Give a new network the weights, buffers and alphas of an old one, and its optimizer the momentum of the weights.

    Args:
        old, new: networks of one space. Ops that only one of them has keep their initial weights; so have alphas, if
            their shapes differ.
        old_optimizer, new_optimizer: SGD over their weights.
        generator: draws the channels that are copied.

    Raises:
        ValueError: a tensor would have to become narrower.
    """
    for ours, theirs, channels in _pairs(old, new, generator):
        if isinstance(theirs, FactorizedReduce) and isinstance(ours, FactorizedReduce):
            channels.join_halves(ours.bn.num_features, theirs.bn.num_features)
        sources = dict(ours.named_parameters()) | dict(ours.named_buffers())
        for name, target in [*theirs.named_parameters(), *theirs.named_buffers()]:
            source = sources[name]
            if any(a > b for a, b in zip(source.shape, target.shape, strict=True)):
                raise ValueError(f"{name} cannot become narrower: {tuple(source.shape)} to {tuple(target.shape)}")
            target.copy_(channels.widen(source, target.shape))
            momentum = old_optimizer.state[source].get("momentum_buffer") if source in old_optimizer.state else None
            if momentum is not None:
                _set_momentum(new_optimizer, target, channels.widen(momentum, target.shape))
    for before, after in zip(old.arch_parameters(), new.arch_parameters(), strict=True):
        if before.shape == after.shape:
            after.copy_(before)


def _pairs(old: Supernet, new: Supernet, generator: torch.Generator) -> Iterator[Pair]:
    """Yield the modules of both networks that belong together: ops of edges by their names, all else by its path."""
    inside: set[int] = set()
    for group in new.groups:
        for cell, wider in zip(old.mixed_ops(group), new.mixed_ops(group), strict=True):
            for before, after in zip(cell, wider, strict=True):
                inside |= {id(module) for op in after._ops for module in op.modules()}
                known = _named(before)
                for name, op in _named(after).items():
                    if name in known:
                        yield known[name], op, Channels(generator)
    rest = dict(old.named_modules())
    for path, module in new.named_modules():
        if id(module) not in inside and not any(True for _ in module.children()):
            yield rest[path], module, Channels(generator)


def _named(row: Choices) -> dict[tuple[str, int], nn.Module]:
    """Return the ops of a row by their names, with the number of those of the same name before them."""
    names = row.primitives
    return {(name, names[:column].count(name)): row._ops[column] for column, name in enumerate(names)}


def _set_momentum(optimizer: Optimizer, weight: Tensor, momentum: Tensor) -> None:
    held = optimizer.state[weight].get("momentum_buffer")
    if held is None:
        optimizer.state[weight]["momentum_buffer"] = torch.empty_like(weight).copy_(momentum)
    else:
        held.copy_(momentum)
