"""Classify images with a trained network: `python -m fastdarts.predict RUN IMAGES...`."""

if __name__ == "__main__":  # before the imports, so that a signal while they run is answered
    import sys

    from fastdarts.cli import run

    sys.exit(run("predict", sys.argv[1:], "python -m fastdarts.predict"))

import argparse
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from fastdarts.config.command_line import OneLineParser, output_flags
from fastdarts.data import walk
from fastdarts.runs.program import run_parsed
from fastdarts.runs.trained import Prediction, load

_PROGRAM = "fastdarts predict"


def parser(prog: str = _PROGRAM) -> argparse.ArgumentParser:
    """Make the program's parser."""
    made = OneLineParser(
        prog=prog,
        description="Classify images with the network that an evaluation trained. Prints a line an image: its path, "
        "and the most probable classes with their probabilities, tabs between.",
        parents=[output_flags()],
    )
    made.add_argument("run", type=Path, metavar="RUN", help="folder of a finished evaluation")
    made.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files, or folders of them")
    made.add_argument("--top", type=int, default=1, metavar="N", help="classes an image (default: 1)")
    made.add_argument("--json", action="store_true", help="print JSON objects, one a line, instead")
    made.add_argument("--batch-size", type=int, default=64, metavar="N", help="images at a time (default: 64)")
    made.add_argument("--device", default="auto", help="auto (CUDA where there is some), cpu, cuda or cuda:N")
    return made


def main(argv: Sequence[str] | None = None, prog: str = _PROGRAM) -> int:
    return run_parsed(parser(prog), _run, argv)


def _run(given: argparse.Namespace) -> int:
    for name in ("top", "batch_size"):
        if getattr(given, name) < 1:
            raise ValueError(f"{name} must be at least 1; got {getattr(given, name)}")
    trained = load(given.run, given.device)
    files = iter([file for path in given.images for file in _files(path)])
    while some := list(islice(files, given.batch_size)):
        for file, prediction in zip(some, trained.predict(some, given.batch_size), strict=True):
            best = _best(prediction, trained.classes, given.top)
            name = walk.printable(str(file))
            if given.json:
                print(json.dumps({"image": name, "classes": [{"name": n, "probability": p} for n, p in best]}))
            else:
                print(name, *(f"{label}\t{probability:.4f}" for label, probability in best), sep="\t", flush=True)
    return 0


def _files(path: Path) -> list[Path]:
    """Return a file as it is, and the image files in a folder."""
    if not path.is_dir():
        return [path]
    found = walk.image_files(path, walk.Passed())
    if not found:
        raise ValueError(f"{path} holds no images")
    return found


def _best(prediction: Prediction, classes: Sequence[str], count: int) -> list[tuple[str, float]]:
    values, indices = prediction.probabilities.topk(min(count, len(classes)))
    return [(classes[index], value) for index, value in zip(indices.tolist(), values.tolist(), strict=True)]
