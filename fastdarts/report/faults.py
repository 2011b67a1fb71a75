"""Show the accuracy of a network against the rate of faults."""

from collections.abc import Mapping
from typing import Any

from fastdarts.report.chart import Chart


def fault_chart(record: Mapping[str, Any], place: str) -> Chart:
    """Return the chart of what faults.json holds.

    Raises: ValueError that begins with `place` for contents of another kind.
    """
    try:
        rates = [float(rate) for rate in record["rates"]]
        accuracies = [None if value is None else float(value) for value in record["accuracies"]]
        if len(rates) != len(accuracies) or not rates:
            raise ValueError("rates and accuracies must be lists of one length")
        kind = str(record["kind"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"report: {place} is no curve of faults: {error}") from None
    return Chart(
        f"Accuracy under faults ({kind})",
        range(len(rates)),
        {"accuracy": accuracies},
        percent=True,
        axis="fault rate",
        names=[f"{rate:g}" for rate in rates],
    )
