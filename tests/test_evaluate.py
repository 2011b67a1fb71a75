"""Training of discrete networks: schedules, a step by hand, results, resume, test only, the command line."""

import copy
import dataclasses
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from fastdarts import DARTS_V1, DARTS_V2, EvalNetwork, Genotype
from fastdarts.data import ImageData
from fastdarts.evaluate import EvalConfig, evaluate, main
from fastdarts.runs.eval_state import EvalState
from fastdarts.runs.interrupt import Interrupted
from fastdarts.runs.kernels import kernels_used
from fastdarts.spaces.darts.discrete import count_multiply_adds

TINY: dict[str, Any] = {"init_channels": 4, "layers": 2, "batch_size": 128, "device": "cpu"}
FEW: dict[str, Any] = TINY | {"batch_size": 16, "epochs": 3, "deterministic": True, "drop_path": 0.3, "lr": 0.1}


def few_images(count: int = 40, shape: tuple[int, int, int] = (1, 6, 5), classes: int = 3, seed: int = 0) -> ImageData:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=generator)
    targets = torch.arange(count) % classes
    return ImageData(images, targets, tuple("abcdefghij"[:classes]), (0.5,) * shape[0], (0.3,) * shape[0])


def state_of(config: EvalConfig, train: ImageData | None = None, genotype: Genotype = DARTS_V2) -> EvalState:
    return EvalState(genotype, config, train or few_images(), None, torch.device("cpu"))


def test_papers_values_for_cifar10() -> None:
    config = EvalConfig(dataset="cifar10")
    named = {
        "stem": "cifar",
        "init_channels": 36,
        "layers": 20,
        "auxiliary": True,
        "drop_path": 0.2,
        "epochs": 600,
        "batch_size": 96,
        "lr": 0.025,
        "schedule": "cosine",
        "momentum": 0.9,
        "weight_decay": 3e-4,
        "grad_clip": 5.0,
        "auxiliary_weight": 0.4,
        "label_smoothing": 0.0,
        "cutout": 16,
        "crop_padding": 4,
        "flip": True,
    }
    assert {name: getattr(config, name) for name in named} == named


def test_papers_values_for_imagenet() -> None:
    config = EvalConfig(dataset="imagenet")
    named = {
        "stem": "imagenet",
        "image_size": (256, 256),
        "augment": "imagenet",
        "init_channels": 48,
        "layers": 14,
        "drop_path": 0.0,
        "epochs": 250,
        "batch_size": 128,
        "lr": 0.1,
        "schedule": "exponential",
        "lr_decay": 0.97,
        "weight_decay": 3e-5,
        "label_smoothing": 0.1,
        "cutout": 0,
    }
    assert {name: getattr(config, name) for name in named} == named


def test_schedules() -> None:
    small = {"init_channels": 4, "layers": 1, "device": "cpu"}
    state = state_of(EvalConfig(dataset="cifar10", **small))
    assert (state.learning_rate(), state.drop_path()) == (0.025, 0)
    state.epoch = 300
    assert state.learning_rate() == pytest.approx(0.0125)
    assert state.drop_path() == pytest.approx(0.1)
    state.epoch = 599
    assert state.learning_rate() == pytest.approx(0.025 / 2 * (1 + math.cos(math.pi * 599 / 600)))
    assert state.drop_path() == pytest.approx(0.19967, abs=5e-6)
    state = state_of(EvalConfig(dataset="imagenet", **small), few_images(shape=(3, 16, 16)))
    state.epoch = 249
    assert state.learning_rate() == pytest.approx(5.08e-5, rel=1e-3)


def test_a_step_equals_formula() -> None:
    """Loss of both heads with smoothed targets, gradient clipped by its global norm, SGD with weight decay."""
    smoothing, weight, clip, decay = 0.2, 0.4, 0.05, 0.01
    config = EvalConfig(
        **TINY | {"drop_path": 0.0, "lr": 0.3, "grad_clip": clip, "weight_decay": decay, "label_smoothing": smoothing}
    )
    state = state_of(config)
    state.network.double().train()
    twin = copy.deepcopy(state.network)
    images, targets = torch.randn(6, 1, 6, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0])

    def cross_entropy(logits: Tensor) -> Tensor:
        share = torch.full_like(logits, smoothing / 3)
        share[torch.arange(6), targets] += 1 - smoothing
        return -(share * (logits - logits.exp().sum(1, keepdim=True).log())).sum(1).mean()

    logits, auxiliary = twin(images)
    loss = cross_entropy(logits) + weight * cross_entropy(auxiliary)
    gradients = torch.autograd.grad(loss, list(twin.parameters()))
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
    assert norm > clip
    measured = state.train_batches([(images, targets)])
    # the state takes logits to float32 for the loss: 2^-24 relative, a few dozen roundings
    assert measured["train_loss"].item() == pytest.approx(cross_entropy(logits).item(), rel=1e-5)
    assert measured["gradient_norm"].item() == pytest.approx(norm, rel=1e-5)
    for before, after, gradient in zip(twin.parameters(), state.network.parameters(), gradients, strict=True):
        expected = before - 0.3 * (gradient * clip / (norm + 1e-6) + decay * before)
        torch.testing.assert_close(after, expected, rtol=0, atol=1e-5 * 0.3 * clip)


