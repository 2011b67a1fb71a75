"""Trainings of found networks on several ranks: synchronised batch norm, the average of the weights."""

from pathlib import Path
from typing import Any

import torch
from spawned import on_ranks
from torch import Tensor

from fastdarts.bilevel.ranks import ALONE, Ranks
from fastdarts.data import ImageData
from fastdarts.evaluate import EvalConfig
from fastdarts.runs.eval_state import EvalState
from fastdarts.spaces.darts.genotype import DARTS_V2

SMALL: dict[str, Any] = {"dataset": "digits", "init_channels": 2, "layers": 2, "batch_size": 8, "epochs": 2}
SYNC: dict[str, Any] = SMALL | {"sync_batch_norm": True, "drop_path": 0.0}
AVERAGED: dict[str, Any] = SMALL | {"ema_epochs": 1.0}


def state_of(fields: dict[str, Any], ranks: Ranks) -> EvalState:
    """Return a training on 21 images in float64: batches of 8, 8 and 5."""
    torch.set_default_dtype(torch.float64)
    noise = torch.randint(0, 256, (21, 1, 6, 6), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    images = ImageData(noise, torch.arange(21) % 2, ("even", "odd"), (0.5,), (0.3,))
    state = EvalState(DARTS_V2, EvalConfig(**fields, device="cpu"), images, None, torch.device("cpu"), ranks)
    apply = state.augment.apply
    state.augment.apply = lambda images, draw: apply(images, draw).double()  # type: ignore[method-assign]
    return state


def trained(fields: dict[str, Any], steps: int, ranks: Ranks) -> EvalState:
    state = state_of(fields, ranks)
    for _ in range(steps):
        state.train_step()
    return state


def on_rank() -> tuple[dict[str, Tensor], ...]:
    """Return a synchronised network; the average's statistics in an epoch, resumed there, and after the epoch."""
    ranks = Ranks.of_process_group()
    synchronised = trained(SYNC, 3, ranks).network.state_dict()
    state = trained(AVERAGED, 2, ranks)
    before = {name: buffer.clone() for name, buffer in state.buffers().items()}
    saved = ranks.from_first(state.state_dict())  # which all ranks make together
    resumed = state_of(AVERAGED, ranks)
    resumed.load_state_dict(saved)
    state.end_steps()
    return synchronised, before, resumed.buffers(), state.buffers()


def test_trainings_on_two_ranks(tmp_path: Path) -> None:
    """Synchronised, they are those of one process, also where rows do not divide.

    Running statistics of the average are each rank's own in an epoch, also after resuming there, and equal at its end.
    """
    first, second = on_ranks(2, on_rank, tmp_path)
    for name, whole in trained(SYNC, 3, ALONE).network.state_dict().items():
        # The loss takes logits in float32, whose gradients divide by other numbers of rows: 6e-8 of them, times lr.
        torch.testing.assert_close(first[0][name], whole, rtol=1e-7, atol=1e-7, msg=name)
    names = [name for name in first[1] if name.startswith("average.") and name.endswith("running_mean")]
    assert names
    assert not any(torch.equal(first[1][name], second[1][name]) for name in names)
    for rank in (first, second):
        assert all(torch.equal(buffer, rank[2][name]) for name, buffer in rank[1].items())
    assert all(torch.equal(buffer, second[3][name]) for name, buffer in first[3].items())
