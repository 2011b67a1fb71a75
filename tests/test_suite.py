"""DARTS-Bench-Suite: its numbers, the order of its runs, the choice of a search, what is refused, the report."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdarts import suite as module
from fastdarts.data import ImageData
from fastdarts.data.images import at_most
from fastdarts.runs.suite_config import BENCHMARKS, SETS, SuiteConfig, Task
from fastdarts.suite import _halves, main, run_one, run_suite

DIGITS = {"dataset": "digits", "budget": "smallest", "device": "cpu"}


def test_the_published_protocol() -> None:
    config = SuiteConfig(methods="darts,drnas,gdas")
    assert config.scaled() == []
    assert (len(config.tasks("search")), len(config.tasks("training"))) == (3 * 27, 3 * 81)
    assert SETS[1] == (0.025, 3e-4)
    assert len(set(SETS)) == 9
    wide, gdas, drnas = (
        config.search_config(Task(*names, "search", 2), Path("runs"))
        for names in (("wide-regular", "darts"), ("deep-no-skip", "gdas"), ("single-cell-all-skip", "drnas"))
    )
    assert (wide.init_channels, wide.layers, wide.batch_size, wide.epochs, wide.seed) == (18, 4, 96, 100, 2)
    assert (gdas.init_channels, gdas.layers, gdas.batch_size, gdas.epochs) == (7, 18, 320, 300)
    assert (drnas.init_channels, drnas.layers, drnas.lr, drnas.lr_min, drnas.arch_lr) == (26, 1, 0.1, 0.0, 6e-4)
    assert {c.weight_decay for c in (wide, gdas, drnas)} == {3e-4}
    assert gdas.space_options["without"] == "skip_connect"
    assert (drnas.space_options["steps"], drnas.space_options["auxiliary_skip"]) == (8, True)
    trained = config.training_config(Task("deep-regular", "darts", "training", 8), Path("runs"))
    assert (trained.lr, trained.weight_decay, trained.init_channels, trained.layers) == (0.01, 1e-3, 7, 18)
    assert (trained.epochs, trained.batch_size, trained.drop_path, trained.cutout) == (300, 512, 0.3, 16)
    assert not trained.auxiliary


def test_searches_and_trainings_have_no_image_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.arange(50_000, dtype=torch.float32)
    images = ImageData(numbers[:, None, None, None], torch.arange(50_000) % 10, tuple("abcdefghij"), (0,), (1,), True)
    monkeypatch.setattr("fastdarts.data.open_images", lambda *args, **named: at_most(images, named["limit"]))
    searches, trainings = _halves(SuiteConfig())
    weights, alphas = module.data.split(searches, 0.5, seed=0)
    parts = [part.images.flatten() for part in (weights, alphas, trainings)]
    assert [len(part) for part in parts] == [12_500, 12_500, 25_000]
    assert torch.equal(torch.cat(parts), numbers)
    small = _halves(SuiteConfig(budget="smallest"))
    assert [len(half) for half in small] == [60, 60]
    assert not set(small[0].images.flatten().tolist()) & set(small[1].images.flatten().tolist())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"methods": "darts,snas"}, "snas: searches are chosen by their validation loss, and this method has none"),
        ({"methods": "pc-darts"}, "pc-darts, wide-regular: init_channels must be a multiple of the method's k = 4"),
        ({"methods": "darts,drats"}, "method must be one of darts, .*; got 'drats'"),
        ({"methods": "darts,darts"}, "methods names 'darts' more than once"),
        ({"benchmarks": "wide"}, "benchmarks must be among wide-regular, .*; got 'wide'"),
        ({"budget": "half"}, "budget must be one of full, tenth, smallest; got 'half'"),
        ({"dataset": "custom"}, "dataset must be one that can be read from files; got custom"),
        ({"resume": True}, "resume needs out"),
    ],
)
def test_bad_input_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SuiteConfig(**fields)


CHILD = """
import json, pathlib, sys
out, _, benchmark, method, kind, number = sys.argv[1:7]
number = int(number)
if (method, kind, number) == ("gdas", "search", 1) and "deep" in benchmark and not pathlib.Path(out, "whole").exists():
    sys.exit("no memory")
record = {"benchmark": benchmark, "method": method, "kind": kind, "number": number, "seconds": 1, "images": [5, 100]}
if kind == "search":
    record |= {"valid_loss": abs(number - 1), "epochs": 1, "peak_bytes": 1}
else:
    accuracy = 0.5 + 0.04 * (method == "gdas") + 0.01 * number
    record |= {"lr": 1, "weight_decay": 1, "search": 1, "accuracy": accuracy, "parameters": 1, "multiply_adds": 1}
