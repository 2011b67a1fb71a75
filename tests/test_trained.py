"""A trained network in use: predictions, exports, feature maps, fine-tuning, recipes, streams."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from streamed_files import picture, write_folder
from torch import Tensor

import fastdarts
from fastdarts import DARTS_V2, TrainedNetwork
from fastdarts.cli import main
from fastdarts.evaluate import EvalConfig, evaluate
from fastdarts.export import export_trained
from fastdarts.runs.eval_state import EvalState
from fastdarts.runs.images import open_images
from fastdarts.runs.keeper import Keeper

SMALL: dict[str, Any] = {
    "dataset": "imagefolder",
    "image_size": (16, 12),
    "init_channels": 4,
    "layers": 2,
    "batch_size": 8,
    "epochs": 1,
    "cutout": 0,
    "crop_padding": 1,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished evaluation on 24 pictures of 3 classes, with its images in `images`."""
    folder = tmp_path_factory.mktemp("trained")
    write_folder(folder / "images", 24, test=6)
    evaluate(DARTS_V2, EvalConfig(**SMALL, data=folder / "images", out=folder / "run"))
    return folder / "run"


@pytest.fixture
def trained(run: Path) -> TrainedNetwork:
    return fastdarts.load(run, "cpu")


def files_of(run: Path) -> list[Path]:
    return sorted((run.parent / "images" / "test").rglob("*.jpg"))


def test_the_measured_accuracy_is_that_of_predictions(run: Path, trained: TrainedNetwork) -> None:
    files = files_of(run)
    predictions = trained.predict(files, batch_size=4)
    accuracy = np.mean(
        [prediction.name == file.parent.name for prediction, file in zip(predictions, files, strict=True)]
    )
    assert accuracy == pytest.approx(json.loads((run / "result.json").read_text())["test_accuracy"], abs=1e-6)
    assert all(prediction.probabilities.sum() == pytest.approx(1, abs=1e-5) for prediction in predictions)


def test_any_kind_of_image(run: Path, trained: TrainedNetwork) -> None:
    path = files_of(run)[0]
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    array = np.array(image)
    wanted = trained.logits([path])
    for same in (str(path), image, array, torch.from_numpy(array).permute(2, 0, 1)):
        assert torch.equal(trained.logits([same]), wanted)
    assert trained.transform(path).shape == (3, 16, 12)
    assert [prediction.label for prediction in trained.predict(path)] == [int(wanted.argmax())]
    with pytest.raises(ValueError, match=r"image must have 3 channels; got \[1, 5, 5\]"):
        trained.predict(np.zeros((5, 5), np.uint8))
    with pytest.raises(TypeError, match=r"image must be uint8; got torch.float32"):
        trained.predict(torch.zeros(3, 5, 5))
    with pytest.raises(FileNotFoundError, match="there is no image"):
        trained.predict("nowhere.jpg")
    with pytest.raises(ValueError, match="one image or more"):
        trained.predict([])


