"""Show the architectures that a search compared at its end: accuracy against cost, with the Pareto front."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

from markupsafe import Markup

from fastdarts.report.chart import CHARACTER, ticks
from fastdarts.spaces.registry import read_architecture

_WIDTH, _HEIGHT = 640, 320
_RIGHT, _TOP, _BOTTOM = 14, 12, 40


class Candidate(NamedTuple):
    """Describe one architecture.

    Attributes:
        number: its place in the list.
        text: the architecture in words.
        score: accuracy, or minus the loss.
        cost: in the unit of the list.
        front: True on the Pareto front.
    """

    number: int
    text: str
    score: float
    cost: float
    front: bool


@dataclass(frozen=True)
class Candidates:
    """Describe the picture.

    Attributes:
        compared: the architectures.
        found: text of the one that the search returns.
        unit: unit of the costs; empty where there are none.
        measured: how scores were measured, in words.
    """

    compared: Sequence[Candidate]
    found: str
    unit: str
    measured: str

    @property
    def count(self) -> int:
        return len(self.compared)

    @property
    def axis(self) -> str:
        return "accuracy" if all(0 <= one.score <= 1 for one in self.compared) else "minus loss"

    def rows(self) -> list[tuple[int, str, str, str]]:
        """Return number, text, score and cost of those on the front and of the one found, the best first."""
        shown = (one for one in self.compared if one.front or one.text == self.found)
        best = sorted(shown, key=lambda one: -one.score)
        return [(one.number, one.text, self._score(one.score), f"{one.cost:.4g}") for one in best]

    def svg(self) -> Markup:
        """Return the dots and axes as SVG; the page provides the classes `grid`, `tick`, `s0`, `s1` and `scatter`."""
        return Markup("".join(self._elements()))

    def _score(self, score: float) -> str:
        return f"{100 * score:.4g} %" if self.axis == "accuracy" else f"{score:.4g}"

    def _elements(self) -> Iterator[str]:
        costs, scores = [one.cost for one in self.compared], [one.score for one in self.compared]
        x_ticks, y_ticks = ticks(min(costs), max(costs), 6, False), ticks(min(scores), max(scores), 5, False)
        left = 14 + CHARACTER * max(len(self._score(tick)) for tick in y_ticks)

        def x_of(cost: float) -> float:
            return left + (_WIDTH - left - _RIGHT) * (cost - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])

        def y_of(score: float) -> float:
            return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (y_ticks[-1] - score) / (y_ticks[-1] - y_ticks[0])

        label = f"{self.axis} of {self.count} architectures against their cost"
        yield f'<svg class="scatter" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        for tick in y_ticks:
            y = y_of(tick)
            yield f'<path class="grid" d="M{left:.1f} {y:.1f}H{_WIDTH - _RIGHT}"/>'
            yield f'<text class="tick" x="{left - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{self._score(tick)}</text>'
        if self.unit:
            for tick in x_ticks:
                yield f'<text class="tick" x="{x_of(tick):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">'
                yield f"{tick:g}</text>"
        bottom = f'x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 5}" text-anchor="end"'
        yield f'<text class="tick" {bottom}>{escape(self.unit or "no cost was given")}</text>'
        front = sorted((one for one in self.compared if one.front), key=lambda one: one.cost)
        if len(front) > 1:
            points = " ".join(f"{x_of(one.cost):.1f},{y_of(one.score):.1f}" for one in front)
            yield f'<polyline class="s1" points="{points}"/>'
        for one in self.compared:
            look, radius = ("s1" if one.front else "s0"), (7 if one.text == self.found else 3.5)
            yield f'<circle class="{look}" cx="{x_of(one.cost):.1f}" cy="{y_of(one.score):.1f}" r="{radius}">'
            told = f"{one.text}: {self._score(one.score)}" + (f", {one.cost:.4g} {self.unit}" if self.unit else "")
            yield f"<title>{escape(told)}</title></circle>"
        yield "</svg>"


def read_candidates(record: Mapping[str, Any], place: str) -> Candidates:
    """Read the contents of candidates.json.

    Raises: ValueError that begins with `place` for contents of another kind.
    """
    try:
        compared = [
            Candidate(
                number, _text(one["architecture"]), float(one["score"]), float(one["cost"] or 0), bool(one["front"])
            )
            for number, one in enumerate(record["candidates"])
        ]
        return Candidates(compared, _text(record["found"]), str(record["unit"] or ""), str(record["measured"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"report: {place} is no list of compared architectures: {error}") from None


def _text(architecture: Mapping[str, Any]) -> str:
    return str(read_architecture(json.dumps(architecture)))
