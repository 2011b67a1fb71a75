"""Searches on several ranks, and on one process that computes the ranks' rows one after the other."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tiny_method import tiny_state
from torch import Tensor

from fastdarts.bilevel.ranks import ALONE, Ranks
from fastdarts.bilevel.step import TrainPass
from fastdarts.data.share import SharedBatch, share_of
from fastdarts.runs.local_state import own_random_numbers
from fastdarts.runs.search_state import SearchState


def numbers_of(state: SearchState) -> dict[str, Tensor]:
    """Weights, alphas and the weights' momentum."""
    found = {name: weight.detach().clone() for name, weight in state.network.named_parameters()}
    found |= {f"alpha {i}": alpha.detach().clone() for i, alpha in enumerate(state.network.arch_parameters())}
    for index, held in state.w_optimizer.state_dict()["state"].items():
        found[f"momentum {index}"] = held["exp_avg" if "exp_avg" in held else "momentum_buffer"].clone()
    return found


def start(method: str, ranks: Ranks, **fields: Any) -> SearchState:
    torch.set_default_dtype(torch.float64)
    state = tiny_state(method, ranks=ranks, **fields)
    apply, normalise = state.augment.apply, state.augment.normalise
    state.augment.apply = lambda images, draw: apply(images, draw).double()  # type: ignore[method-assign]
    state.augment.normalise = lambda images: normalise(images).double()  # type: ignore[method-assign]
    if method == "p-darts" and fields["epochs"] == 3:
        # The last stage has dropout on skip connections.
        torch.manual_seed(1)
        state.epoch = 2
        state._begin_epoch()
    return state


def searched(method: str, steps: int, fields: dict[str, Any]) -> dict[str, Tensor]:
    """Run steps on this rank of the process group."""
    state = start(method, Ranks.of_process_group(), **fields)
    for _ in range(steps):
        state.train_step()
    return numbers_of(state)


class Taking(Ranks):
    """Pretend to be one rank after the other for random numbers; nothing is sent."""

    def later_rows(self, draw: Any, count: int) -> Callable[[], Tensor]:
        share = self._share
        return (lambda: draw(count)) if share is None else (lambda: share.of(draw(share.total)))


def searched_in_shards(method: str, steps: int, size: int, fields: dict[str, Any]) -> dict[str, Tensor]:
    """Run steps in one process; every pass computes the rows of `size` ranks one after the other.

    The ranks draw the same numbers for ops and edges, so the method is wound back for each. Each has running statistics
    of its own, and random numbers of its own for noise and faults.
    """
    state = start(method, Taking(), **fields)
    network, architect, drawing = state.network, state.architect, state.method
    forward, kept = architect.forward, [[b.clone() for b in network.buffers()] for _ in range(size)]
    noise = [_noise_of(rank, state.config.seed) for rank in range(size)]

    def by_rank(batch: Any, run: Callable[[SharedBatch], Any]) -> list[Any]:
        before, made = copy.deepcopy(drawing.state_dict()), []
        for rank in range(size):
            drawing.load_state_dict(before)
            share = share_of(len(batch[0]), rank, size)
            for buffer, own in zip(network.buffers(), kept[rank], strict=True):
                buffer.data = own.clone()  # the pass before may need its own for backward
            torch.set_rng_state(noise[rank])
            made.append(run(SharedBatch(share.of(batch[0]), share.of(batch[1]), share)))
            noise[rank] = torch.get_rng_state()
            kept[rank] = [buffer.clone() for buffer in network.buffers()]
        return made

    def forward_by_rank(batch: Any) -> Any:
        losses, outputs = zip(*by_rank(batch, forward), strict=True)
        return torch.stack(losses).mean(), torch.cat(outputs)

    def gradients_by_rank(step: Any, batch: Any) -> TrainPass:
        losses, outputs, gradients = zip(*by_rank(batch, partial(weight_gradients, step)), strict=True)
        means = [None if own[0] is None else torch.stack(own).mean(0) for own in zip(*gradients, strict=True)]
        return TrainPass(torch.stack(losses).mean(), torch.cat(outputs), means)

    if method == "dna":  # which reads the images beside the pass
        weight_gradients = state.method.weight_gradients
        state.method.weight_gradients = gradients_by_rank  # type: ignore[method-assign]
    else:
        architect.forward = forward_by_rank  # type: ignore[method-assign]
    for _ in range(steps):
        state.train_step()
    return numbers_of(state)


def _noise_of(rank: int, seed: int) -> Tensor:
    """Return the state of torch's global generator with which a rank begins; that of the first is the present one."""
    ranks = Ranks()
    ranks.rank = rank
    own_random_numbers(ranks, seed)
    return torch.get_rng_state()


def searched_alone(method: str, steps: int, fields: dict[str, Any]) -> dict[str, Tensor]:
    """Run steps in one process on whole batches."""
    state = start(method, ALONE, **fields)
    for _ in range(steps):
        state.train_step()
    return numbers_of(state)
