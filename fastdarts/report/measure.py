"""The number by which a comparison ranks found cells: accuracy on images, perplexity on texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastdarts.data.text.sources import TEXTS


@dataclass(frozen=True)
class Measure:
    """Describe a number that each run's record holds.

    Attributes:
        key: its name in the records.
        unit: the unit behind it, with a blank before.
        scale: factor to that unit.
        sign: 1 if larger is better, -1 if smaller is.
    """

    key: str
    unit: str
    scale: float
    sign: int

    def text(self, value: float, spread: float | None = None) -> str:
        """Return a value with its unit, and with a standard deviation unless that is None."""
        deviation = "" if spread is None else f" ± {self.scale * spread:.2f}"
        return f"{self.scale * value:.2f}{deviation}{self.unit}"

    def ranked(self, runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return records, the best first."""
        return sorted(runs, key=lambda run: -self.sign * run[self.key])


ACCURACY = Measure("accuracy", " %", 100, 1)
PERPLEXITY = Measure("perplexity", "", 1, -1)


def measure_on(dataset: str) -> Measure:
    """Return the measure of comparisons on a data set."""
    return PERPLEXITY if dataset in TEXTS else ACCURACY


def measure_in(record: dict[str, Any]) -> Measure:
    """Return the measure that a run's record holds; accuracy unless it is a perplexity."""
    return PERPLEXITY if PERPLEXITY.key in record else ACCURACY
