"""Captured steps on several ranks draw for their rows what eager ones do."""

from pathlib import Path

import torch
from captured import DRAWING, CapturedOnTheCpu, captured_on_the_cpu
from spawned import on_ranks
from tiny_method import tiny_state
from torch import Tensor

from fastdarts.bilevel.ranks import Ranks
from fastdarts.data.share import SharedBatch, share_of

METHODS = ("p-darts",)


def searched(name: str, graph: bool) -> list[Tensor]:
    """Return alphas, weights, running statistics and generator after ten steps on this rank's rows of batches of 7."""
    torch.set_default_dtype(torch.float64)
    ranks = Ranks.of_process_group()
    state = tiny_state(name, ranks=ranks, alpha_warmup=0.0, cuda_graphs=graph, **DRAWING[name])
    CapturedOnTheCpu.state = state
    generator = torch.Generator().manual_seed(1)
    share = share_of(7, ranks.rank, ranks.size)
    for epoch in range(2):
        state.epoch = epoch + 1
        state._begin_epoch()
        for _ in range(5):
            images = torch.randn(2, 7, 1, 6, 6, generator=generator)
            targets = torch.randint(2, (2, 7), generator=generator)
            batches = (SharedBatch(share.of(x), share.of(y), share) for x, y in zip(images, targets, strict=True))
            state.search_step.step(*batches)
    assert len(state.search_step._replay.captured) == graph
    generators = [state.method.generator.get_state()]
    return [*state.network.arch_parameters(), *state.network.state_dict().values(), *generators]


def on_rank() -> list[list[list[Tensor]]]:
    with captured_on_the_cpu():
        return [[searched(name, graph) for graph in (True, False)] for name in METHODS]


def test_captured_steps_on_two_ranks(tmp_path: Path) -> None:
    first, second = on_ranks(2, on_rank, tmp_path)
    for (captured, eager), (elsewhere, _) in zip(first, second, strict=True):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(captured, eager, strict=True))
        assert torch.equal(captured[0], elsewhere[0])
        assert torch.equal(captured[-1], elsewhere[-1])
