"""Pictures of a search: the cells of a genotype (SVG, PNG) and how the op weights moved over the epochs (PNG)."""

import io
import math
import zlib
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path as Outline
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fastdarts.config.files import write_atomically
from fastdarts.primitives.table import candidate
from fastdarts.spaces.darts.genotype import Genotype, edges_of
from fastdarts.spaces.darts.layout import FAMILIES, FONT, NOTE_FONT, Colours, Drawing, cells_of, lay_out

Floats = NDArray[np.float64]


STATE = Colours("#8d98a5", "#f3f5f8", "#1f2933")
STATE_DARK = Colours("#77828f", "#232b35", "#e6eaef")
MUTED, MUTED_DARK = "#5b6673", "#9aa5b1"


def draw_cells(genotype: Genotype) -> str:
    """Both cells as one SVG document that follows the viewer's light or dark mode.

    Raises: ValueError if the genotype is not a valid one.
    """
    return "\n".join(_svg(lay_out(genotype), _describe(genotype)))


def write_cells(genotype: Genotype, out_dir: Path) -> tuple[Path, Path]:
    """Writes the picture of `draw_cells` as `cells.svg` and `cells.png` (twice the size); returns their paths."""
    svg, png = out_dir / "cells.svg", out_dir / "cells.png"
    write_atomically(svg, draw_cells(genotype))
    write_atomically(png, _png(lay_out(genotype)))
    return svg, png


def _describe(genotype: Genotype) -> str:
    """The cells in words, for those who cannot see the picture."""
    sentences = []
    for title, nodes, concat in cells_of(genotype):
        edges = [f"{source} to {state} {name}" for state, node in enumerate(nodes, start=2) for name, source in node]
        sentences.append(f"{title}: {', '.join(edges)}; output {', '.join(map(str, concat))}.")
    return " ".join(sentences)


def _rules(state: Colours, muted: str, back: str) -> str:
    rules = {
        "back": f"fill:{back}",
        "gap": f"fill:none;stroke:{back};stroke-width:7",
        "line": f"fill:none;stroke:{state.line};stroke-width:2",
        "arrow": f"fill:{state.line}",
        "box": f"fill:{state.fill};stroke:{state.line}",
        "ink": f"fill:{state.text}",
        "muted": f"fill:{muted}",
    }
    return "".join(f".cells .{name}{{{rule}}}" for name, rule in rules.items())


_STYLE = (
    '.cells{font-family:system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}'
    ".cells .mid{text-anchor:middle}"
    + _rules(STATE, MUTED, "#ffffff")
    + f"@media screen and (prefers-color-scheme:dark){{{_rules(STATE_DARK, MUTED_DARK, '#12171d')}}}"
)


def _svg(drawing: Drawing, description: str) -> Iterator[str]:
    width, height = f"{drawing.width:.0f}", f"{drawing.height:.0f}"
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="cells" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-labelledby="cells-title cells-description">'
    )
    yield f'<title id="cells-title">Cells</title><desc id="cells-description">{escape(description)}</desc>'
    yield f'<style>{_STYLE}</style><rect class="back" width="{width}" height="{height}"/>'
    for (x, y), title, note in drawing.titles:
        yield _svg_text(x, y + 16, title, 'class="ink" font-weight="600"', 17)
        yield _svg_text(x, y + 36, note, 'class="muted"', FONT)
    for line in drawing.lines:
        path = "".join(command + " ".join(f"{x:.1f} {y:.1f}" for x, y in points) for command, points in line.commands())
        tip = " ".join(f"{x:.1f},{y:.1f}" for x, y in line.arrow())
        stroke, fill = (f' style="{rule}:{line.colours.line}"' if line.colours else "" for rule in ("stroke", "fill"))
        yield f'<path class="gap" d="{path}"/><path class="line"{stroke} d="{path}"/>'
        yield f'<polygon class="arrow"{fill} points="{tip}"/>'
    for box in drawing.boxes:
        colours, (x, y) = box.colours, box.middle
        frame = f'x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"'
        if colours:
            yield f'<rect {frame} rx="{box.height / 2:g}" fill="{colours.fill}" stroke="{colours.line}"/>'
            yield _svg_text(x, y + 4, box.text, f'class="mid" fill="{colours.text}"', FONT)
        else:
            yield f'<rect class="box" {frame} rx="8"/>'
            yield _svg_text(x, y + (0 if box.note else 5), box.text, 'class="ink mid"', 15, box.subscript)
            if box.note:
                yield _svg_text(x, y + 16, box.note, 'class="muted mid"', NOTE_FONT)
    yield "</svg>"


def _svg_text(x: float, y: float, text: str, attributes: str, size: int, subscript: str = "") -> str:
    below = f'<tspan dy="3" font-size="{0.7 * size:.1f}">{escape(subscript)}</tspan>' if subscript else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" {attributes}>{escape(text)}{below}</text>'


