"""Checks the files that a search on `digits` leaves, and ends with an error at the first fault: check_run.py FOLDER."""

import json
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastdarts import Genotype

CHANCE = 0.1  # digits has ten classes of about equal size


def check(holds: object, what: str) -> None:
    if not holds:
        sys.exit(f"check_run: {what}")


def check_run(folder: Path) -> str:
    """Return the line to print when all is well."""
    genotype = Genotype.load(str(folder / "genotype.json"))
    check(len(genotype.normal) == len(genotype.reduce) == 8, "genotype.json must keep two edges for each of four nodes")

    epochs = [row for row in metrics(folder / "metrics.jsonl") if row["event"] == "epoch"]
    accuracy = [row["valid_accuracy"] for row in epochs]
    check(len(epochs) >= 2, "metrics.jsonl must have several epochs")
    check(accuracy[-1] > max(3 * CHANCE, accuracy[0]), f"validation accuracy must rise well above chance: {accuracy}")

    with np.load(folder / "alphas.npz") as alphas:
        for cell in ("normal", "reduce"):
            values = alphas[cell]
            check(values.shape == (len(epochs) + 1, 14, 8), f"alphas.npz: {cell} is {values.shape}")
            check(np.isfinite(values).all(), f"alphas.npz: {cell} must be finite")
            check((values[0] != values[-1]).any(), f"alphas.npz: {cell} never moved")

    svg = ElementTree.parse(folder / "cells.svg").getroot()
    check(svg.tag.endswith("svg"), f"cells.svg has the root {svg.tag}")
    for name in ("cells.png", "alphas.png"):
        with Image.open(folder / name) as image:
            image.load()
            check(min(image.size) >= 200, f"{name} is only {image.size}")
            check(len(set(image.convert("L").tobytes())) > 2, f"{name} is blank")

    check_report(folder / "report.html")
    return f"search: {len(epochs)} epochs, validation accuracy {accuracy[0]:.3f} -> {accuracy[-1]:.3f}, all files parse"


def metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_report(path: Path) -> None:
    """Check that the report shows pictures and loads no other files."""
    sources: list[str] = []

    class Sources(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag in ("img", "script", "link", "iframe", "image"):
                sources.extend(value or "" for name, value in attrs if name in ("src", "href", "xlink:href"))

    text = path.read_text()
    Sources().feed(text)
    check(all(source.startswith("data:") for source in sources), f"report.html loads {[s[:60] for s in sources]}")
    check(sources or "<svg" in text, "report.html shows no picture")


if __name__ == "__main__":
    print(check_run(Path(sys.argv[1])))
