"""Comparisons on texts: options of methods and spaces, runs on the default text, resuming, the table, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_text import tiny_texts

from fastdarts import cli
from fastdarts.compare import CompareConfig, compare, run_one
from fastdarts.report.measure import PERPLEXITY
from fastdarts.report.records import summaries
from fastdarts.runs.compare_config import methods_of
from fastdarts.runs.text_eval_state import TextEvalState
from fastdarts.runs.text_search_state import TextSearchState

POINT_6 = "darts,darts+order=1,gdas,snas,single-level,random,fairdarts,sdarts-rs,sdarts-adv,darts-plus"


def tiny(tmp_path: Path, **fields: Any) -> CompareConfig:
    small = {"width": 6, "window": 5, "dropout": 0.1}
    given: dict[str, Any] = {
        "space": "recurrent",
        "dataset": "textfolder",
        "data": tiny_texts(tmp_path / "texts"),
        "methods": "gdas,darts+order=1",
        "seeds": 1,
        "epochs": 1,
        "batch_size": 4,
        "search": small,
        "select_epochs": 1,
        "select": {**small, "batch_size": 4},
        "device": "cpu",
        "out": tmp_path / "out",
    }
    return CompareConfig(**given | fields)


def test_options_go_where_they_belong() -> None:
    """Names of the space's options are set in searches and trainings each; a method's own come behind its name."""
    methods = "darts,darts+order=1,darts-plus+stable=3+arch_lr=0.5,random+cells=2"
    config = CompareConfig(
        space="recurrent", methods=methods, search={"width": 7, "amp": True}, select={"width": 9, "lr": 3}
    )
    assert config.dataset == "pydoc"
    assert config.select_epochs == 3
    searches = [config.search_config(name, 2, Path("runs")) for name in config.method_names()]
    assert [search.method for search in searches] == ["darts", "darts", "darts-plus", "random"]
    assert [search.order for search in searches[:2]] == [2, 1]
    assert (searches[2].method_options["stable"], searches[2].arch_lr) == (3, 0.5)
    assert searches[3].method_options["cells"] == 2
    assert all(search.amp and search.space_options["width"] == 7 for search in searches)
    selected = config.select_config(2, Path())
    assert (selected.space_options["width"], selected.lr, selected.epochs, selected.space) == (9, 3.0, 3, "recurrent")


def test_methods_without_a_meaning_are_left_out() -> None:
    known = methods_of("recurrent")
    assert CompareConfig(space="recurrent").method_names() == known
    assert {"darts", "gdas", "snas", "single-level", "random", "fairdarts", "sdarts-rs", "darts-plus"} <= set(known)
    assert not {"pc-darts", "p-darts", "darts-minus", "robustdarts", "oles"} & set(known)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"methods": "pc-darts"}, "pc-darts: method 'pc-darts' needs edges, which space 'recurrent' does not have"),
        ({"methods": "darts,oles"}, "oles: method 'oles' measures images; space 'recurrent' reads text"),
        ({"dataset": "cifar10"}, "space 'recurrent' reads text: dataset must be one of pydoc, ptb, wikitext2, textf"),
        ({"layers": 3}, "layers has no meaning for texts"),
        ({"search": {"widht": 3}}, "search sets 'widht', which is unknown; did you mean 'width'"),
        ({"search": {"space": "darts"}}, "search must not set space"),
        ({"select": {"patience": 0}}, "patience must be at least 1"),
        ({"methods": "darts+ordre=1"}, "methods sets 'ordre', which is unknown; did you mean 'order'"),
        ({"methods": "darts+order"}, r"darts\+order: method must be one of .*got 'order'"),
        ({"methods": "darts+seed=1"}, "methods must not set seed"),
        ({"methods": "gdas+order=2"}, "method 'gdas' has no second order"),
        ({"methods": "darts+order=1,darts+order=1"}, "more than once"),
    ],
)
def test_what_is_not_possible_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompareConfig(**{"space": "recurrent", "methods": "darts"} | fields)


def test_nothing_is_written_for_texts_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train\.txt, valid\.txt, test\.txt missing in"):
        compare(tiny(tmp_path, dataset="ptb", data=tmp_path / "absent"))
    assert not (tmp_path / "out").exists()


def lasting(record: dict[str, Any]) -> dict[str, Any]:
    moody = ("search_seconds", "select_seconds", "peak_bytes")
    return {name: value for name, value in record.items() if name not in moody}


def test_a_run_on_text_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended within the search, then within the training: the same record as of a run that never was."""
    monkeypatch.setattr("fastdarts.report.alphas.draw_alphas", lambda path: None)  # takes longer than these searches
    monkeypatch.setattr("fastdarts.report.run_report.write_report", lambda out: None)
    steps = {"search": {"save_every_steps": 1, "width": 6, "window": 5}}
    steps["select"] = steps["search"] | {"batch_size": 4}
    whole = run_one(tiny(tmp_path, out=tmp_path / "whole", **steps), "darts+order=1", 0)
    assert 1 < whole["perplexity"] < 100
    assert whole["test_perplexity"] > 1
    assert list(whole["numbers"]) == ["depth"]
    assert whole["folder"] == "darts+order=1-0"
    config = tiny(tmp_path, **steps)

    def lost(self: Any, *arguments: Any) -> Any:
        if self.steps_done == 2:
            raise KeyboardInterrupt
        return step(self, *arguments)

    for state in (TextSearchState, TextEvalState):
        step = state.train_batches
        with monkeypatch.context() as patch:
            patch.setattr(state, "train_batches", lost)
            with pytest.raises(KeyboardInterrupt):
                run_one(config, "darts+order=1", 0)
    assert lasting(run_one(config, "darts+order=1", 0)) == lasting(whole)