_CODES = {"M": [Outline.MOVETO], "L": [Outline.LINETO], "Q": [Outline.CURVE3, Outline.CURVE3]}
_POINTS = 0.72  # typographic points a pixel, at 100 pixels an inch


def _png(drawing: Drawing) -> bytes:
    figure = Figure(figsize=(drawing.width / 100, drawing.height / 100), dpi=200, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, drawing.width), ylim=(drawing.height, 0))
    axes.set_axis_off()
    for (x, y), title, note in drawing.titles:
        axes.text(x, y + 16, title, size=17 * _POINTS, weight="bold", color=STATE.text)
        axes.text(x, y + 36, note, size=FONT * _POINTS, color=MUTED)
    for line in drawing.lines:
        colour = (line.colours or STATE).line
        commands = line.commands()
        vertices = [point for _, points in commands for point in points]
        codes = [code for command, _ in commands for code in _CODES[command]]
        for width, ink in ((7, "white"), (2, colour)):  # a gap in what the line crosses, then the line
            axes.add_patch(PathPatch(Outline(vertices, codes), fill=False, edgecolor=ink, linewidth=width * _POINTS))
        axes.add_patch(Polygon(line.arrow(), closed=True, color=colour, linewidth=0))
    for box in drawing.boxes:
        colours, (x, y) = box.colours or STATE, box.middle
        style = f"round,pad=0,rounding_size={box.height / 2 if box.colours else 8}"
        frame = FancyBboxPatch((box.x, box.y), box.width, box.height, style, linewidth=0.8)
        frame.set(facecolor=colours.fill, edgecolor=colours.line)
        axes.add_patch(frame)
        text = f"${box.text}_{{{box.subscript.replace('−', '-')}}}$" if box.subscript else box.text
        size = (FONT if box.colours else 15) * _POINTS
        place: dict[str, Any] = {"ha": "center", "va": "center_baseline"}
        axes.text(x, y - (5 if box.note else 0), text, size=size, color=colours.text, **place)
        if box.note:
            axes.text(x, y + 13, box.note, size=NOTE_FONT * _POINTS, color=MUTED, **place)
    return _render(figure)


def draw_alphas(alphas: Path) -> Path:
    """Draws how the op weights of every edge moved, as `alphas.png` beside the file.

    One panel an edge, in the column of its target state and the row of its source; one line a primitive. The name of
    the op that is strongest at the end, `none` left out as in deriving a genotype, stands above the panel.

    Args:
        alphas: an .npz with `normal` and `reduce`, raw alphas [epochs + 1, edges, ops] (-inf where an op is masked
            out), and `primitives`, the names of the ops. If it has `weights_normal` and `weights_reduce`, as large,
            they are the op weights, else the softmax is; `edges_normal` and `edges_reduce` [epochs + 1, edges] are
            weights of the edges, which are drawn too.

    Raises: ValueError that names the file and the array if one is missing or does not fit.
    """
    path = alphas.with_name("alphas.png")
    write_atomically(path, alphas_png(*read_alphas(alphas)))
    return path


def read_alphas(alphas: Path) -> tuple[dict[str, Floats], list[str]]:
    """The arrays of numbers in an alphas.npz and the primitives' names; checked, see `draw_alphas`."""
    if not alphas.is_file():
        raise FileNotFoundError(f"there is no file {alphas}")
    try:
        with np.load(io.BytesIO(alphas.read_bytes()), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, TypeError, OSError, EOFError, BadZipFile, zlib.error) as error:
        raise ValueError(f"{alphas} is not a readable .npz file: {error}") from None
    for name in ("normal", "reduce", "primitives"):
        if name not in arrays:
            raise ValueError(f"{alphas}: the array {name!r} is missing; it holds {', '.join(arrays) or 'none'}")
    primitives = [str(name) for name in arrays["primitives"].ravel()]
    values = {name: arrays[name] for name in ("normal", "reduce")}
    for name, value in values.items():
        for kind, shape in (("weights", value.shape), ("edges", value.shape[:2])):
            extra = arrays.get(f"{kind}_{name}", np.zeros(shape))
            if extra.shape != shape or extra.dtype.kind not in "fiu":
                raise ValueError(
                    f"{alphas}: '{kind}_{name}' must be numbers {list(shape)}; got {extra.dtype} {list(extra.shape)}"
                )
        if value.ndim != 3 or value.shape[0] < 1 or value.shape[2] != len(primitives) or value.dtype.kind not in "fiu":
            raise ValueError(
                f"{alphas}: {name!r} must be numbers [epochs + 1, edges, {len(primitives)} primitives]; "
                f"got {value.dtype} {list(value.shape)}"
            )
        if value.shape[1] != len(edges_of(_steps(value.shape[1]))):
            raise ValueError(f"{alphas}: {name!r} has {value.shape[1]} edges; cells have 2, 5, 9, 14, 20, ...")
    for name in primitives:
        candidate(name)
    return {name: value.astype(np.float64) for name, value in arrays.items() if name != "primitives"}, primitives


