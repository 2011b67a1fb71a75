"""Accuracy of a run's network under faults of several rates."""

import dataclasses
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fastdarts.config.files import write_atomically
from fastdarts.runs.progress import json_number
from fastdarts.tasks.faults import Faults

_FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the config's rate


class Measurable(Protocol):
    """Declare what a run offers to measure its network under faults."""

    def under(self, faults: Faults) -> AbstractContextManager[None]:
        """Inside, measurements are those under faults."""
        ...

    def measure(self, data: Any, between_batches: Callable[[], object]) -> tuple[float, float]:
        """Return the network's mean loss and accuracy on `data`."""
        ...


@dataclass(frozen=True)
class FaultCurve:
    """Hold accuracies by the rate of faults.

    Attributes:
        kind: of the faults.
        rates: from 0 on.
        accuracies: of the network at each rate; None without classes.
    """

    kind: str
    rates: list[float]
    accuracies: list[float | None]

    def __str__(self) -> str:
        known = zip(self.rates, self.accuracies, strict=True)
        shown = (f"{100 * accuracy:.2f} % at {rate:g}" for rate, accuracy in known if accuracy is not None)
        return f"{self.kind}, accuracy {', '.join(shown)}"

    def save(self, path: Path) -> None:
        """Write a JSON file for the report."""
        write_atomically(path, json.dumps(dataclasses.asdict(self), indent=1) + "\n")


def fault_curve(run: Measurable, faults: str, data: Any) -> FaultCurve:
    """Measure a run's network without faults, and at a tenth to ten times their rate.

    Every batch draws its faults anew, the same ones in each call: each is another device.

    Args:
        run: holds the network.
        faults: as in a config.
        data: the images.
    """
    given = Faults.read(faults)
    rates = sorted({0.0, *(min(float(f"{given.rate * factor:.6g}"), 1.0) for factor in _FACTORS)})
    accuracies = []
    for rate in rates:
        with run.under(given.at(rate)):
            accuracies.append(json_number(run.measure(data, lambda: None)[1]))
    return FaultCurve(given.kind, rates, accuracies)
