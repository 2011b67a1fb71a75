"""Comparisons of methods: what is refused, runs that go on where they stopped, processes, the table and the report."""

import json
import os
import signal
import statistics
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_search import write_classes

from fastdarts import compare as module
from fastdarts.compare import CompareConfig, compare, main, run_one
from fastdarts.report.records import summaries
from fastdarts.runs.eval_state import EvalState
from fastdarts.runs.interrupt import Interrupted
from fastdarts.runs.search_state import SearchState
from fastdarts.spaces.darts.genotype import DARTS_V2


@pytest.fixture
def tiny(tmp_path: Path) -> dict[str, Any]:
    """Fields of a comparison whose runs take seconds: 30 images of 8x8, three classes of different brightness."""
    write_classes(tmp_path / "images")
    return {
        "dataset": "imagefolder",
        "data": tmp_path / "images",
        "methods": "darts,gdas",
        "seeds": 1,
        "epochs": 1,
        "init_channels": 2,
        "layers": 3,
        "batch_size": 5,
        "order": 1,
        "search": {"crop_padding": 1},
        "select_epochs": 1,
        "select": {"init_channels": 2, "layers": 3, "batch_size": 5, "crop_padding": 1, "cutout": 0},
        "device": "cpu",
        "deterministic": True,
        "out": tmp_path / "out",
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"methods": "darts,drats"}, "method must be one of darts, .*; got 'drats'"),
        ({"methods": "darts,gdas,darts"}, "methods names 'darts' more than once"),
        ({"methods": ""}, "got ''"),
        ({"seeds": 0}, "seeds must be at least 1; got 0"),
        ({"workers": 0}, "workers must be at least 1; got 0"),
        ({"workers": 2, "scheduler": "tcp://127.0.0.1:8786"}, "workers is for this machine"),
        ({"methods": "darts,gdas", "order": 2}, "gdas: method 'gdas' has no second order"),
        ({"init_channels": 0}, "darts: init_channels must be at least 1; got 0"),
        ({"search": {"seed": 3}}, "search must not set seed"),
        ({"search": {"method_options": 3}}, "method_options must be a table of names and values; got 3"),
        ({"search": {"space_options": 3}}, "space_options must be a table of names and values; got 3"),
        ({"methods": "darts+method_options=3"}, "method_options must be a table of names and values; got 3"),
        ({"search": {"lrr": 3}}, "search sets 'lrr', which is unknown; did you mean 'lr'"),
        ({"select": {"epochs": 3}}, "select must not set epochs"),
        ({"select": {"layers": 0}}, "layers must be at least 1"),
        ({"dataset": "custom"}, "dataset must be one that can be read from files"),
        ({"resume": True}, "resume needs out"),
    ],
)
def test_bad_input_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        CompareConfig(**fields)