def test_digits_are_learned_and_everything_is_written(tmp_path: Path) -> None:
    config = EvalConfig(**TINY | {"epochs": 5, "batch_size": 64, "out": tmp_path / "run"})
    result = evaluate(DARTS_V2, config)
    assert result.test_accuracy > 0.6  # chance is 0.1
    assert result.test_error == pytest.approx(100 * (1 - result.test_accuracy))
    assert result.metrics[-1]["train_loss"] < result.metrics[0]["train_loss"] / 2
    assert not result.network.training

    network = EvalNetwork(DARTS_V2, C=4, layers=2, in_channels=1)
    with_head = sum(weight.numel() for weight in network.parameters())
    head = sum(weight.numel() for weight in network.auxiliary_head.parameters())
    assert (result.parameters, result.parameters_with_auxiliary) == (with_head - head, with_head)
    assert result.multiply_adds == count_multiply_adds(network, (1, 8, 8))

    out = tmp_path / "run"
    assert {path.name for path in out.iterdir()} >= {"checkpoint.pt", "environment.json", "cells.svg", "report.html"}
    written = json.loads((out / "result.json").read_text())
    assert written["test_accuracy"] == result.test_accuracy == result.metrics[-1]["test_accuracy"]
    assert (written["parameters"], written["epochs"], written["image_shape"]) == (result.parameters, 5, [1, 8, 8])
    assert written["classes"] == list("0123456789")
    assert Genotype.load(out / "genotype.json") == DARTS_V2
    assert dataclasses.replace(EvalConfig.load(out / "config.json"), out=config.out) == config
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines == result.metrics
    assert [line["epoch"] for line in lines if line["event"] == "epoch"] == list(range(5))
    assert [line["drop_path"] for line in lines] == pytest.approx([0.0, 0.02, 0.04, 0.06, 0.08])
    assert lines[0].keys() >= {"train_loss", "train_accuracy", "test_loss", "test_accuracy", "lr", "images_per_second"}


def weights_after(out: Path) -> dict[str, Tensor]:
    return torch.load(out / "checkpoint.pt", weights_only=True)["network"]


@pytest.mark.parametrize("how", ["crash", "SIGTERM"])
def test_a_resumed_training_is_bit_identical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Stopped in the second epoch: by an error (going on from the epoch's start), or asked to (from that step)."""
    train, test = few_images(), few_images(20, seed=1)
    config = EvalConfig(**FEW, dataset="custom", out=tmp_path / "whole")
    evaluate(DARTS_V2, config, train, test)

    step = EvalState.train_batches
    batches = 3  # 40 images, 16 a batch

    def stopped(self: EvalState, *arguments: Any) -> Any:
        if self.steps_done == batches + 1:
            if how == "crash":
                raise RuntimeError("power cut")
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)

    parts = dataclasses.replace(config, out=tmp_path / "parts")
    with monkeypatch.context() as patch:
        patch.setattr(EvalState, "train_batches", stopped)
        with pytest.raises(RuntimeError if how == "crash" else Interrupted) as caught:
            evaluate(DARTS_V2, parts, train, test)
    if how == "SIGTERM":
        assert "stopped by SIGTERM in epoch 2, step 2; to continue: " in str(caught.value)
    result = evaluate(DARTS_V2, dataclasses.replace(parts, resume=True), train, test)

    assert [line["epoch"] for line in result.metrics] == [0, 1, 2]
    whole = weights_after(tmp_path / "whole")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights_after(tmp_path / "parts").items())
    assert whole.keys() == weights_after(tmp_path / "parts").keys()


def test_export_must_be_writable_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = EvalConfig(**FEW, dataset="custom", out=tmp_path / "run", export=tmp_path / "file" / "net")
    with pytest.raises(ValueError, match=f"export: {tmp_path}/file is no folder"):
        evaluate(DARTS_V2, config, few_images(), few_images(20, seed=1))
    assert not (tmp_path / "run").exists()


