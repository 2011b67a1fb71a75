"""Files of a run with contents of a wrong kind: a sentence with the file's name, never another error."""

import json
from pathlib import Path
from typing import Any

import pytest

from fastdarts.compare import _result
from fastdarts.report.records import check_record
from fastdarts.report.run_report import write_report
from fastdarts.spaces.darts.genotype import DARTS_V2

RECORD: dict[str, Any] = {
    "method": "darts",
    "seed": 0,
    "accuracy": 0.5,
    "parameters": 1,
    "multiply_adds": 1,
    "numbers": {"skips_normal": 0, "skips_reduce": 0},
    "tabulated": {},
    "search_seconds": 1.0,
    "select_seconds": 1.0,
    "search_epochs": 1,
    "peak_bytes": 1,
    "stopped": None,
    "folder": "darts-0",
}
EPOCH = {
    "event": "epoch",
    "epoch": 0,
    "lr": 0.1,
    "train_loss": 1.0,
    "train_accuracy": 0.5,
    "test_accuracy": 0.5,
    "seconds": 1.0,
}


def test_a_comparisons_records(tmp_path: Path) -> None:
    path = tmp_path / "darts-0" / "result.json"
    path.parent.mkdir()
    path.write_text(json.dumps(RECORD))
    assert _result(tmp_path, "darts", 0) == RECORD
    for name in RECORD.keys() - {"stopped"}:
        for record in ({k: v for k, v in RECORD.items() if k != name}, RECORD | {name: [1]}):
            with pytest.raises(ValueError, match=f"{path} is damaged: {name} is missing or of a wrong kind; remove"):
                check_record(record, path)
    with pytest.raises(ValueError, match="folder is missing or of a wrong kind"):
        check_record(RECORD | {"folder": "../../other"}, path)
    path.write_text('{"method": ')
    with pytest.raises(ValueError, match=f"{path} is damaged, it is not JSON"):
        _result(tmp_path, "darts", 0)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.jsonl", EPOCH | {"method": {"beta": [1], "stop_epoch": "soon"}}),
        ("metrics.jsonl", EPOCH | {"method": [1]}),
        ("metrics.jsonl", EPOCH | {"epoch": -(10**30)}),
        ("metrics.jsonl", EPOCH | {"valid_loss": {"a": 1}}),
        ("metrics.jsonl", EPOCH | {"alpha_seconds": "long"}),
        ("metrics.jsonl", EPOCH | {"images_per_second": "many"}),
        ("metrics.jsonl", EPOCH | {"train_loss": float("inf"), "seconds": float("nan")}),
        ("config.json", {"dataset": ["a"], "image_size": 3, "epochs": "many", "data": {}}),
        ("config.json", {"epochs": 10**400}),
        ("environment.json", {"a": {"b": {"c": [[[]]]}}}),
        ("result.json", {"parameters": float("nan"), "multiply_adds": 1, "classes": 3}),
    ],
)
def test_odd_values_end_in_a_report_or_a_sentence(tmp_path: Path, file: str, content: Any) -> None:
    contents = {
        "config.json": {"dataset": "digits", "epochs": 1},
        "environment.json": {},
        "metrics.jsonl": EPOCH,
        "result.json": {"parameters": 1, "multiply_adds": 1},
    }
    for name, value in (contents | {file: content}).items():
        (tmp_path / name).write_text(json.dumps(value) + "\n")
    (tmp_path / "genotype.json").write_text(DARTS_V2.to_json())
    try:
        assert write_report(tmp_path).is_file()
    except ValueError as error:
        said = str(error)
    else:
        return
    assert said.startswith("report: ")
    assert str(tmp_path) in said