def test_nothing_is_written_for_images_that_are_missing(tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        compare(CompareConfig(**tiny | {"data": tmp_path / "absent"}))
    assert not (tmp_path / "out").exists()


def test_what_is_not_given_is_each_methods_own() -> None:
    config = CompareConfig(dataset="cifar10", search={"amp": True}, select={"init_channels": 16})
    assert config.select_epochs == 100
    methods = {name: config.search_config(name, 3, Path("runs")) for name in config.method_names()}
    assert (methods["darts"].order, methods["gdas"].order) == (2, 1)
    assert methods["pc-darts"].batch_size == 256
    assert all(search.amp and search.seed == 3 for search in methods.values())
    assert (config.select_config(3, Path()).init_channels, config.select_config(3, Path()).layers) == (16, 20)


def lasting(record: dict[str, Any]) -> dict[str, Any]:
    """But for what depends on the machine's mood."""
    return {
        name: value for name, value in record.items() if name not in ("search_seconds", "select_seconds", "peak_bytes")
    }


def test_a_run_goes_on_where_it_stopped(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the search, then in the training: the same record as of a run that never was."""
    monkeypatch.setattr("fastdarts.report.alphas.draw_alphas", lambda path: None)  # takes longer than these searches
    monkeypatch.setattr("fastdarts.report.run_report.write_report", lambda out: None)
    whole = run_one(CompareConfig(**tiny), "darts", 0)
    assert 0 <= whole["accuracy"] <= 1
    assert list(whole["numbers"]) == ["skips_normal", "skips_reduce"]
    assert whole["search_seconds"] > 0
    config = CompareConfig(**tiny | {"out": tmp_path / "parts"})

    def stopped(self: Any, *arguments: Any) -> Any:
        if self.steps_done == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)

    for state in (SearchState, EvalState):
        step = state.train_batches
        with monkeypatch.context() as patch:
            patch.setattr(state, "train_batches", stopped)
            with pytest.raises(Interrupted):
                run_one(config, "darts", 0)
        assert (tmp_path / "parts" / "darts-0" / "search.json").exists() == (state is EvalState)
    searched = (tmp_path / "parts" / "darts-0" / "search.json").stat().st_mtime_ns
    assert lasting(run_one(config, "darts", 0)) == lasting(whole)
    assert (tmp_path / "parts" / "darts-0" / "search.json").stat().st_mtime_ns == searched
    genotypes = [(tmp_path / out / "darts-0" / "search" / "genotype.json").read_text() for out in ("out", "parts")]
    assert genotypes[0] == genotypes[1]


def write_result(out: Path, method: str, seed: int) -> dict[str, Any]:
    """As a finished run leaves them: the files that the comparison reads."""
    record = {
        "method": method,
        "seed": seed,
        "accuracy": 0.5625,
        "parameters": 12345,
        "multiply_adds": 67890,
        "numbers": {"skips_normal": 1, "skips_reduce": 2},
        "tabulated": {},
        "search_seconds": 3.5,
        "peak_bytes": 300 * 2**20,
        "search_epochs": 1,
        "stopped": None,
        "select_seconds": 2.5,
        "folder": f"{method}-{seed}",
    }
    folder = out / f"{method}-{seed}"
    (folder / "search").mkdir(parents=True)
    (folder / "search" / "genotype.json").write_text(DARTS_V2.to_json())
    (folder / "result.json").write_text(json.dumps(record))
    return record


def test_a_resumed_comparison_runs_what_is_left(tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    first = CompareConfig(**tiny | {"methods": "darts"})
    out = tiny["out"]
    done = write_result(out, "darts", 0)
    first.save(out / "config.json")
    with pytest.raises(ValueError, match="holds a run already; continue it with --resume"):
        compare(first)
    with pytest.raises(ValueError, match=r"has another config \(epochs: 2, before 1\)"):
        compare(CompareConfig(**tiny | {"epochs": 2, "resume": True}))

    assert main(["--resume", "--out", str(out), "--methods", "gdas"]) == 0  # added to darts
    printed = capsys.readouterr().out
    assert "gdas, seed 0: validation accuracy" in printed
    assert "darts, seed 0" not in printed
    results = json.loads((out / "results.json").read_text())
    assert results["runs"][0] == done
    assert {row["method"] for row in results["methods"]} == {"darts", "gdas"}
    assert results["failures"] == {}
    assert CompareConfig.load(out / "config.json").methods == "darts,gdas"
    page = (out / "report.html").read_text()
    assert page.count('<svg xmlns="http://www.w3.org/2000/svg" class="cells"') == 2
    for shown in ("56.25 %", "12,345", "67,890", "1 + 2", "300 MiB"):
        assert f"<td>{shown}</td>" in page, shown
    assert f"--genotype {out / 'gdas-0' / 'search' / 'genotype.json'}" in page
    with Image.open(out / "accuracy.png") as picture:
        assert picture.width == 1200


def test_a_resumed_comparison_keeps_its_seeds(tiny: dict[str, Any]) -> None:
    first = CompareConfig(**tiny | {"methods": "darts", "seeds": 2})
    first.save(tiny["out"] / "config.json")
    for seed in range(2):
        write_result(tiny["out"], "darts", seed)
    comparison = compare(CompareConfig(**tiny | {"methods": "darts", "seeds": 1, "resume": True}))
    assert [run["seed"] for run in comparison.runs] == [0, 1]
    assert CompareConfig.load(tiny["out"] / "config.json").seeds == 2


def test_a_failed_run_leaves_the_others(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHILD", "import sys; sys.exit('the <loss> is nan')")
    for seed in (0, 1):
        write_result(tiny["out"], "darts", seed)
    comparison = compare(CompareConfig(**tiny | {"seeds": 2, "workers": 2}))
    assert [(run["method"], run["seed"]) for run in comparison.runs] == [("darts", 0), ("darts", 1)]
    assert list(comparison.failures) == ["gdas, seed 0", "gdas, seed 1"]
    assert "the <loss> is nan" in comparison.failures["gdas, seed 0"]
    assert "the &lt;loss&gt; is nan" in (tiny["out"] / "report.html").read_text()


def test_a_stop_ends_the_processes(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    child = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(600)"
    monkeypatch.setattr(module, "_CHILD", child)
    logs = [tiny["out"] / name / "log.txt" for name in ("darts-0", "gdas-0")]

    def stop_when_both_run() -> None:
        while not all(log.is_file() and log.read_text().endswith("\n") for log in logs):
            threading.Event().wait(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_when_both_run, daemon=True)
    thread.start()
    with pytest.raises(Interrupted, match=f"to continue: python -m fastdarts.compare --resume --out {tiny['out']}"):
        compare(CompareConfig(**tiny | {"workers": 2}))
    thread.join()
    for log in logs:
        with pytest.raises(ProcessLookupError):
            os.kill(int(log.read_text()), 0)
    assert json.loads((tiny["out"] / "results.json").read_text())["runs"] == []


def test_summaries() -> None:
    rows = [("a", 0.5, 10, 7), ("b", 0.75, 3, 2), ("a", 0.9, 30, 5)]
    runs = [
        {"method": method, "accuracy": accuracy, "search_seconds": seconds, "peak_bytes": peak}
        for method, accuracy, seconds, peak in rows
    ]
    a, b = summaries(runs)
    assert (a["method"], a["seeds"], a["best"], a["peak_bytes"]) == ("a", 2, runs[2], 7)
    assert (a["accuracy_mean"], a["search_seconds"]) == (pytest.approx(0.7), 20)
    assert a["accuracy_std"] == pytest.approx(statistics.stdev([0.5, 0.9]))
    assert (b["method"], b["accuracy_std"], b["text"]) == ("b", None, "75.00 % (1 seed), best 75.00 %")