def test_the_table_of_a_comparison_on_workers(tmp_path: Path) -> None:
    """Two runs at a time in processes of their own; the table and the page speak of perplexity."""
    found = compare(tiny(tmp_path, workers=2))
    assert found.failures == {}
    assert [run["method"] for run in found.runs] == ["gdas", "darts+order=1"]
    values = [row["best"]["perplexity"] for row in found.methods]
    assert values == sorted(values)
    out = tmp_path / "out"
    assert json.loads((out / "results.json").read_text())["methods"] == found.methods
    page = (out / "report.html").read_text()
    best = found.methods[0]["best"]
    shown = (f"{best['perplexity']:.2f}", f"{best['test_perplexity']:.2f}", f"{best['parameters']:,}")
    for words in ("perplexity, mean ± std over seeds", "test perplexity", "Recurrent cell", *shown):
        assert words in page, words
    assert "accuracy" not in page.partition("<h2>Methods</h2>")[2].partition("<h2>Configuration")[0].lower()
    assert (out / "perplexity.png").read_bytes().startswith(b"\x89PNG")
    assert not (out / "accuracy.png").exists()


def test_the_smallest_perplexity_is_the_best() -> None:
    rows = [("a", 90.0), ("b", 80.0), ("a", 70.0)]
    runs = [{"method": m, "perplexity": value, "search_seconds": 1.0, "peak_bytes": 1} for m, value in rows]
    a, b = summaries(runs, PERPLEXITY)
    assert (a["method"], a["perplexity_mean"], a["best"]["perplexity"]) == ("a", 80.0, 70.0)
    assert b["text"] == "80.00 (1 seed), best 80.00"
    assert a["text"] == "80.00 ± 14.14 (2 seeds), best 70.00"


@pytest.mark.long
def test_all_methods_by_the_command_on_the_default_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    argv = ["compare", "--space", "recurrent", "--methods", POINT_6, "--seeds", "1", "--epochs", "1"]
    argv += ["--search", "width=8", "window=35", "--batch-size", "512", "--select-epochs", "1"]
    argv += ["--select", "width=8", "batch_size=512", "test_columns=64", "--workers", "2", "--device", "cpu"]
    assert cli.main([*argv, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert {run["method"] for run in results["runs"]} == set(POINT_6.split(","))
    for name in POINT_6.split(","):
        assert f"{name}: " in printed
    assert cli.main(["compare", "--resume", "--out", str(out), "--seeds", "1"]) == 0  # nothing is left to do
    assert json.loads((out / "results.json").read_text())["runs"] == results["runs"]
