"""Draw how the op weights changed over the epochs of a search."""

import io
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fastdarts.config.files import write_atomically
from fastdarts.spaces.darts.genotype import edges_of
from fastdarts.spaces.drawing import colours_of
from fastdarts.spaces.picture import MUTED, STATE, render

Floats = NDArray[np.float64]


class GroupHistory(NamedTuple):
    """Hold the op weights of a group of rows over the epochs."""

    title: str
    weights: Floats
    """Op weights [epochs + 1, rows, ops]; NaN where a row does not have the op."""
    ends: list[tuple[int, int]]
    """(source, target) of each row if rows are edges of a cell; empty otherwise."""
    row_weights: Floats | None
    """Edge weights [epochs + 1, rows] if the method has them, else None."""


def draw_alphas(alphas: Path) -> Path:
    """Draw how the op weights of every row changed and save the picture as `alphas.png` beside the file `alphas`.

    Each row has a panel: an edge is in the column of its target state and the row of its source state. Each primitive
    has a line. The title of a panel names the op that is strongest at the end, ignoring `none`, as in the derivation of
    a genotype.

    Args:
        alphas: an .npz file in the format of `read_alphas`.

    Returns: the path of the picture.

    Raises: as `read_alphas`.
    """
    path = alphas.with_name("alphas.png")
    write_atomically(path, alphas_png(*read_alphas(alphas)))
    return path


def read_alphas(alphas: Path) -> tuple[list[GroupHistory], list[str]]:
    """Read and check an alphas.npz.

    Args:
        alphas: a file that holds `primitives`, the names of the ops; `groups`, the names of the groups (default: normal
            and reduce); for each group G raw alphas `G` [epochs + 1, rows, ops], -inf where an op is masked; and
            optionally `weights_G`, op weights of the same shape (default: the softmax), `edges_G` [epochs + 1, rows],
            edge weights, `ends_G` [rows, 2], the states that the edges connect, and `title_G`.

    Returns: the groups, and the names of the ops.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, or an array, which the message names, is missing or does not fit.
    """
    if not alphas.is_file():
        raise FileNotFoundError(f"there is no file {alphas}")
    try:
        with np.load(io.BytesIO(alphas.read_bytes()), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, TypeError, OSError, EOFError, BadZipFile, zlib.error) as error:
        raise ValueError(f"{alphas} is not a readable .npz file: {error}") from None
    names = [str(name) for name in arrays.get("groups", np.array(["normal", "reduce"])).ravel()]
    for name in (*names, "primitives"):
        if name not in arrays:
            raise ValueError(f"{alphas}: the array {name!r} is missing; it holds {', '.join(arrays) or 'none'}")
    primitives = [str(name) for name in arrays["primitives"].ravel()]
    return [_read_group(alphas, arrays, name, primitives) for name in names], primitives


def _read_group(path: Path, arrays: dict[str, Any], name: str, primitives: list[str]) -> GroupHistory:
    value = arrays[name]
    for kind, shape in (("weights", value.shape), ("edges", value.shape[:2]), ("ends", (*value.shape[1:2], 2))):
        extra = arrays.get(f"{kind}_{name}", np.zeros(shape))
        if extra.shape != shape or extra.dtype.kind not in "fiu":
            raise ValueError(
                f"{path}: '{kind}_{name}' must be numbers {list(shape)}; got {extra.dtype} {list(extra.shape)}"
            )
    if value.ndim != 3 or value.shape[0] < 1 or value.shape[2] != len(primitives) or value.dtype.kind not in "fiu":
        raise ValueError(
            f"{path}: {name!r} must be numbers [epochs + 1, edges, {len(primitives)} primitives]; "
            f"got {value.dtype} {list(value.shape)}"
        )
    ends = arrays.get(f"ends_{name}")
    if ends is None and "groups" not in arrays:
        ends = np.array(edges_of(_steps(value.shape[1])))
        if len(ends) != value.shape[1]:
            raise ValueError(f"{path}: {name!r} has {value.shape[1]} edges; cells have 2, 5, 9, 14, 20, ...")
    weights = arrays.get(f"weights_{name}")
    row_weights = arrays.get(f"edges_{name}")
    title = str(arrays.get(f"title_{name}", {"normal": "normal cell", "reduce": "reduction cell"}.get(name, name)))
    return GroupHistory(
        title,
        (op_weights(value.astype(np.float64)) if weights is None else weights).astype(np.float64),
        [] if ends is None else [(int(source), int(target)) for source, target in ends],
        None if row_weights is None else row_weights.astype(np.float64),
    )


def _steps(edges: int) -> int:
    """Return the number of nodes of a DARTS cell with `edges` edges: the largest n with n (n + 3) / 2 <= edges."""
    return (math.isqrt(9 + 8 * edges) - 3) // 2


def op_weights(alphas: Floats) -> Floats:
    """Return the softmax of `alphas` over the last axis; NaN where alpha is -inf (masked) or NaN."""
    known = np.isfinite(alphas)
    shifted = np.where(known, alphas, -np.inf)
    top = np.max(shifted, axis=-1, keepdims=True, initial=-np.inf)
    weights = np.exp(shifted - np.where(np.isfinite(top), top, 0))
    total = weights.sum(axis=-1, keepdims=True)
    return np.where(known, weights / np.where(total > 0, total, 1), np.nan)


