"""Draw docs/rooms.svg from the package's imports: `python docs/rooms.py`.

A room's row leads to the right; a dot marks each room below whose column it crosses and that it imports.
"""

import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from test_structure import ROOMS, imports_of, modules, room_of  # noqa: E402

DOES = {
    "programs": "the command and its sub-commands",
    "report": "pages, charts, pictures",
    "runs": "loop, checkpoint, progress, resources",
    "methods": "one file a search method",
    "spaces": "one folder a search space",
    "tasks": "what is learnt: loss and metrics",
    "bilevel": "alpha step, weight step, flat weights",
    "data": "sources, streams, augmentation",
    "mixed": "MixedOp, its fused form, patch",
    "ops": "operators: schema, checks, autograd",
    "primitives": "candidate ops: table, modules, registry",
    "config": "options, files, command lines",
}
WIDTH, HEIGHT, STEP_X, STEP_Y, MARGIN = 268, 40, 52, 56, 16
STYLE = (
    "text{font-family:system-ui,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;fill:#1f2933}"
    ".room{font-size:14px;font-weight:600}"
    ".does{font-size:10.5px;fill:#5b6673}rect{fill:#f3f5f8;stroke:#8d98a5}path{fill:none;stroke:#b8c0ca}circle{fill:#2f6fdf}"
    ".back{fill:#fff;stroke:none}@media(prefers-color-scheme:dark){.back{fill:#12171d}text{fill:#e6eaef}.does{fill:#9aa5b1}"
    "rect{fill:#232b35;stroke:#77828f}path{stroke:#4a5563}}"
)


def graph() -> dict[str, set[str]]:
    """Return the rooms that files of each room import."""
    known = modules()
    found: dict[str, set[str]] = {room_of(module): set() for module in known}
    for module, path in known.items():
        found[room_of(module)] |= {room_of(target) for target in imports_of(path, known)} - {room_of(module)}
    return found


def picture() -> str:
    """Return the SVG document: the rooms that have files, the upper ones first."""
    arrows = graph()
    rooms = [room for room in ROOMS if room in arrows]
    corner = {room: (MARGIN + STEP_X * i, MARGIN + STEP_Y * i) for i, room in enumerate(rooms)}
    last = corner[rooms[-1]]
    width, height = last[0] + WIDTH + MARGIN, last[1] + HEIGHT + MARGIN
    lines, dots, boxes = [], [], []
    for number, room in enumerate(rooms):
        x, y = corner[room]
        below = [other for other in rooms[number + 1 :] if other in arrows[room]]
        columns = [corner[other][0] + WIDTH - 24 for other in below]
        if below:
            lines.append(f'<path d="M{x + WIDTH} {y + HEIGHT // 2}H{columns[-1]}"/>')
        for other, column in zip(below, columns, strict=True):
            lines.append(f'<path d="M{column} {y + HEIGHT // 2}V{corner[other][1]}"/>')
            dots.append(
                f'<circle cx="{column}" cy="{y + HEIGHT // 2}" r="4"><title>{room} imports {other}</title></circle>'
            )
        boxes.append(f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="8"/>')
        boxes.append(f'<text class="room" x="{x + 12}" y="{y + 17}">{room}</text>')
        boxes.append(f'<text class="does" x="{x + 12}" y="{y + 32}">{escape(DOES[room])}</text>')
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    title = "<title>The rooms of the package and what they import</title>"
    back = f'<style>{STYLE}</style><rect class="back" width="{width}" height="{height}"/>'
    return "\n".join([head, title, back, *lines, *dots, *boxes, "</svg>"]) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "rooms.svg").write_text(picture(), encoding="utf-8")
