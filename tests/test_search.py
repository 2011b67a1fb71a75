"""A search end to end: what it finds, writes and says, and how it fails."""

import dataclasses
import errno
import gc
import json
import math
import os
import re
import shlex
import subprocess
import sys
import weakref
from datetime import datetime

import numpy as np
import pytest
import torch
from tiny_search import tiny_config, tiny_images
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.utils.data import Dataset

import fastdarts.search as search_module
from fastdarts import PRIMITIVES, Genotype
from fastdarts.config.files import DiskFullError
from fastdarts.methods.darts import Darts
from fastdarts.runs.search_config import SearchConfig
from fastdarts.runs.search_state import SearchState
from fastdarts.search import main, search


@pytest.fixture
def no_pictures(monkeypatch):
    """Drawing takes longer than a tiny search; only the tests that look at the pictures need them."""
    monkeypatch.setattr(search_module, "_write_results", lambda state, genotype, out: None)


def tiny_state(tmp_path, **fields):
    images = tiny_images()
    halves = images.subset(torch.arange(27)), images.subset(torch.arange(27, 48))
    return SearchState(tiny_config(tmp_path, **fields), *halves, cross_entropy, torch.device("cpu"))


def test_a_search_that_is_over_leaves_no_network(tmp_path):
    """Not even until Python looks for cycles: on a GPU the next search needs that memory."""
    gc.collect()
    gc.disable()
    try:
        state = tiny_state(tmp_path)
        network = weakref.ref(state.network)
        del state
        assert network() is None
    finally:
        gc.enable()


def test_digits_from_the_command_line(tmp_path, capsys):
    out = tmp_path / "run"
    argv = f"--layers 1 --init-channels 2 --order 1 --epochs 3 --batch-size 32 --device cpu --out {out}"
    assert main(argv.split()) == 0

    said = capsys.readouterr().out
    assert "scikit-learn" in said
    assert "--dataset cifar10" in said
    assert "--dataset imagefolder" in said
    assert re.search(r"^expected: about \d+\.\d\d GiB of memory, ", said, re.MULTILINE)
    assert f"python -m fastdarts.evaluate --dataset digits --genotype {out / 'genotype.json'}" in said.splitlines()[-1]

    epochs = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(line["event"], line["epoch"]) for line in epochs] == [("epoch", 0), ("epoch", 1), ("epoch", 2)]
    assert epochs[2]["train_loss"] < epochs[0]["train_loss"]
    assert epochs[2]["train_accuracy"] > epochs[0]["train_accuracy"]
    # 719 images, ten classes: guessing gets 0.1 with a standard deviation of 0.011
    assert epochs[2]["valid_accuracy"] > 0.3

    arrays = np.load(out / "alphas.npz")
    assert arrays["normal"].shape == arrays["reduce"].shape == (4, 14, 8)
    assert tuple(arrays["primitives"]) == PRIMITIVES
    assert (arrays["reduce"][0] != arrays["reduce"][3]).all()
    found = Genotype.load(out / "genotype.json")
    assert Genotype(**epochs[2]["genotype"]).reduce == [list(pair) for pair in found.reduce]
    assert SearchConfig.load(out / "config.json").layers == 1
    assert json.loads((out / "environment.json").read_text())["torch"] == torch.__version__
    for name in ("cells.svg", "cells.png", "alphas.png", "report.html", "checkpoint.pt"):
        assert (out / name).stat().st_size > 1000
    assert list((out / "tensorboard").glob("events.*"))