def test_predict_command(run: Path, trained: TrainedNetwork, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run.parent / "images" / "test"
    assert main(["predict", str(run), str(folder), "--top", "2", "--batch-size", "4", "--device", "cpu"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == list(map(str, files_of(run)))
    for line, prediction in zip(lines, trained.predict(files_of(run)), strict=True):
        assert line[1] == prediction.name
        assert float(line[2]) == pytest.approx(prediction.probability, abs=1e-4)
        assert len(line) == 5
    assert main(["predict", str(run), str(files_of(run)[0]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"][0]["name"] == trained.predict(files_of(run)[0])[0].name
    assert main(["predict", str(run.parent / "images"), "x.jpg"]) == 2
    assert "there is no checkpoint" in capsys.readouterr().err


def imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("exported_network", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def batch_of(run: Path, trained: TrainedNetwork) -> Tensor:
    return torch.stack([trained.pixels(file) for file in files_of(run)])


def test_code_gives_the_same_logits_and_trains(run: Path, trained: TrainedNetwork, tmp_path: Path) -> None:
    code, weights = export_trained(trained, tmp_path / "net.py")
    assert "import fastdarts" not in code.read_text()
    assert "from fastdarts" not in code.read_text()
    network = imported(code).Network(drop_path_prob=0.1)
    network.load_state_dict(torch.load(weights, weights_only=True))
    images = batch_of(run, trained)
    wanted = trained.network(trained.normalise(images))
    difference = (network.eval()(images) - wanted).abs().max()
    assert difference <= 16 * torch.finfo(torch.float32).eps * wanted.abs().max()
    assert network.forward_features(images).shape == (6, 64, 4, 3)
    logits, auxiliary = network.train()(images)
    (logits + auxiliary).sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("layers", [1, 2, 6])
def test_code_of_other_shapes(stem: str, layers: int, tmp_path: Path) -> None:
    options = {"C": 4, "num_classes": 5, "layers": layers, "auxiliary": False, "in_channels": 1, "stem": stem}
    network = fastdarts.EvalNetwork(fastdarts.DARTS_V1, **options).eval()
    kept = TrainedNetwork(network, fastdarts.DARTS_V1, options, tuple("abcde"), (0.5,), (0.2,), (33, 40))
    code, weights = export_trained(kept, tmp_path / "net.py")
    again = imported(code).Network().eval()
    again.load_state_dict(torch.load(weights, weights_only=True))
    images = torch.randint(256, (2, 1, 33, 40), dtype=torch.uint8)
    wanted = network(kept.normalise(images))
    assert (again(images) - wanted).abs().max() <= 16 * torch.finfo(torch.float32).eps * wanted.abs().max()


def test_exports_normalise(run: Path, trained: TrainedNetwork, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime, of the extra 'export'")
    pytest.importorskip("onnxscript", reason="needs onnxscript, of the extra 'export'")
    torch_file, onnx_file = export_trained(trained, tmp_path / "net.onnx")
    images = batch_of(run, trained)
    wanted = trained.network(trained.normalise(images))
    allowed = 64 * torch.finfo(torch.float32).eps * wanted.abs().max()
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    program = torch.export.load(torch_file).module()
    for count in (1, 3, 6):
        (from_onnx,) = session.run(["logits"], {"images": images[:count].numpy()})
        assert (torch.from_numpy(from_onnx) - wanted[:count]).abs().max() <= allowed
        assert (program(images[:count]) - wanted[:count]).abs().max() <= allowed


def test_backbone_is_as_timms(run: Path, trained: TrainedNetwork) -> None:
    """One map for each size, the last before the image is halved; the last map feeds the classifier."""
    network = trained.network
    backbone = trained.backbone()
    images = trained.normalise(batch_of(run, trained))
    maps = backbone(images)
    assert [info["num_chs"] for info in backbone.feature_info] == [made.shape[1] for made in maps]
    assert [info["reduction"] for info in backbone.feature_info] == [16 // made.shape[2] for made in maps]
    last = maps[-1].mean((2, 3))
    assert torch.allclose(network.classifier(last), network(images), atol=1e-6)
    assert torch.equal(backbone.forward_features(images), maps[-1])
    chosen = trained.backbone([-1])
    assert torch.equal(chosen(images)[0], maps[-1])
    assert chosen.feature_info == backbone.feature_info[-1:]
    sum(made.sum() for made in maps).backward()
    assert next(network.parameters()).grad is not None
    with pytest.raises(ValueError, match=r"out_indices must be among the 2 maps, 0..1; got 5"):
        trained.backbone([5])


def test_fine_tuning_on_other_classes(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path / "five", 20, classes=5, test=5)
    config = EvalConfig(
        **SMALL | {"lr": 1e-9, "weight_decay": 0.0}, data=tmp_path / "five", init_from=run, out=tmp_path / "a"
    )
    with caplog.at_level("INFO", logger="fastdarts"):
        ours = evaluate(DARTS_V2, config).network.state_dict()
    assert "new for 5 classes: auxiliary_head.classifier, classifier" in caplog.text
    theirs = fastdarts.load(run, "cpu").network.state_dict()
    weights = [name for name in ours if name.endswith("weight") and "classifier" not in name]
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in weights)
    assert ours["classifier.weight"].shape[0] == 5


def test_a_fine_tuning_is_resumed_without_the_run_that_it_began_from(run: Path, tmp_path: Path) -> None:
    before = shutil.copytree(run, tmp_path / "before")
    config = {**SMALL, "data": run.parent / "images", "out": tmp_path / "after", "init_from": before}
    evaluate(DARTS_V2, EvalConfig(**config))
    shutil.rmtree(before)
    result = evaluate(DARTS_V2, EvalConfig(**config | {"epochs": 2, "resume": True}))
    assert result.epochs == 2
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        evaluate(DARTS_V2, EvalConfig(**config | {"out": tmp_path / "new"}))


def test_sizes_come_from_the_run_that_is_continued(run: Path, tmp_path: Path) -> None:
    config = EvalConfig(dataset="imagefolder", init_from=run, out=tmp_path)
    assert (config.init_channels, config.layers, config.epochs) == (4, 2, 600)
    bad = EvalConfig(**SMALL | {"init_channels": 8}, data=run.parent / "images", init_from=run, out=tmp_path / "b")
    with pytest.raises(ValueError, match=r"init_from: stem.0.weight is \[12, 3, 3, 3\] in .* and \[24, 3, 3, 3\] here"):
        evaluate(DARTS_V2, bad)
    with pytest.raises(ValueError, match="trained another genotype"):
        evaluate(fastdarts.DARTS_V1, EvalConfig(**SMALL, data=run.parent / "images", init_from=run, out=tmp_path / "c"))


def test_recipe_says_what_it_changes() -> None:
    assert EvalConfig(dataset="cifar10").recipe_line() == ""
    config = EvalConfig(dataset="cifar10", recipe="modern", mixup=0.0)
    assert config.recipe_line() == (
        "recipe modern: cutout 0 (paper: 16), warmup-epochs 5 (paper: 0), label-smoothing 0.1 (paper: 0.0), "
        "auto-augment trivialaugment (paper: none), cutmix 1.0 (paper: 0.0), ema-epochs 5.0 (paper: 0.0)"
    )
    assert (config.epochs, config.lr, config.drop_path) == (600, 0.025, 0.2)
    with pytest.raises(ValueError, match="warmup_epochs must be below epochs = 3; got 5"):
        EvalConfig(dataset="cifar10", recipe="modern", epochs=3)


def weights_after(out: Path) -> dict[str, Tensor]:
    saved = torch.load(out / "checkpoint.pt", weights_only=True)
    return saved["network"] | {f"average.{name}": tensor for name, tensor in (saved["average"] or {}).items()}


@pytest.mark.parametrize("stream", ["always", "never"])
def test_a_modern_training_stopped_in_an_epoch_goes_on_bit_for_bit(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    """The batch, the drawn ops, mixtures and the average are those that would have come."""
    config = {
        **SMALL,
        "recipe": "modern",
        "warmup_epochs": 1,
        "epochs": 2,
        "drop_path": 0.2,
        "data": run.parent / "images",
        "stream": stream,
        "workers": 2,
    }
    evaluate(DARTS_V2, EvalConfig(**config, out=tmp_path / "whole"))

    class Killed(Exception):
        pass

    after_step, steps = Keeper.after_step, 0

    def killed_in_the_second_epoch(self: Keeper) -> None:
        nonlocal steps
        after_step(self)
        steps += 1
        if steps == 5:
            raise Killed

    parts = EvalConfig(**config, out=tmp_path / "parts", save_every_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "after_step", killed_in_the_second_epoch)
        with pytest.raises(Killed):
            evaluate(DARTS_V2, parts)
    evaluate(DARTS_V2, EvalConfig(**config, out=tmp_path / "parts", resume=True))
    ours, theirs = weights_after(tmp_path / "parts"), weights_after(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert any(name.startswith("average.") for name in ours)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_average_of_the_weights(run: Path, tmp_path: Path) -> None:
    """After w1, w2, w3 it is d (d w1 + (1 - d) w2) + (1 - d) w3 with d = 1 - 1 / steps, and it is what is kept."""
    config = EvalConfig(**SMALL, data=run.parent / "images", ema_epochs=1.0, out=tmp_path)
    state = EvalState(DARTS_V2, config, open_images(config, "train", torch.device("cpu")), None, torch.device("cpu"))
    decay = 1 - 1 / state.steps_per_epoch
    name = "classifier.weight"
    wanted = None
    for _ in range(3):
        state.train_step()
        now = state.network.state_dict()[name].clone()
        wanted = now if wanted is None else decay * wanted + (1 - decay) * now
    assert torch.allclose(state.measured.state_dict()[name], wanted, atol=1e-7)
    result = evaluate(DARTS_V2, config)
    assert torch.equal(fastdarts.load(tmp_path, "cpu").network.state_dict()[name], result.network.state_dict()[name])


def test_class_weights_are_inverse_to_counts(tmp_path: Path) -> None:
    write_folder(tmp_path, 8, classes=2)
    picture(99).save(tmp_path / "train" / "class0" / "more.jpg")
    picture(98).save(tmp_path / "train" / "class0" / "most.jpg")
    config = EvalConfig(**SMALL | {"test_portion": 0.0}, data=tmp_path, class_weights=True)
    images = open_images(config, "train", torch.device("cpu"))
    state = EvalState(DARTS_V2, config, images, None, torch.device("cpu"))
    logits = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    weights = 10 / (2 * torch.tensor([6.0, 4.0]))
    wanted = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1]), weight=weights)
    assert torch.equal(state._step.loss(logits, torch.tensor([0, 1])), wanted)


def test_own_transform_sees_every_batch(run: Path, tmp_path: Path) -> None:
    seen: list[tuple[torch.dtype, tuple[int, ...]]] = []

    def transform(images: Tensor) -> Tensor:
        seen.append((images.dtype, tuple(images.shape)))
        return images.flip(2)

    config = EvalConfig(**SMALL, data=run.parent / "images", out=tmp_path / "a")
    evaluate(DARTS_V2, config, transform=transform)
    assert seen == 3 * [(torch.uint8, (8, 3, 16, 12))]
    with pytest.raises(ValueError, match=r"transform must keep shape and dtype; got torch.uint8 \[8, 3, 16, 6\]"):
        evaluate(
            DARTS_V2,
            EvalConfig(**SMALL, data=run.parent / "images", out=tmp_path / "b"),
            transform=lambda x: x[..., ::2],
        )