folder = pathlib.Path(out) / benchmark / method / f"{kind}-{number}"
(folder / "unfinished").write_text(json.dumps(record))
(folder / "unfinished").rename(folder / "result.json")
"""


def test_runs_are_done_once_and_failed_ones_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_CHILD", CHILD)
    fields = {"dataset": "digits", "methods": "darts,gdas", "device": "cpu", "out": tmp_path / "out", "workers": 4}
    names = "wide-regular,deep-regular"
    found = run_suite(SuiteConfig(**fields, benchmarks=names))
    assert list(found.failures) == ["deep-regular, gdas, search 1"]
    assert len(found.runs) == 4 * 3 - 1 + 3 * 9  # the cell of the failed search is not trained
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["ranked_benchmarks"] == ["wide-regular"]
    assert results["ranks_by_mean"] == {"darts": 2.0, "gdas": 1.0}
    assert "data set digits in place of CIFAR-10" in results["scaled_down"]
    score = next(one for one in results["scores"] if (one["benchmark"], one["method"]) == (names[:12], "gdas"))
    assert (score["mean"], score["best"], score["best_set"]) == (pytest.approx(0.58), pytest.approx(0.62), [0.01, 1e-3])
    assert score["interval"][0] < 0.58 < score["interval"][1]
    (tmp_path / "out" / "whole").touch()
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("result.json")}
    arguments = ["--resume", "--out", str(tmp_path / "out"), "--benchmarks", "deep-no-skip,wide-no-skip"]
    assert main(arguments) == 0
    assert "gdas: average rank 1.00 by the mean test accuracy, 1.00 by the best" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())
    assert len(list((tmp_path / "out").rglob("result.json"))) == 4 * 2 * (3 + 9)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "58.00 %" in page
    assert "deep-no-skip" in page


def test_the_search_of_the_lowest_loss_is_chosen(tmp_path: Path) -> None:
    config = SuiteConfig(dataset="digits", methods="darts", device="cpu", out=tmp_path)
    for number, loss in enumerate((2.0, 1.5, 1.5)):
        assert module._chosen(config, tmp_path, Task("wide-regular", "darts", "training", 0)) is None
        record = {"benchmark": "wide-regular", "method": "darts", "kind": "search", "number": number, "images": [1, 1]}
        folder = tmp_path / "wide-regular" / "darts" / f"search-{number}"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(
            json.dumps(record | {"valid_loss": loss, "epochs": 1, "seconds": 1, "peak_bytes": 1})
        )
    assert module._chosen(config, tmp_path, Task("wide-regular", "darts", "training", 0)).number == 1
    (folder / "result.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"result.json is damaged: valid_loss, epochs, .* its run is done again"):
        module._chosen(config, tmp_path, Task("wide-regular", "darts", "training", 0))
    (folder / "result.json").write_text(json.dumps(record | {"kind": ["search"]}))
    with pytest.raises(ValueError, match=r"result.json is damaged: kind is missing or of a wrong kind"):
        module._chosen(config, tmp_path, Task("wide-regular", "darts", "training", 0))


def test_missing_test_images_are_named_before_the_searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = ImageData(torch.zeros(600, 1, 4, 4), torch.arange(600) % 10, tuple("abcdefghij"), (0,), (1,), True)

    def opened(dataset: str, folder: Path, part: str, *args: Any, **named: Any) -> ImageData:
        if part == "test":
            raise FileNotFoundError("t10k-images-idx3-ubyte is missing")
        return images

    monkeypatch.setattr("fastdarts.data.open_images", opened)
    with pytest.raises(FileNotFoundError, match="t10k-images"):
        run_suite(SuiteConfig(dataset="mnist", methods="darts", device="cpu", out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_search_and_its_training_on_digits(tmp_path: Path) -> None:
    config = SuiteConfig(**DIGITS, methods="darts", benchmarks="single-cell-all-skip", out=tmp_path)
    found = run_one(config, Task("single-cell-all-skip", "darts", "search", 0))
    assert sum(found["images"]) == pytest.approx(60, abs=5)
    trained = run_one(config, Task("single-cell-all-skip", "darts", "training", 1))
    assert trained["images"] == pytest.approx([60, 120], abs=5)
    assert (trained["lr"], trained["weight_decay"], trained["search"]) == (0.025, 3e-4, 0)
    assert 0 < trained["accuracy"] < 1


@pytest.mark.long
def test_the_smallest_budget_runs_end_to_end(tmp_path: Path) -> None:
    found = run_suite(SuiteConfig(**DIGITS, methods="darts,gdas", out=tmp_path, workers=2))
    assert not found.failures
    assert len(found.runs) == len(BENCHMARKS) * 2 * 2