def test_module_runs_without_a_warning():
    command = [sys.executable, "-W", "error", "-m", "fastdarts.search", "--epochs", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "python -m fastdarts.search: epochs must be at least 1; got 0\n"


class TwoLabels(Dataset):
    """Someone's own data: is it light, is it dark; float images of odd, non-square size."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        light = index % 2
        return torch.full((2, 5, 7), float(light)), torch.tensor([light, 1 - light]).float()


@pytest.mark.usefixtures("no_pictures")
def test_the_printed_command_trains_what_was_searched(tmp_path, capsys):
    out = tmp_path / "a run"
    argv = "--layers 1 --init-channels 2 --order 1 --epochs 1 --batch-size 64 --device cpu --image-size 6x5"
    assert main([*argv.split(), "--out", str(out)]) == 0
    command = capsys.readouterr().out.splitlines()[-1].partition("from scratch: ")[2]
    name = str(out / "genotype.json")
    assert shlex.split(command)[2:] == [
        *("fastdarts.evaluate", "--dataset", "digits", "--image-size", "6x5", "--genotype", name)
    ]


@pytest.mark.usefixtures("no_pictures")
def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Stopped:
        @staticmethod
        def now():
            return datetime(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr("fastdarts.runs.folder.datetime", Stopped)
    config = dataclasses.replace(tiny_config(tmp_path, epochs=1), out=None)
    found = [search(config, train=tiny_images()).out_dir for _ in range(2)]
    assert [path.name for path in found] == ["search-custom-20260102-030405", "search-custom-20260102-030405-2"]


def test_a_checkpoint_of_another_kind_of_device_goes_on(tmp_path):
    """Generators of GPUs have other states: 16 bytes."""
    state, again = tiny_state(tmp_path), tiny_state(tmp_path)
    saved = state.state_dict()
    saved["augment"] = {"generator": torch.zeros(16, dtype=torch.uint8)}
    again.load_state_dict(saved)
    again.train_step()


@pytest.mark.usefixtures("no_pictures")
def test_own_dataset_loss_and_callbacks(tmp_path):
    seen = []

    def callback(metrics, network):
        seen.append((metrics["epoch"], network.in_channels))
        return metrics["epoch"] == 1

    config = tiny_config(tmp_path, dataset="digits", epochs=5)
    result = search(config, train=TwoLabels(30), loss=binary_cross_entropy_with_logits, callbacks=[callback])
    assert seen == [(0, 2), (1, 2)]  # ended by the callback
    assert result.metrics[1]["train_loss"] < result.metrics[0]["train_loss"]
    assert result.metrics[0]["train_accuracy"] is None  # no classes
    assert result.metrics[0]["valid_accuracy"] is None
    assert SearchConfig.load(tmp_path / "config.json").dataset == "custom"


@pytest.mark.usefixtures("no_pictures")
def test_own_images_of_the_alphas_half(tmp_path):
    images = tiny_images()
    result = search(tiny_config(tmp_path, epochs=1), train=images, valid=images.subset(torch.arange(6)))
    assert len(result.metrics) == 1
    with pytest.raises(ValueError, match=r"\[2, 5, 7\].*\[1, 6, 6\].*must be alike"):
        search(tiny_config(tmp_path / "b"), train=images, valid=TwoLabels(4))
    smaller = dataclasses.replace(images, images=images.images[..., :5])
    with pytest.raises(ValueError, match=r"valid must be like train, images \[1, 6, 6\].*got images \[1, 6, 5\]"):
        search(tiny_config(tmp_path / "b"), train=images, valid=smaller)
    with pytest.raises(ValueError, match="valid was given without train"):
        search(tiny_config(tmp_path / "b"), valid=images)
    with pytest.raises(ValueError, match="'custom' is for images given from Python"):
        search(tiny_config(tmp_path / "b"))
    assert not (tmp_path / "b").exists()


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("fields", [{}, {"order": 2}, {"amp": True}], ids=str)
def test_the_seed_decides_every_bit(tmp_path, fields):
    def alphas(name, seed):
        config = tiny_config(tmp_path / name, seed=seed, deterministic=True, epochs=1, **fields)
        result = search(config, train=tiny_images())
        return torch.stack([result.alphas_normal, result.alphas_reduce])

    first, again, other = alphas("a", 0), alphas("b", 0), alphas("c", 1)
    assert first.isfinite().all()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.are_deterministic_algorithms_enabled()


def test_learning_rate_is_the_originals():
    method = Darts(SearchConfig(dataset="cifar10"))

    def rate(epoch):
        method.begin_epoch(epoch)
        return method.learning_rate()

    assert rate(0) == pytest.approx(0.025, rel=1e-12)
    assert rate(25) == pytest.approx(0.013, rel=1e-12)
    assert rate(49) == pytest.approx(0.0010236, abs=1e-7)


def test_a_trial_step_changes_nothing(tmp_path):
    state = tiny_state(tmp_path, order=2)
    state.train_step()

    def copy():
        return flatten(state.state_dict())

    before = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in copy().items()}
    state.trial_step(5)
    after = copy()
    assert before.keys() == after.keys()
    changed = [name for name, value in before.items() if not same(value, after[name])]
    assert changed == []


def flatten(value, name=""):
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for part, inner in items for key, leaf in flatten(inner, f"{name}.{part}").items()}
    return {name: value}


def same(a, b):
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_validation_is_the_mean_over_the_half_with_running_statistics(tmp_path):
    state = tiny_state(tmp_path)
    state.train_step()
    loss, accuracy = state.validate(lambda: None)
    half = state.streams[1].data
    with torch.no_grad():
        outputs = state.network.eval()((half.images.float() / 255 - 0.5) / 0.3)
    # two sums of 21 terms of order one in float32
    assert loss == pytest.approx(float(cross_entropy(outputs, half.targets)), rel=1e-5)
    assert accuracy == pytest.approx(float((outputs.argmax(1) == half.targets).double().mean()))


def test_both_halves_are_walked_without_replacement(tmp_path):
    state = tiny_state(tmp_path)
    assert state.steps_per_epoch == 3
    for stream, count in zip(state.streams, (27, 21), strict=True):
        images = torch.cat([stream.next()[0] for _ in range(3)])
        assert len(images) == count
        assert sorted(images.flatten(1).tolist()) == sorted(stream.data.images.flatten(1).tolist())


class FailingLoss:
    """Cross entropy until it is armed; then the call of that number fails."""

    def __init__(self, fail):
        self.fail = fail
        self.calls_left = math.inf

    def __call__(self, outputs, targets):
        loss = cross_entropy(outputs, targets)
        self.calls_left -= 1
        return self.fail(loss, outputs) if self.calls_left == 0 else loss

    def arm(self, calls):
        """To fail at this call in epoch 2: step s of a first-order search makes calls 2s - 1 (alphas) and 2s (weights).
        Validation calls it as well, but only after them."""

        def callback(metrics, network):
            self.calls_left = calls

        return callback


def bad_value(loss, outputs):
    return loss * math.inf


def bad_gradient(loss, outputs):
    return loss + (0 * outputs.sum()).abs().sqrt()  # adds 0, whose derivative is not finite


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("fail", "call", "where"),
    [
        (bad_value, 1, "the loss of the alpha step is inf in epoch 2, step 1"),
        (bad_gradient, 3, "the alphas' gradient is nan in epoch 2, step 2"),
        (bad_value, 4, "the loss of the weight step is inf in epoch 2, step 2"),
        (bad_gradient, 6, "the weights' gradient is nan in epoch 2, step 3"),
    ],
)
def test_not_finite(tmp_path, fail, call, where):
    loss = FailingLoss(fail)
    config = tiny_config(tmp_path, save_every_steps=1)
    with pytest.raises(FloatingPointError, match=where):
        search(config, train=tiny_images(), loss=loss, callbacks=[loss.arm(call)])
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert (saved["epoch"], saved["step"]) == (1, (call - 1) // 2)  # of the last good step
    assert all(tensor.isfinite().all() for tensor in saved["network"].values())
    assert all(tensor.isfinite().all() for tensor in saved["alphas"])


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_in_the_middle(tmp_path, error):
    def fail(loss, outputs):
        raise error

    loss = FailingLoss(fail)
    message = r"out of memory on cpu with batch_size 9: the largest batch that fits is about \d+"
    with pytest.raises(MemoryError, match=message):
        search(tiny_config(tmp_path), train=tiny_images(), loss=loss, callbacks=[loss.arm(2)])


@pytest.mark.usefixtures("no_pictures")
def test_full_disk(tmp_path, monkeypatch):
    def fill_the_disk(metrics, network):
        def full(descriptor):
            raise OSError(errno.ENOSPC, "no space left on device")

        monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(DiskFullError, match=rf"disk is full: {tmp_path / 'metrics.jsonl'} could not be written"):
        search(tiny_config(tmp_path), train=tiny_images(), callbacks=[fill_the_disk])
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["epoch"] == 1  # the good one stays


@pytest.mark.parametrize("device", ["tpu", "mps", "cuda:99", "cpu:x"])
def test_devices_that_are_not_there(tmp_path, device):
    with pytest.raises(ValueError, match=f"device.*'{device}'"):
        search(tiny_config(tmp_path, device=device), train=tiny_images())


def test_out_must_be_a_folder_that_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=f"out: {tmp_path}/file is no folder"):
        search(tiny_config(tmp_path / "file" / "run"), train=tiny_images())
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=f"out: nothing can be written into {tmp_path}; choose another folder"):
        search(tiny_config(tmp_path / "run"), train=tiny_images())


def test_one_class_is_refused(tmp_path):
    images = tiny_images()
    alone = dataclasses.replace(images, targets=images.targets * 0, classes=("photos",))
    with pytest.raises(ValueError, match=r"all of one class, photos: .* one folder too high"):
        search(tiny_config(tmp_path / "run"), train=alone)
    assert not (tmp_path / "run").exists()


def test_too_few_layers_for_a_normal_cell_are_told(tmp_path, capsys, no_pictures):
    for layers, told in ((2, True), (3, False)):
        search(tiny_config(tmp_path / str(layers), layers=layers, epochs=1), train=tiny_images())
        assert ("the normal cell stays as drawn" in capsys.readouterr().out) == told


def test_a_folder_with_a_search_is_not_overwritten(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=f"out: {tmp_path} holds a run already; continue it with --resume"):
        search(tiny_config(tmp_path), train=tiny_images())
