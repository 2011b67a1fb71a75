"""Searches whose alphas cannot move, or have not."""

import torch
from tiny_search import tiny_config, tiny_images

from fastdarts.data import split
from fastdarts.runs import movement
from fastdarts.runs.search_config import SearchConfig
from fastdarts.runs.search_state import SearchState


def state_of(tmp_path, **fields) -> SearchState:
    first, second = split(tiny_images(), 0.5)
    return SearchState(
        tiny_config(tmp_path, **fields), first, second, torch.nn.functional.cross_entropy, torch.device("cpu")
    )


def test_few_steps_at_the_papers_rate_are_told_before(tmp_path):
    (note,) = movement.before(state_of(tmp_path, epochs=10, arch_lr=3e-4))
    assert "30 steps at arch_lr 0.0003 move an alpha by at most about 0.009" in note
    assert "--small-data has defaults for few images; or give more epochs, smaller batches or --arch-lr 0.03" in note
    assert movement.before(state_of(tmp_path, epochs=10, arch_lr=0.03)) == []
    assert movement.before(state_of(tmp_path, epochs=10, arch_lr=3e-4, method="random")) == []


def test_alphas_that_hardly_moved_are_told_after(tmp_path):
    state = state_of(tmp_path)
    state.history.append({name: value + 0.05 for name, value in state.history[0].items()})
    (note,) = movement.after(state)
    assert "the alphas hardly moved, by 0.05 at most" in note
    state.history.append({name: value + 0.5 for name, value in state.history[0].items()})
    assert movement.after(state) == []


def test_the_small_preset():
    config = SearchConfig(dataset="imagefolder", small_data=True)
    assert (config.batch_size, config.arch_lr) == (16, 3e-3)
    assert SearchConfig(dataset="imagefolder", small_data=True, batch_size=32).batch_size == 32
    assert SearchConfig(dataset="imagefolder", small_data=True, method="pc-darts").batch_size == 16