def test_resume_refuses_another_config_or_genotype(tmp_path: Path) -> None:
    train, test = few_images(), few_images(20, seed=1)
    config = EvalConfig(**FEW | {"epochs": 1}, dataset="custom", out=tmp_path)
    evaluate(DARTS_V2, config, train, test)
    with pytest.raises(ValueError, match="holds a run already; continue it with --resume"):
        evaluate(DARTS_V2, config, train, test)
    again = dataclasses.replace(config, resume=True)
    with pytest.raises(ValueError, match=r"another config \(lr: 0.2, before 0.1\); only data, device, export"):
        evaluate(DARTS_V2, dataclasses.replace(again, lr=0.2), train, test)
    with pytest.raises(ValueError, match="another genotype was trained"):
        evaluate(DARTS_V1, again, train, test)
    assert evaluate(DARTS_V2, again, train, test).epochs == 1


def test_test_only(tmp_path: Path) -> None:
    train, test = few_images(), few_images(20, seed=1)
    config = EvalConfig(**FEW | {"epochs": 2}, dataset="custom", out=tmp_path / "run")
    trained = evaluate(DARTS_V2, config, train, test)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}

    bare = tmp_path / "weights.pt"  # as the original code saves them; one trained without auxiliary head
    weights = trained.network.state_dict()
    torch.save({name: value for name, value in weights.items() if not name.startswith("auxiliary_head.")}, bare)
    for file in (tmp_path / "run" / "checkpoint.pt", bare):
        tested = evaluate(DARTS_V2, dataclasses.replace(config, out=None, test_only=True, checkpoint=file), train, test)
        assert (tested.test_accuracy, tested.test_loss) == (trained.test_accuracy, trained.test_loss)
        assert (tested.out_dir, tested.epochs, tested.parameters) == (None, 0, trained.parameters)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before

    def message(file: Path, **changes: Any) -> str:
        other = dataclasses.replace(config, out=None, test_only=True, checkpoint=file, **changes)
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            evaluate(DARTS_V2, other, train, test)
        return str(caught.value)

    assert "of another network (of another shape: cells.0." in message(bare, init_channels=6)
    assert "of another network (missing: cells.0._ops.0.op.1.weight, " in message(bare, layers=3)
    assert "there is no checkpoint" in message(tmp_path / "absent.pt")
    cut = tmp_path / "cut.pt"
    cut.write_bytes(bare.read_bytes()[:3000])
    assert "is damaged or not a checkpoint" in message(cut)
    torch.save({"epoch": 3}, cut)
    assert "holds no state_dict" in message(cut)


def test_own_images_and_loss(tmp_path: Path) -> None:
    """Several labels an image, float images that are not square: no accuracy, no classes."""
    images, targets = torch.randn(30, 2, 9, 4), (torch.rand(30, 5) > 0.5).float()
    part = ImageData(images, targets, (), (0.0, 0.0), (1.0, 1.0))
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    result = evaluate(DARTS_V1, EvalConfig(**FEW | {"epochs": 1}, out=tmp_path), part, part, loss)
    assert math.isnan(result.test_accuracy)
    assert result.network.classifier.out_features == 5
    with torch.no_grad():
        expected = loss(result.network(images), targets)
    assert result.test_loss == pytest.approx(float(expected), rel=1e-5)
    assert json.loads((tmp_path / "result.json").read_text())["test_accuracy"] is None


def test_a_last_batch_of_one_image_is_left_out(tmp_path: Path) -> None:
    part = few_images(33)
    result = evaluate(DARTS_V2, EvalConfig(**FEW | {"epochs": 1}, out=tmp_path), part, part)
    assert result.epochs == 1  # 16 + 16 + 1: batch norm behind a 1x1 map needs two images


