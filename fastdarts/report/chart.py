"""Draw line charts over epochs as inline SVG: they follow the page's light or dark mode and need no picture files."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

Values = Sequence[float | None]

WIDTH, HEIGHT = 420, 230
RIGHT, TOP, BOTTOM = 12, 10, 34
CHARACTER = 6.6  # largest width of a character in a label


@dataclass(frozen=True)
class Chart:
    """Describe a line chart.

    Attributes:
        title: the chart's title.
        epochs: the epoch of each value.
        series: values by name; None or a value that is not finite is left out.
        percent: show fractions as %.
        integer: use whole numbers as ticks.
        zero: start the y axis at 0.
        axis: name of the x axis.
        names: texts under the x axis in place of the epochs, which count from 0 on.
        marks: epochs to mark with a vertical line, with the names of the lines.
    """

    title: str
    epochs: Sequence[int]
    series: Mapping[str, Values]
    percent: bool = False
    integer: bool = False
    zero: bool = False
    marks: Sequence[tuple[int, str]] = ()
    axis: str = "epoch"
    names: Sequence[str] = ()

    def last(self, name: str) -> str:
        """Return the last finite value of the series `name` as text, "none" if there is none."""
        known = [value for value in self.series[name] if value is not None and math.isfinite(value)]
        return self.format(known[-1]) if known else "none"

    def format(self, value: float) -> str:
        return f"{100 * value:.2f} %" if self.percent else f"{value:.4g}"

    def svg(self) -> Markup:
        """Return the lines and axes as SVG.

        The page provides title, legend and the classes `grid`, `mark`, `tick`, `s0`, `s1`, ... Values that are missing
        or not finite are left out; the line joins their neighbours.
        """
        return Markup("".join(self._elements()))

    def _elements(self) -> Iterator[str]:
        points = {
            name: [
                (epoch, value)
                for epoch, value in zip(self.epochs, values, strict=True)
                if value is not None and math.isfinite(value)
            ]
            for name, values in self.series.items()
        }
        values = [value for line in points.values() for _, value in line] or [0.0]
        y_ticks = ticks(0.0 if self.zero else min(values), max(values), 5, self.integer)
        first, last = self.epochs[0], self.epochs[-1]
        x_ticks: Sequence[float] = [tick for tick in ticks(first, last, 6, True) if first <= tick <= last]
        if self.names:
            x_ticks = self.epochs
        if first == last:  # one epoch: a dot in the middle
            first, last = first - 1, last + 1

        y_labels = self._labels(y_ticks)
        left = max(50.0, 12 + CHARACTER * max(map(len, y_labels)))

        def x_of(epoch: float) -> float:
            return left + (WIDTH - left - RIGHT) * (epoch - first) / (last - first)

        def y_of(value: float) -> float:
            return TOP + (HEIGHT - TOP - BOTTOM) * (y_ticks[-1] - value) / (y_ticks[-1] - y_ticks[0])

        x_labels = self.names or [f"{tick:g}" for tick in x_ticks]
        label = f"{self.title} over {self.axis}s {x_labels[0]} to {x_labels[-1]}: " + ", ".join(
            f"{name} ends at {self.last(name)}" for name in self.series
        )
        yield f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        for tick, text in zip(y_ticks, y_labels, strict=True):
            y = y_of(tick)
            yield f'<path class="grid" d="M{left:g} {y:.1f}H{WIDTH - RIGHT}"/>'
            yield f'<text class="tick" x="{left - 6:g}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        for tick, text in zip(x_ticks, x_labels, strict=True):
            x = x_of(tick)
            place = f'x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle"'
            yield f'<text class="tick" {place}>{escape(text)}</text>'
        yield f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{self.axis}</text>'
        for epoch, name in self.marks:
            x = x_of(epoch)
            beside, anchor = (x - 4, "end") if x > (left + WIDTH - RIGHT) / 2 else (x + 4, "start")
            yield f'<path class="mark" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
            yield f'<text class="tick" x="{beside:.1f}" y="{TOP + 10}" text-anchor="{anchor}">{escape(name)}</text>'
        for number, line in enumerate(points.values()):
            if len(line) > 1:
                path = " ".join(f"{x_of(epoch):.1f},{y_of(value):.1f}" for epoch, value in line)
                yield f'<polyline class="s{number}" points="{path}"/>'
            if line:
                yield f'<circle class="s{number}" cx="{x_of(line[-1][0]):.1f}" cy="{y_of(line[-1][1]):.1f}" r="3"/>'
        yield "</svg>"

    def _labels(self, ticks: Sequence[float]) -> list[str]:
        """Return labels for `ticks` with as many digits as are needed to make them distinct."""
        scale, unit = (100, "%") if self.percent else (1, "")
        for digits in range(6, 16):
            labels = [f"{scale * tick:.{digits}g}{unit}" for tick in ticks]
            if len(set(labels)) == len(labels):
                break
        return labels


def ticks(low: float, high: float, count: int, integer: bool) -> list[float]:
    """Return about `count` round numbers from at most `low` to at least `high`; whole ones with `integer`."""
    if low == high:
        low, high = (low - 1, high + 1) if integer else (low - 0.1 * abs(low) - 1e-6, high + 0.1 * abs(high) + 1e-6)
    locator = MaxNLocator(count, steps=[1, 2, 5, 10], integer=integer)
    return [float(f"{tick:.12g}") for tick in locator.tick_values(low, high)]
