"""Write the results of DARTS-Bench-Suite: results.json and report.html, a self-contained page."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence

from fastdarts.config.files import write_atomically
from fastdarts.config.reading import read_object
from fastdarts.report.rankings import Interval
from fastdarts.report.run_report import template
from fastdarts.report.suite_records import Record, Score, Summary, summarise, verdict_words
from fastdarts.runs.environment import environment
from fastdarts.runs.progress import duration
from fastdarts.runs.suite_config import SuiteConfig


def write_suite(config: SuiteConfig, runs: Sequence[Record], failures: Mapping[str, str]) -> None:
    """Write results.json and report.html into the suite's folder, which holds its config.json.

    Args:
        config: of the suite, with its folder.
        runs: the records of all runs that are over.
        failures: the errors of failed runs, by their names.
    """
    assert config.out is not None  # run_suite() sets it
    out, summary = config.out, summarise(config, runs)
    words = verdict_words(config, summary)
    everything: Record = {
        "config": read_object(out / "config.json"),
        "environment": environment(),
        "scaled_down": config.scaled(),
        "scores": [
            {"benchmark": benchmark, "method": method, **dataclasses.asdict(score)}
            for (benchmark, method), score in summary.scores.items()
        ],
        "ranked_benchmarks": summary.ranked,
        "ranks_by_mean": summary.ranks,
        "ranks_by_best": summary.best_ranks,
        "verdict": None if summary.verdict is None else dataclasses.asdict(summary.verdict),
        "verdict_in_words": words,
        "runs": list(runs),
        "failures": dict(failures),
    }
    write_atomically(out / "results.json", json.dumps(everything, indent=2) + "\n")
    page = {
        "title": f"fastdarts suite on {config.dataset}",
        "folder": str(out),
        "scaled": config.scaled(),
        "methods": config.method_names(),
        "ranks": _rank_rows(config, summary),
        "ranked": len(summary.ranked),
        "verdict": words,
        "means": _table(config, summary, lambda score: _with_interval(score.mean, score.interval)),
        "bests": _table(config, summary, lambda score: _with_interval(score.best, score.best_interval)),
        "details": [_details(*names, score) for names, score in summary.scores.items()],
        "searches": [_search_row(run) for run in runs if run["kind"] == "search"],
        "failures": failures,
        "tables": {
            name: [(key, "–" if value is None else str(value)) for key, value in everything[key_of].items()]
            for name, key_of in (("Configuration", "config"), ("Environment", "environment"))
        },
    }
    write_atomically(out / "report.html", template("suite.html").render(page))


def _rank_rows(config: SuiteConfig, summary: Summary) -> list[list[str]]:
    names = sorted(config.method_names(), key=lambda name: summary.ranks.get(name, 0.0)) if summary.ranks else []
    return [[name, f"{summary.ranks[name]:.2f}", f"{summary.best_ranks[name]:.2f}"] for name in names]


def _table(config: SuiteConfig, summary: Summary, cell: Callable[[Score], str]) -> list[list[str]]:
    rows = []
    for benchmark in config.benchmark_names():
        scores = [summary.scores.get((benchmark, method)) for method in config.method_names()]
        rows.append([benchmark, *("–" if score is None else cell(score) for score in scores)])
    return rows


def _with_interval(accuracy: float, interval: Interval | None) -> str:
    reach = "" if interval is None else f" ({100 * interval[0]:.2f} to {100 * interval[1]:.2f})"
    return f"{100 * accuracy:.2f} %{reach}"


def _details(benchmark: str, method: str, score: Score) -> list[str]:
    lr, decay = score.best_set
    counts = [f"{score.parameters:,}", f"{score.multiply_adds:,}"]
    return [benchmark, method, str(score.search), *counts, f"{lr:g}, {decay:g}"]


def _search_row(run: Record) -> list[str]:
    loss = f"{run['valid_loss']:.4f}"
    return [run["benchmark"], run["method"], str(run["number"]), loss, str(run["epochs"]), duration(run["seconds"])]
