"""Checkpoints of other configs, and damaged ones, without a step of training."""

import copy
import sys

import pytest
import torch
from tiny_search import tiny_config, tiny_images

from fastdarts.data import split
from fastdarts.runs import checkpoint
from fastdarts.runs.eval_config import EvalConfig
from fastdarts.runs.eval_state import EvalState
from fastdarts.runs.resuming import resume
from fastdarts.runs.search_state import SearchState
from fastdarts.spaces.darts.genotype import DARTS_V2

CPU = torch.device("cpu")


def search_state(out, **fields):
    first, second = split(tiny_images(), 0.5)
    config = tiny_config(out, **({"epochs": 6} | fields))
    return SearchState(config, first, second, torch.nn.functional.cross_entropy, CPU)


def saved(state, out, epoch=0):
    """The state as a checkpoint after some epochs."""
    state.epoch = epoch
    if isinstance(state, SearchState):
        state.history = state.history * (epoch + 1)
    state.metrics = [{"epoch": index, "lr": 0.01, "seconds": 1.0} for index in range(epoch)]
    content = state.state_dict()
    checkpoint.save(out / "checkpoint.pt", state.kind, content)
    return content


def test_more_epochs_are_allowed_and_said(tmp_path, capsys):
    saved(search_state(tmp_path), tmp_path, epoch=6)
    state = search_state(tmp_path, epochs=10)
    resume(state, tmp_path)
    assert state.epoch == 6
    said = capsys.readouterr().out
    assert said.startswith("resume: 6 epochs have become 10; from epoch 7 on the learning rate")
    assert f"that of a run of 10 from the start: {state.learning_rate():.4g}, after 0.01 in epoch 6" in said
    with pytest.raises(ValueError, match=r"another config \(epochs: 5, before 6\)"):
        resume(search_state(tmp_path, epochs=5), tmp_path)
    with pytest.raises(ValueError, match=r"another config \(lr: 0.07, before 0.05\); only benchmark, data, device"):
        resume(search_state(tmp_path, epochs=10, lr=0.07), tmp_path)


def test_an_exponential_schedule_goes_on_as_before(tmp_path, capsys):
    fields = {"dataset": "custom", "init_channels": 2, "layers": 1, "batch_size": 8, "out": tmp_path, "device": "cpu"}
    for epochs in (3, 5):
        config = EvalConfig(**fields, epochs=epochs, schedule="exponential")
        state = EvalState(DARTS_V2, config, tiny_images(), None, CPU)
        if epochs == 3:
            saved(state, tmp_path, epoch=3)
    resume(state, tmp_path)
    assert capsys.readouterr().out == "resume: 3 epochs have become 5; the learning rate goes on as before\n"


def test_methods_with_stages_refuse_where_the_stage_changes(tmp_path):
    fields = {"method": "p-darts", "layers": 3, "method_options": {"depth": (1.0, 1.0, 1.4)}}
    saved(search_state(tmp_path, **fields), tmp_path, epoch=2)  # the first epoch of the second stage
    with pytest.raises(ValueError, match=r"p-darts divides the epochs into stages, and epoch 3 is in another one"):
        resume(search_state(tmp_path, epochs=12, **fields), tmp_path)


def test_a_checkpoint_has_no_code_imported(tmp_path, monkeypatch):
    (tmp_path / "trap_of_checkpoint.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    content = saved(search_state(tmp_path), tmp_path)
    content["config"] = content["config"] | {"method": "trap_of_checkpoint:Trap"}
    checkpoint.save(tmp_path / "checkpoint.pt", "search", content)
    with pytest.raises(ValueError, match=r"another config \(method: darts, before trap_of_checkpoint:Trap\)"):
        resume(search_state(tmp_path), tmp_path)
    assert "trap_of_checkpoint" not in sys.modules


def test_damaged_contents_are_named_by_their_file(tmp_path):
    state = search_state(tmp_path)
    good = copy.deepcopy(saved(state, tmp_path))
    damaged = [{key: part for key, part in good.items() if key != name} for name in good]
    damaged += [good | {name: 3.5} for name in good if name not in ("seconds", "version", "fastdarts")]
    damaged += [
        good | {"config": good["config"] | {"epochs": "many"}},
        good | {"config": good["config"] | {"novelty": 1}},
        good | {"history": [{"normal": torch.ones(2)}]},
        good | {"network": {name: torch.ones(1) for name in good["network"]}},
        good | {"alphas": []},
        good | {"method": {"a": 1}},
        good | {"random": {"cpu": torch.ones(3)}},
    ]
    for content in damaged:
        content = {key: part for key, part in content.items() if key not in ("fastdarts", "version")}
        checkpoint.save(tmp_path / "checkpoint.pt", "search", content)
        with pytest.raises(ValueError, match=r"checkpoint\.pt"):
            resume(state, tmp_path)
