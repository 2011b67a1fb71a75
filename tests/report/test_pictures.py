"""The pictures in a run's folder: the SVG is the space's own, the PNG is twice as large."""

from pathlib import Path

from PIL import Image

from fastdarts.report.pictures import write_picture
from fastdarts.spaces.darts.draw import draw_cells
from fastdarts.spaces.darts.genotype import DARTS_V1
from fastdarts.spaces.darts.layout import lay_out


def test_files(tmp_path: Path) -> None:
    svg, png = write_picture(DARTS_V1, tmp_path)
    assert svg.read_text() == draw_cells(DARTS_V1)
    drawing = lay_out(DARTS_V1)
    with Image.open(png) as image:
        assert abs(image.width - 2 * drawing.width) <= 1
        assert abs(image.height - 2 * drawing.height) <= 1
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20) or []}
    for box in drawing.boxes:
        if box.colours:
            assert tuple(bytes.fromhex(box.colours.fill[1:])) in colours
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.png", "cells.svg"]
