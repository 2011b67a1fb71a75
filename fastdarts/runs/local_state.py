"""The part of a run's state that each rank has of its own: running statistics and random numbers."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdarts.bilevel.ranks import Ranks, RanksError
from fastdarts.runs import checkpoint


def local_state(buffers: Mapping[str, Tensor], device: torch.device) -> dict[str, Any]:
    """Return buffers by name, on the CPU, and the states of this rank's global generators."""
    held = {name: buffer.detach().cpu() for name, buffer in buffers.items()}
    return {"buffers": held, "random": checkpoint.random_state(device)}


@torch.no_grad()
def load_local_state(
    buffers: Mapping[str, Tensor], device: torch.device, saved: Sequence[Mapping[str, Any]], ranks: Ranks, seed: int
) -> None:
    """Restore what `local_state` returned on every rank.

    Args:
        buffers, device: as for `local_state`.
        saved: the local states of the ranks that saved. If there were as many as now, each rank gets its own; else all
            get the mean of the buffers, and a rank that was not there before random numbers from `seed`.
        ranks: the present ranks.
        seed: a number that differs between the positions of a run.
    """
    if ranks.rank < len(saved):
        checkpoint.set_random_state(saved[ranks.rank]["random"], device)
    else:
        own_random_numbers(ranks, seed)
    for name, buffer in buffers.items():
        values = [state["buffers"][name] for state in saved]
        if len(saved) == ranks.size:
            buffer.copy_(values[ranks.rank])
        else:
            buffer.copy_(torch.stack(values).mean(0) if buffer.is_floating_point() else values[0])


def own_random_numbers(ranks: Ranks, seed: int) -> None:
    """Seed torch's global generators on all ranks but the first, so that ops that draw noise draw their own."""
    if not ranks.first:
        torch.manual_seed(seed + 1_000_003 * ranks.rank)


@torch.no_grad()
def average_buffers(held: Iterable[Tensor], ranks: Ranks) -> None:
    """Give every rank the mean of the floating-point buffers; buffers that are equal already keep their bits."""
    buffers = [buffer for buffer in held if buffer.is_floating_point()]
    if ranks.alone or not buffers:
        return
    firsts = [buffer.clone() for buffer in buffers]
    ranks.spread(firsts)
    differences = ranks.sum([ranks.part(buffer - first) for buffer, first in zip(buffers, firsts, strict=True)])
    for buffer, first, difference in zip(buffers, firsts, differences, strict=True):
        buffer.copy_(first + difference)


def check_equal(state: Mapping[str, Any], ranks: Ranks, position: str) -> None:
    """Raise RanksError that names the ranks whose tensors differ from those of the first.

    Args:
        state: tensors in nested mappings and sequences, which must be equal on all ranks.
        ranks: the ranks.
        position: where the run is, for the message.
    """
    if ranks.alone:
        return
    digests = ranks.gather({name: digest(value) for name, value in state.items()})
    for name, expected in digests[0].items():
        wrong = [str(rank) for rank, found in enumerate(digests) if found[name] != expected]
        if wrong:
            raise RanksError(
                f"{name} of rank{'s' * (len(wrong) > 1)} {', '.join(wrong)} differ from those of rank 0 {position}: "
                "the ranks compute different things (other versions, hardware or code?), or memory is faulty"
            )


def digest(value: Any) -> str:
    """Return a hash of all tensors' bytes in nested mappings and sequences."""
    found = hashlib.sha256()
    for tensor in _tensors(value):
        found.update(tensor.detach().cpu().numpy().tobytes())
    return found.hexdigest()


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for key in value:
            yield from _tensors(value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
