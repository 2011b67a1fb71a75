"""Check the records of a comparison's runs, which their result.json files hold, and summarise them by method."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastdarts.report.measure import ACCURACY, Measure, measure_in

Record = dict[str, Any]


_NUMBERS = (
    *("seed", "parameters", "multiply_adds"),
    *("search_seconds", "select_seconds", "search_epochs", "peak_bytes"),
)


def check_record(record: Record, path: Path) -> Record:
    """Check a run's `record`, which was read from the result.json at `path`, and return it unchanged.

    Raises: ValueError that names the file, the wrong keys and the remedy.
    """
    wrong = [name for name in (measure_in(record).key, *_NUMBERS) if type(record.get(name)) not in (int, float)]
    wrong += [name for name in ("method", "folder") if not isinstance(record.get(name), str)]
    wrong += [name for name in ("numbers", "tabulated") if not _is_numbers(record.get(name))]
    if not wrong and record["folder"] != path.parent.name:
        wrong = ["folder"]
    if wrong or not isinstance(record.get("stopped"), str | None):
        raise ValueError(
            f"{path} is damaged: {', '.join(wrong) or 'stopped'} is missing or of a wrong kind; remove the file and "
            "resume: its run is measured again"
        )
    return record


def summaries(runs: Sequence[Record], measure: Measure = ACCURACY) -> list[Record]:
    """Return a summary of each method, that of the best run first.

    Its keys are `method`, `seeds` (their number), `accuracy_mean`, `accuracy_std` (the sample standard deviation; None
    for one seed), `best` (the run with the best accuracy), `search_seconds` (mean), `peak_bytes` (largest) and `text`.

    Args:
        runs: records of runs.
        measure: what they are ranked by; its key takes the place of `accuracy`.
    """
    found = []
    for method in dict.fromkeys(run["method"] for run in runs):
        ours = [run for run in runs if run["method"] == method]
        values = [run[measure.key] for run in ours]
        mean, std = statistics.fmean(values), statistics.stdev(values) if len(ours) > 1 else None
        seeds = "1 seed" if len(ours) == 1 else f"{len(ours)} seeds"
        best = measure.ranked(ours)[0]
        found.append(
            {
                "method": method,
                "seeds": len(ours),
                f"{measure.key}_mean": mean,
                f"{measure.key}_std": std,
                "best": best,
                "search_seconds": statistics.fmean(run["search_seconds"] for run in ours),
                "peak_bytes": max(run["peak_bytes"] for run in ours),
                "text": f"{measure.text(mean, std)} ({seeds}), best {measure.text(best[measure.key])}",
            }
        )
    order = measure.ranked([row["best"] for row in found])
    return sorted(found, key=lambda row: order.index(row["best"]))


def _is_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(type(number) in (int, float) for number in value.values())
