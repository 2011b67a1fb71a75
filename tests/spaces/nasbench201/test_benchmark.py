"""Tabulated accuracies come out of a file as the benchmark's own library writes and reads it."""

from pathlib import Path

import pytest

from fastdarts.spaces.nasbench201.architecture import NasBench201Cell
from fastdarts.spaces.registry import find

nats_bench = pytest.importorskip("nats_bench")

CELL = NasBench201Cell.parse("|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|none~1|nor_conv_1x1~2|")
EPOCHS = 200


DATASETS = {
    "cifar10-valid": ("x-valid", "ori-test"),
    "cifar10": ("ori-test",),
    "cifar100": ("x-valid", "x-test", "ori-test"),
    "ImageNet16-120": ("x-valid", "x-test", "ori-test"),
}
ACCURACY = {"x-valid": 80.0, "x-test": 85.0, "ori-test": 90.0}


def write_table(path: Path) -> Path:
    """Write a table of one cell as the benchmark's library does, with the accuracies above on every data set."""
    results = {}
    last = EPOCHS - 1
    for hp in ("12", "200"):
        info = nats_bench.ArchResults(0, str(CELL))
        for dataset, splits in DATASETS.items():
            trial = nats_bench.ResultsCount(dataset, {}, {last: 100.0}, {last: 0.0}, 1.0, 2.0, {}, 777, EPOCHS, None)
            trial.train_times = dict.fromkeys(range(EPOCHS), 1.0)
            for split in splits:
                trial.eval_names.append(split)
                for epoch in range(EPOCHS):
                    trial.eval_acc1es[f"{split}@{epoch}"] = ACCURACY[split] if epoch == last else 0.0
                    trial.eval_losses[f"{split}@{epoch}"] = 0.5
                    trial.eval_times[f"{split}@{epoch}"] = 1.0
            info.update(dataset, 777, trial)
        results[hp] = info.state_dict()
    content = {"meta_archs": [str(CELL)], "arch2infos": {0: results}, "evaluated_indexes": [0]}
    nats_bench.pickle_save(content, str(path), ext="")
    return path


def test_accuracies_of_a_cell(tmp_path: Path) -> None:
    look_up = find("nasbench201").table(write_table(tmp_path / "table.pickle.pbz2"))
    assert look_up(CELL) == {
        "cifar10_valid": 80.0,
        "cifar10_test": 90.0,
        "cifar100_valid": 80.0,
        "cifar100_test": 85.0,
        "imagenet16_valid": 80.0,
        "imagenet16_test": 85.0,
    }
    with pytest.raises(ValueError, match="has no entry"):
        look_up(NasBench201Cell(("none",) * 6))


def test_what_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="benchmark: there is no file"):
        find("nasbench201").table(tmp_path / "missing")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="is no NATS-Bench file"):
        find("nasbench201").table(tmp_path / "text")
    with pytest.raises(ValueError, match="'recurrent' has no tabulated accuracies"):
        find("recurrent").table(tmp_path / "text")
