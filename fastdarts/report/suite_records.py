"""Check the records of a suite's runs, which their result.json files hold, and summarise them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastdarts.report.rankings import (
    LEVEL,
    Interval,
    Verdict,
    average_ranks,
    interval_of_mean,
    interval_of_share,
    judge,
)
from fastdarts.runs.suite_config import SETS, SuiteConfig

Record = dict[str, Any]

_NUMBERS = {
    "search": ("number", "valid_loss", "epochs", "seconds", "peak_bytes"),
    "training": ("number", "lr", "weight_decay", "search", "accuracy", "parameters", "multiply_adds", "seconds"),
}


def check_suite_record(record: Record, path: Path) -> Record:
    """Check a run's `record`, which was read from the result.json at `path`, and return it unchanged.

    Raises: ValueError that names the file, the wrong keys and the remedy.
    """
    wrong = [name for name in ("benchmark", "method", "kind") if not isinstance(record.get(name), str)]
    kind = str(record.get("kind"))
    wrong += [name for name in _NUMBERS.get(kind, ()) if type(record.get(name)) not in (int, float)]
    images = record.get("images")
    if not (isinstance(images, list) and len(images) == 2 and all(type(count) is int for count in images)):
        wrong.append("images")
    if wrong or kind not in _NUMBERS:
        raise ValueError(
            f"{path} is damaged: {', '.join(wrong) or 'kind'} is missing or of a wrong kind; remove the file and "
            "resume: its run is done again"
        )
    return record


@dataclass(frozen=True)
class Score:
    """Summarise the trainings of the cell that a method found on a benchmark.

    Attributes:
        mean: of their test accuracies.
        interval: of the mean, over the hyper-parameter sets; None for one training.
        best: the best test accuracy.
        best_interval: what the number of test images leaves open about it, but not the choice of the best.
        best_set: the learning rate and weight decay of the best.
        search: number of the search that was chosen.
        parameters, multiply_adds: of the trained network.
    """

    mean: float
    interval: Interval | None
    best: float
    best_interval: Interval
    best_set: tuple[float, float]
    search: int
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Summary:
    """Hold the scores of all methods and benchmarks whose trainings have ended, and ranks over those of all methods.

    Attributes:
        scores: by (benchmark, method).
        ranked: the benchmarks that have scores of every method.
        ranks: average rank of each method by the mean over the sets; empty without such benchmarks.
        best_ranks: the same by the best of the sets.
        verdict: a test for differences of the means; None where there is too little for one.
    """

    scores: dict[tuple[str, str], Score]
    ranked: list[str]
    ranks: dict[str, float]
    best_ranks: dict[str, float]
    verdict: Verdict | None


def summarise(config: SuiteConfig, runs: Sequence[Record]) -> Summary:
    """Summarise the runs of a suite that are over."""
    methods = config.method_names()
    scores = {}
    for benchmark in config.benchmark_names():
        for method in methods:
            ours = [run for run in runs if (run["benchmark"], run["method"]) == (benchmark, method)]
            trainings = [run for run in ours if run["kind"] == "training"]
            if len(trainings) == len(config.scale.sets):
                scores[benchmark, method] = _score(trainings)
    ranked = [name for name in config.benchmark_names() if all((name, method) in scores for method in methods)]
    if not ranked:
        return Summary(scores, [], {}, {}, None)
    means, bests = (
        np.array([[getattr(scores[benchmark, method], what) for method in methods] for benchmark in ranked])
        for what in ("mean", "best")
    )
    ranks, best_ranks = (dict(zip(methods, average_ranks(table), strict=True)) for table in (means, bests))
    return Summary(scores, ranked, ranks, best_ranks, judge(means))


def _score(trainings: Sequence[Record]) -> Score:
    accuracies = [run["accuracy"] for run in trainings]
    best = max(trainings, key=lambda run: run["accuracy"])
    return Score(
        mean=statistics.fmean(accuracies),
        interval=interval_of_mean(accuracies),
        best=best["accuracy"],
        best_interval=interval_of_share(best["accuracy"], best["images"][1]),
        best_set=SETS[best["number"]],
        search=best["search"],
        parameters=best["parameters"],
        multiply_adds=best["multiply_adds"],
    )


def verdict_words(config: SuiteConfig, summary: Summary) -> str:
    """Return in a sentence if the methods differ."""
    found, methods = summary.verdict, config.method_names()
    if found is None:
        return "No test: it needs two methods and two benchmarks on which all trainings have ended."
    if found.p is None:
        return "All accuracies are equal."
    head = f"{found.test} over {len(summary.ranked)} benchmarks: p = {found.p:.3g}"
    if not found.pairs:
        if found.p >= 1 - LEVEL:
            return f"{head}; at the level of {1 - LEVEL:.2g} the methods do not differ."
        return (
            f"{head}: the methods differ, but no two of them by the critical difference {found.critical:.2f} of ranks."
        )
    pairs = "; ".join(f"{methods[one]} is better than {methods[other]}" for one, other in found.pairs)
    how = "" if found.critical is None else f" (Nemenyi's critical difference of average ranks: {found.critical:.2f})"
    return f"{head}; {pairs}{how}."