def _steps(edges: int) -> int:
    """Nodes of a cell with that many edges: the largest n with n (n + 3) / 2 <= edges."""
    return (math.isqrt(9 + 8 * edges) - 3) // 2


def op_weights(alphas: Floats) -> Floats:
    """Softmax over the last axis; NaN where alpha is -inf (masked out) or not a number."""
    known = np.isfinite(alphas)
    shifted = np.where(known, alphas, -np.inf)
    top = np.max(shifted, axis=-1, keepdims=True, initial=-np.inf)
    weights = np.exp(shifted - np.where(np.isfinite(top), top, 0))
    total = weights.sum(axis=-1, keepdims=True)
    return np.where(known, weights / np.where(total > 0, total, 1), np.nan)


PANEL_WIDTH, PANEL_HEIGHT = 2.6, 1.35  # inches
_DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.5)), (0, (1.2, 1.2)))


def _line_styles(primitives: Sequence[str]) -> list[dict[str, Any]]:
    """A family shares a colour; its members differ in their dashes."""
    styles: list[dict[str, Any]] = []
    for name in primitives:
        colour = FAMILIES[candidate(name).kind].line
        members = sum(style["color"] == colour for style in styles)
        styles.append({"color": colour, "linestyle": _DASHES[members % len(_DASHES)], "linewidth": 1.5})
    return styles


def alphas_png(alphas: dict[str, Floats], primitives: Sequence[str]) -> bytes:
    """The picture of `draw_alphas` from what `read_alphas` gives, as a PNG file's bytes."""
    weights = {
        title: alphas[f"weights_{cell}"] if f"weights_{cell}" in alphas else op_weights(alphas[cell])
        for title, cell in (("Normal cell", "normal"), ("Reduction cell", "reduce"))
    }
    betas = [alphas.get(f"edges_{cell}") for cell in ("normal", "reduce")]
    nodes = [_steps(value.shape[1]) for value in weights.values()]
    drawn = [*weights.values(), *(beta for beta in betas if beta is not None)]
    known = np.concatenate([value[np.isfinite(value)] for value in drawn])
    styles = _line_styles(primitives)

    width = 0.6 + PANEL_WIDTH * max(*nodes, 2)
    legend_rows = math.ceil(len(primitives) / int((width - 0.6) / 1.7))
    legend_height = 0.24 * legend_rows
    head = 0.75 + legend_height
    height = head + sum(0.75 + PANEL_HEIGHT * (count + 1) for count in nodes)
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")

    def text(y: float, words: str, **style: Any) -> None:
        figure.text(0.5 / width, 1 - y / height, words, **style)

    text(0.35, "Weight of each op on each edge, by epoch", size=13, weight="bold", color=STATE.text)
    dotted = "dotted: all of an edge's ops equal, as at the start"
    text(0.6, dotted if betas[0] is None else f"{dotted}; black: weight of the edge", size=9, color=MUTED)
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
    for (title, value), count, beta in zip(weights.items(), nodes, betas, strict=True):
        text(y + 0.4, title, size=12, weight="bold", color=STATE.text)
        y += 0.75
        for edge, (source, target) in enumerate(edges_of(count)):
            left, bottom = 0.5 + PANEL_WIDTH * (target - 2), y + PANEL_HEIGHT * (source + 1) - 0.4
            axes = figure.add_axes(
                (left / width, 1 - bottom / height, (PANEL_WIDTH - 0.2) / width, (PANEL_HEIGHT - 0.45) / height),
                ylim=(0, 1.05 * max(known, default=1.0)),
            )
            axes.set_title(f"{source} → {target}", loc="left", size=9, weight="bold", color=STATE.text, pad=3)
            axes.tick_params(labelsize=7.5, labelcolor=MUTED, color=STATE.line, length=2.5)
            axes.tick_params(labelleft=target == max(source + 1, 2), labelbottom=source == target - 1)
            _draw_edge(axes, value[:, edge], primitives, styles)
            if beta is not None:
                axes.plot(beta[:, edge], color=STATE.text, linewidth=1.5, clip_on=False)
        y += PANEL_HEIGHT * (count + 1)
    return _render(figure)


def _draw_edge(axes: Axes, weights: Floats, primitives: Sequence[str], styles: list[dict[str, Any]]) -> None:
    """One panel: weights [epochs + 1, ops]."""
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
        axes.set_title(words, loc="right", size=7.5, color=FAMILIES[candidate(primitives[best]).kind].text, pad=3)


def _render(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
