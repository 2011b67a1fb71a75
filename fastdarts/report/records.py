"""Check the records of a comparison's runs, which their result.json files hold, and summarise them by method."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]


_NUMBERS = (
    *("seed", "accuracy", "parameters", "multiply_adds"),
    *("search_seconds", "select_seconds", "search_epochs", "peak_bytes"),
)


def check_record(record: Record, path: Path) -> Record:
    """Check a run's `record`, which was read from the result.json at `path`, and return it unchanged.

    Raises: ValueError that names the file, the wrong keys and the remedy.
    """
    wrong = [name for name in _NUMBERS if type(record.get(name)) not in (int, float)]
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


def summaries(runs: Sequence[Record]) -> list[Record]:
    """Return a summary of each method, sorted by best accuracy.

    Its keys are `method`, `seeds` (their number), `accuracy_mean`, `accuracy_std` (the sample standard deviation; None
    for one seed), `best` (the run with the best accuracy), `search_seconds` (mean), `peak_bytes` (largest) and `text`.
    """
    found = []
    for method in dict.fromkeys(run["method"] for run in runs):
        ours = [run for run in runs if run["method"] == method]
        accuracies = [run["accuracy"] for run in ours]
        mean, std = statistics.fmean(accuracies), statistics.stdev(accuracies) if len(ours) > 1 else None
        spread = "" if std is None else f" ± {100 * std:.2f}"
        seeds = "1 seed" if len(ours) == 1 else f"{len(ours)} seeds"
        best = max(ours, key=lambda run: run["accuracy"])
        found.append(
            {
                "method": method,
                "seeds": len(ours),
                "accuracy_mean": mean,
                "accuracy_std": std,
                "best": best,
                "search_seconds": statistics.fmean(run["search_seconds"] for run in ours),
                "peak_bytes": max(run["peak_bytes"] for run in ours),
                "text": f"{100 * mean:.2f}{spread} % ({seeds}), best {100 * best['accuracy']:.2f} %",
            }
        )
    return sorted(found, key=lambda row: -row["best"]["accuracy"])


def _is_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(type(number) in (int, float) for number in value.values())