def test_imagenet_is_an_image_folder_with_its_own_statistics(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            for index in range(2):
                Image.new("RGB", (20 + index, 30), (60 * index, 100, 0)).save(tmp_path / split / label / f"{index}.png")
    config = EvalConfig(
        **TINY | {"batch_size": 4}, dataset="imagenet", data=tmp_path, image_size=(32, 32), epochs=1, out=tmp_path / "o"
    )
    result = evaluate(DARTS_V2, config)
    assert hasattr(result.network, "stem1")
    written = json.loads((tmp_path / "o" / "result.json").read_text())
    assert written["image_shape"] == [3, 28, 28]  # 7/8 of the images' sides
    assert (written["mean"], written["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert written["classes"] == ["cat", "dog"]


def test_amp_trains_float32_weights(tmp_path: Path) -> None:
    part = few_images()
    result = evaluate(DARTS_V2, EvalConfig(**FEW | {"epochs": 1, "amp": True}, out=tmp_path), part, part)
    assert all(weight.dtype == torch.float32 for weight in result.network.parameters())
    assert math.isfinite(result.test_loss)


def test_a_loss_that_is_not_finite_says_where_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        value = torch.nn.functional.cross_entropy(logits, targets)
        return value * math.nan if len(calls) > enough else value

    calls: list[int] = []
    # two heads a step: three steps of the forecast, three of the first epoch, three test batches, one step more
    enough = 2 * (3 + 3) + 3 + 2
    part = few_images()
    with pytest.raises(FloatingPointError, match=r"the loss is nan in epoch 2, step 2"):
        evaluate(DARTS_V2, EvalConfig(**FEW, out=tmp_path), part, part, loss)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["epoch"] == 1
    assert all(torch.isfinite(value).all() for value in weights_after(tmp_path).values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "imagenet", "cutout": 16}, "crop_padding and cutout must be 0 with augment 'imagenet'"),
        ({"batch_size": 1}, "batch_size must be at least 2; got 1"),
        ({"drop_path": 1.0}, "drop_path must be below 1; got 1.0"),
        ({"schedule": "step"}, "schedule must be one of cosine, exponential; got 'step'"),
        ({"dataset": "cifar"}, "dataset must be one of digits, .*imagenet"),
        ({"test_only": True}, "test_only and checkpoint go together"),
        ({"checkpoint": Path("a.pt")}, "test_only and checkpoint go together"),
        ({"resume": True}, "resume needs out"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_config(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvalConfig(**changes)


def test_bad_images(tmp_path: Path) -> None:
    config, part = EvalConfig(**FEW, out=tmp_path), few_images()
    with pytest.raises(ValueError, match="train and test must be given together"):
        evaluate(DARTS_V2, config, part)
    with pytest.raises(ValueError, match="test must be like train"):
        evaluate(DARTS_V2, config, part, few_images(shape=(1, 5, 5)))
    with pytest.raises(ValueError, match="'custom' is for images given from Python"):
        evaluate(DARTS_V2, dataclasses.replace(config, dataset="custom"))
    with pytest.raises(ValueError, match="unknown primitive 'warp'"):
        evaluate(DARTS_V2._replace(normal=[("warp", 0), ("skip_connect", 1)]), config, part, part)
    assert not list(tmp_path.iterdir())


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx", reason="needs onnx, of the extra 'export'")
    genotype, out, exported = tmp_path / "found.json", tmp_path / "run", tmp_path / "net"
    genotype.write_text(DARTS_V1.to_json())
    flags = ["--init-channels", "4", "--layers", "2", "--epochs", "1", "--batch-size", "256", "--device", "cpu"]
    assert main(["--genotype", str(genotype), "--out", str(out), "--export", str(exported), *flags]) == 0
    printed = capsys.readouterr().out
    kernels = json.loads((out / "environment.json").read_text())["kernels_used"]
    assert kernels == kernels_used(torch.device("cpu"), "auto")
    assert f"kernels: {kernels}" in printed.splitlines()
    assert "epoch 1/1: train loss" in printed
    assert "test error" in printed
    assert f"results: {out} (report.html)" in printed
    assert (tmp_path / "net.pt2").is_file()
    assert (tmp_path / "net.onnx").is_file()

    assert main(["--resume", "--out", str(out)]) == 0  # nothing left to do; genotype and flags are those of the folder
    finished = capsys.readouterr().out.splitlines()
    tested = ["--genotype", str(genotype), "--test-only", "--checkpoint", str(out / "checkpoint.pt")]
    assert main([*tested, "--config", str(out / "config.json")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] in finished


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "--genotype is needed: a published cell (DARTS_V2,"),
        ("--genotype DARTS_V9", "'DARTS_V9' is neither a published name (DARTS_V1, DARTS_V2, "),
        ("--genotype DARTS_V2 --test-only", "test_only and checkpoint go together"),
        ("--genotype DARTS_V2 --device tpu", "device must be auto, cpu, cuda or cuda:N; got 'tpu'"),
        ("--genotype DARTS_V2 --dataset imagefolder --data /nowhere", "/nowhere"),
    ],
)
def test_command_line_mistakes(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    captured = capsys.readouterr().err
    assert message in captured
    assert captured.count("\n") == 1
    assert captured.startswith("python -m fastdarts.evaluate: ")


def test_export_without_onnx_fails_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdarts.export.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"fastdarts\[export\]"):
        evaluate(DARTS_V2, EvalConfig(**TINY, out=tmp_path / "run", export=tmp_path / "net"))
    assert not list(tmp_path.iterdir())
