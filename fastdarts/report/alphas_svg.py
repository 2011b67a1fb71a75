"""Draw the op weights of a search as SVG: lines in the page's theme that tell their numbers under the pointer."""

import math
from collections.abc import Iterator, Sequence
from html import escape

import numpy as np
from markupsafe import Markup

from fastdarts.report.alphas import Floats, GroupHistory, Panel, panels
from fastdarts.report.heat import HeatMap
from fastdarts.spaces.drawing import colours_of

_WIDTH, _HEIGHT, _LEFT, _TOP = 196, 92, 30, 18  # of a panel, and of its labels
_DASHES = ("", "6 2.5", "2 2")


def legend(primitives: Sequence[str]) -> Markup:
    """Return the ops' names beside pieces of their lines."""
    parts = []
    for name, (colour, dashes) in zip(primitives, _styles(primitives), strict=True):
        line = f'<path d="M0 6H26" stroke="{colour}" stroke-dasharray="{dashes}" stroke-width="2"/>'
        parts.append(f'<span><svg class="key" viewBox="0 0 26 12">{line}</svg>{escape(name)}</span>')
    return Markup("".join(parts))


def group_svg(group: GroupHistory, primitives: Sequence[str], top: float) -> Markup:
    """Return the panels of a group: an edge's column is its target state and its row the source.

    Args:
        group: the op weights over the epochs.
        primitives: names of the ops.
        top: largest value of the y axes.
    """
    grid = panels(group)
    width = _LEFT + _WIDTH * (1 + max(panel.across for panel in grid))
    height = 20 + _HEIGHT * (1 + max(panel.down for panel in grid))
    label = f"Weight of each op in the {group.title}, by epoch"
    parts = [f'<svg class="alphas" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">']
    for panel in grid:
        parts += _panel(panel, group, primitives, top)
    parts.append(f'<text class="tick" x="{width - 4}" y="{height - 3}" text-anchor="end">epoch</text></svg>')
    return Markup("".join(parts))


def largest(groups: Sequence[GroupHistory]) -> float:
    """Return the largest op weight or edge weight of all groups."""
    drawn = [value for group in groups for value in (group.weights, group.row_weights) if value is not None]
    return max((float(value[np.isfinite(value)].max(initial=0.0)) for value in drawn), default=1.0) or 1.0


def _panel(panel: Panel, group: GroupHistory, primitives: Sequence[str], top: float) -> Iterator[str]:
    weights = group.weights[:, panel.row]
    epochs = len(weights) - 1
    x0, y0 = _LEFT + _WIDTH * panel.across, _TOP + _HEIGHT * panel.down
    across, down = _WIDTH - 24, _HEIGHT - 34
    order = _by_weight(weights[-1], primitives)

    def points(values: Floats) -> str:
        places = (
            (x0 + across * epoch / max(epochs, 1), y0 + down * (1 - value / top))
            for epoch, value in enumerate(values)
            if math.isfinite(value)
        )
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)

    yield f'<text class="name" x="{x0}" y="{y0 - 5}">{escape(panel.label)}</text>'
    if order:
        best = order[0]
        colour, _ = _styles(primitives)[best]
        yield f'<text class="best" x="{x0 + across}" y="{y0 - 5}" text-anchor="end" fill="{colour}">'
        yield f"{escape(primitives[best])} {weights[-1, best]:.2f}</text>"
    for value in (0.0, top):
        y = y0 + down * (1 - value / top)
        yield f'<path class="grid" d="M{x0} {y:.1f}h{across}"/>'
        if panel.labels_left:
            yield f'<text class="tick" x="{x0 - 4}" y="{y + 4:.1f}" text-anchor="end">{value:.2g}</text>'
    if panel.labels_below:
        yield f'<text class="tick" x="{x0}" y="{y0 + down + 13}">0</text>'
        yield f'<text class="tick" x="{x0 + across}" y="{y0 + down + 13}" text-anchor="end">{epochs}</text>'
    for op, (colour, dashes) in enumerate(_styles(primitives)):
        line = points(weights[:, op])
        if not line:
            continue
        words = f"{primitives[op]}, {panel.label}: {weights[0, op]:.3f} at first, {weights[-1, op]:.3f} at the end"
        yield f'<g class="op"><polyline points="{line}" stroke="{colour}" stroke-dasharray="{dashes}"/>'
        yield f'<polyline class="touch" points="{line}"/><title>{escape(words)}</title></g>'
    if group.row_weights is not None:
        yield f'<polyline class="edge" points="{points(group.row_weights[:, panel.row])}">'
        yield "<title>weight of the edge</title></polyline>"


def margins(group: GroupHistory, primitives: Sequence[str]) -> HeatMap:
    """Return the map of how clearly each row has chosen: the lead of its strongest op, without `none`, by epoch."""
    values: list[list[float | None]] = []
    texts: list[list[str]] = []
    for panel in panels(group):
        shares: list[float | None] = []
        words = []
        for epoch, weights in enumerate(group.weights[:, panel.row]):
            order = _by_weight(weights, primitives)
            if len(order) < 2:
                shares.append(None)
                words.append(f"{panel.label}, epoch {epoch}: one op is left")
                continue
            first, second = order[:2]
            lead = float(weights[first] - weights[second])
            shares.append(lead)
            words.append(
                f"{panel.label}, epoch {epoch}: {primitives[first]} {weights[first]:.3f}, "
                f"{primitives[second]} {weights[second]:.3f}, lead {lead:.3f}"
            )
        values.append(shares)
        texts.append(words)
    most = max((value for row in values for value in row if value is not None), default=0.0) or 1.0
    scaled = [[None if value is None else value / most for value in row] for row in values]
    epochs = [str(epoch) for epoch in range(len(group.weights))]
    rows = [panel.label for panel in panels(group)]
    return HeatMap(
        f"Lead of the strongest op, {group.title}", rows, epochs, scaled, texts, 14, len(epochs) // 12 + 1, "epoch"
    )


def _by_weight(weights: Floats, primitives: Sequence[str]) -> list[int]:
    """Return the ops that a row has, without `none`, the strongest first."""
    known = [op for op, name in enumerate(primitives) if name != "none" and math.isfinite(weights[op])]
    return sorted(known, key=lambda op: -weights[op])


def _styles(primitives: Sequence[str]) -> list[tuple[str, str]]:
    """Return colour and dashes of each op: ops of a family share a colour."""
    styles: list[tuple[str, str]] = []
    for name in primitives:
        colour = colours_of(name).line
        styles.append((colour, _DASHES[sum(other == colour for other, _ in styles) % len(_DASHES)]))
    return styles