PANEL_WIDTH, PANEL_HEIGHT = 2.6, 1.35  # inches
_WRAP = 6  # panels per line for rows that are not edges


_DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.5)), (0, (1.2, 1.2)))


def _line_styles(primitives: Sequence[str]) -> list[dict[str, Any]]:
    """Return a line style for each primitive: ops of a family share a colour and differ in their dashes."""
    styles: list[dict[str, Any]] = []
    for name in primitives:
        colour = colours_of(name).line
        members = sum(style["color"] == colour for style in styles)
        styles.append({"color": colour, "linestyle": _DASHES[members % len(_DASHES)], "linewidth": 1.5})
    return styles


class Panel(NamedTuple):
    """Hold the position of a row's panel in its group's grid."""

    row: int
    label: str
    across: int
    down: int
    labels_left: bool
    labels_below: bool


def panels(group: GroupHistory) -> list[Panel]:
    """Place edges by target and source, other rows in lines of six."""
    rows = group.weights.shape[1]
    if not group.ends:
        return [
            Panel(row, str(row), row % _WRAP, row // _WRAP, row % _WRAP == 0, row + _WRAP >= rows)
            for row in range(rows)
        ]
    first = min(target for _, target in group.ends)
    return [
        Panel(
            row,
            f"{source} → {target}",
            target - first,
            source,
            target == max(source + 1, first),
            source == max(s for s, t in group.ends if t == target),
        )
        for row, (source, target) in enumerate(group.ends)
    ]


def alphas_png(groups: Sequence[GroupHistory], primitives: Sequence[str]) -> bytes:
    """Draw the picture of `draw_alphas` from the results of `read_alphas`; return the bytes of a PNG file."""
    drawn = [value for group in groups for value in (group.weights, group.row_weights) if value is not None]
    known = np.concatenate([value[np.isfinite(value)] for value in drawn])
    styles = _line_styles(primitives)
    grids = [panels(group) for group in groups]

    width = 0.6 + PANEL_WIDTH * max(2, *(panel.across + 1 for grid in grids for panel in grid))
    legend_rows = math.ceil(len(primitives) / int((width - 0.6) / 1.7))
    head = 0.75 + 0.24 * legend_rows
    height = head + sum(0.75 + PANEL_HEIGHT * (1 + max(panel.down for panel in grid)) for grid in grids)
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")

    def text(y: float, words: str, **style: Any) -> None:
        figure.text(0.5 / width, 1 - y / height, words, **style)

    text(0.35, "Weight of each op on each edge, by epoch", size=13, weight="bold", color=STATE.text)
    dotted = "dotted: all of an edge's ops equal, as at the start"
    weighted = any(group.row_weights is not None for group in groups)
    text(0.6, f"{dotted}; black: weight of the edge" if weighted else dotted, size=9, color=MUTED)
    figure.legend(
        [Line2D([], [], **style) for style in styles],
        primitives,
        loc="upper left",
        bbox_to_anchor=(0.42 / width, 1 - 0.72 / height),
        ncols=math.ceil(len(primitives) / legend_rows),
        labelcolor=STATE.text,
        fontsize=9,
        handlelength=2.6,
        frameon=False,
        borderaxespad=0,
    )
    y = head
    for group, grid in zip(groups, grids, strict=True):
        text(y + 0.4, group.title[:1].upper() + group.title[1:], size=12, weight="bold", color=STATE.text)
        y += 0.75
        for panel in grid:
            left, bottom = 0.5 + PANEL_WIDTH * panel.across, y + PANEL_HEIGHT * (panel.down + 1) - 0.4
            axes = figure.add_axes(
                (left / width, 1 - bottom / height, (PANEL_WIDTH - 0.2) / width, (PANEL_HEIGHT - 0.45) / height),
                ylim=(0, 1.05 * max(known, default=1.0)),
            )
            axes.set_title(panel.label, loc="left", size=9, weight="bold", color=STATE.text, pad=3)
            axes.tick_params(labelsize=7.5, labelcolor=MUTED, color=STATE.line, length=2.5)
            axes.tick_params(labelleft=panel.labels_left, labelbottom=panel.labels_below)
            _draw_edge(axes, group.weights[:, panel.row], primitives, styles)
            if group.row_weights is not None:
                axes.plot(group.row_weights[:, panel.row], color=STATE.text, linewidth=1.5, clip_on=False)
        y += PANEL_HEIGHT * (1 + max(panel.down for panel in grid))
    return render(figure)


def _draw_edge(axes: Axes, weights: Floats, primitives: Sequence[str], styles: list[dict[str, Any]]) -> None:
    """Draw a panel from op weights [epochs + 1, ops]."""
    epochs = len(weights) - 1
    axes.axhline(weights[0][np.isfinite(weights[0])].mean(), color=STATE.line, linewidth=0.8, linestyle=(0, (1, 2)))
    for op, style in enumerate(styles):
        axes.plot(weights[:, op], marker="o" if epochs < 2 else None, markersize=3, clip_on=epochs > 1, **style)
    axes.set_xlim(0, max(epochs, 1))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.grid(color="#e5e8ec", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(STATE.line)
    last = {op: weight for op, weight in enumerate(weights[-1]) if primitives[op] != "none" and weight >= 0}
    if last:
        best = max(last, key=last.__getitem__)
        words = f"{primitives[best]} {last[best]:.2f}"
        axes.set_title(words, loc="right", size=7.5, color=colours_of(primitives[best]).text, pad=3)
