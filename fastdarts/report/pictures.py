"""Write pictures of a found architecture into a run's folder."""

from pathlib import Path
from typing import Any

from fastdarts.config.files import write_atomically
from fastdarts.spaces.registry import space_of


def write_picture(architecture: Any, out_dir: Path) -> tuple[Path, Path]:
    """Draw `architecture` as `cells.svg` and `cells.png` (twice the size) in `out_dir`; return their paths."""
    space = space_of(architecture)
    svg, png = out_dir / "cells.svg", out_dir / "cells.png"
    write_atomically(svg, space.svg(architecture))
    write_atomically(png, space.png(architecture))
    return svg, png
