"""Render a drawing of boxes, lines and arrows as SVG (for light and dark mode) and PNG."""

import io
from collections.abc import Iterator
from html import escape
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path as Outline

from fastdarts.spaces.drawing import FONT, NOTE_FONT, Colours, Drawing

STATE = Colours("#8d98a5", "#f3f5f8", "#1f2933")


STATE_DARK = Colours("#77828f", "#232b35", "#e6eaef")


MUTED, MUTED_DARK = "#5b6673", "#9aa5b1"


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


def svg(drawing: Drawing, description: str) -> Iterator[str]:
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
            yield f'<rect {frame} rx="{box.rounding:g}" fill="{colours.fill}" stroke="{colours.line}"/>'
            yield _svg_text(x, y + (0 if box.note else 4), box.text, f'class="mid" fill="{colours.text}"', FONT)
        else:
            yield f'<rect class="box" {frame} rx="{box.rounding:g}"/>'
            yield _svg_text(x, y + (0 if box.note else 5), box.text, 'class="ink mid"', 15, box.subscript)
        if box.note:
            yield _svg_text(x, y + 16, box.note, 'class="muted mid"', NOTE_FONT)
    yield "</svg>"


def _svg_text(x: float, y: float, text: str, attributes: str, size: int, subscript: str = "") -> str:
    below = f'<tspan dy="3" font-size="{0.7 * size:.1f}">{escape(subscript)}</tspan>' if subscript else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" {attributes}>{escape(text)}{below}</text>'


_CODES = {"M": [Outline.MOVETO], "L": [Outline.LINETO], "Q": [Outline.CURVE3, Outline.CURVE3]}


_POINTS = 0.72  # typographic points per pixel, at 100 pixels per inch


def png(drawing: Drawing) -> bytes:
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
        for width, ink in ((7, "white"), (2, colour)):  # a gap in the lines that this one crosses, then the line
            axes.add_patch(PathPatch(Outline(vertices, codes), fill=False, edgecolor=ink, linewidth=width * _POINTS))
        axes.add_patch(Polygon(line.arrow(), closed=True, color=colour, linewidth=0))
    for box in drawing.boxes:
        colours, (x, y) = box.colours or STATE, box.middle
        style = f"round,pad=0,rounding_size={box.rounding}"
        frame = FancyBboxPatch((box.x, box.y), box.width, box.height, style, linewidth=0.8)
        frame.set(facecolor=colours.fill, edgecolor=colours.line)
        axes.add_patch(frame)
        text = f"${box.text}_{{{box.subscript.replace('−', '-')}}}$" if box.subscript else box.text
        size = (FONT if box.colours else 15) * _POINTS
        place: dict[str, Any] = {"ha": "center", "va": "center_baseline"}
        axes.text(x, y - (5 if box.note else 0), text, size=size, color=colours.text, **place)
        if box.note:
            axes.text(x, y + 13, box.note, size=NOTE_FONT * _POINTS, color=MUTED, **place)
    return render(figure)


def render(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
