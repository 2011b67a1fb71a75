"""Draw the cells of a genotype: `cells.svg`, which follows light and dark mode, and `cells.png`."""

if __name__ == "__main__":  # before the imports, so that a signal while they run is answered
    import sys

    from fastdarts.cli import run

    sys.exit(run("draw", sys.argv[1:], "python -m fastdarts.draw"))

import argparse
from collections.abc import Sequence
from pathlib import Path

from fastdarts.config.command_line import OneLineParser, output_flags
from fastdarts.runs.folder import check_writable
from fastdarts.runs.program import run_parsed
from fastdarts.spaces.darts.genotype import PUBLISHED
from fastdarts.spaces.registry import load_architecture

_PROGRAM = "fastdarts draw"


def parser(prog: str = _PROGRAM) -> argparse.ArgumentParser:
    """Make the program's parser."""
    made = OneLineParser(prog=prog, description=__doc__, parents=[output_flags()])
    made.add_argument(
        "genotype",
        type=Path,
        metavar="GENOTYPE",
        help=f"a published name ({', '.join(PUBLISHED)}), a JSON file, or the folder of a search or an evaluation",
    )
    made.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="folder of the pictures (default: here)")
    return made


def main(argv: Sequence[str] | None = None, prog: str = _PROGRAM) -> int:
    return run_parsed(parser(prog), _run, argv)


def _run(given: argparse.Namespace) -> int:
    from fastdarts.report.pictures import write_picture

    source = given.genotype / "genotype.json" if given.genotype.is_dir() else given.genotype
    genotype = load_architecture(str(source))
    check_writable("out", given.out)
    for path in write_picture(genotype, given.out):
        print(path)
    return 0
