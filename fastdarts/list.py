"""List methods, spaces, data sets and published genotypes, with a line about each."""

if __name__ == "__main__":  # before the imports, so that a signal while they run is answered
    import sys

    from fastdarts.cli import run

    sys.exit(run("list", sys.argv[1:], "python -m fastdarts.list"))

import argparse
import json
import sys
from collections.abc import Callable, Sequence

from fastdarts import methods
from fastdarts.config.command_line import OneLineParser, one_of, output_flags
from fastdarts.runs.eval_config import EvalConfig
from fastdarts.runs.program import run_parsed
from fastdarts.spaces import registry
from fastdarts.spaces.darts.cell_genotypes import PUBLISHED as OWN_CELLS
from fastdarts.spaces.darts.published import CELLS, SIZES
from fastdarts.spaces.layerwise import published as chains
from fastdarts.spaces.recurrent import architecture as cells

_PROGRAM = "fastdarts list"

DATASETS = {
    "digits": "1,797 grey 8x8 images of ten digits; part of scikit-learn, nothing to download",
    "mnist": "70,000 grey 28x28 images of ten digits",
    "fashionmnist": "70,000 grey 28x28 images of ten kinds of clothes",
    "cifar10": "60,000 colour 32x32 images of ten classes",
    "cifar100": "60,000 colour 32x32 images of a hundred classes",
    "svhn": "99,289 colour 32x32 images of house numbers' digits",
    "imagefolder": "your own images, in DIR/train/CLASS/ and DIR/test/CLASS/",
    "imagenet": "an image folder with the paper's settings for ImageNet; to evaluate, not to search",
    "pydoc": "documentation of Python's language, 110,000 words; part of Python, for recurrent cells",
    "ptb": "Penn Treebank, about a million words, in DIR/train.txt, valid.txt and test.txt; for recurrent cells",
    "wikitext2": "WikiText-2, about two million words, in DIR/train.txt, valid.txt and test.txt; for recurrent cells",
    "textfolder": "your own text, in DIR/train.txt, valid.txt and test.txt, or in any .txt files; for recurrent cells",
    "custom": "your own Dataset, given to search() or evaluate() from Python",
}


def list_methods() -> dict[str, str]:
    """Return a line about each search method: the title of its module."""
    found = {name: sys.modules[methods.find(name).__module__].__doc__ or "" for name in methods.NAMES}
    return {name: text.partition("\n")[0] for name, text in found.items()}


def list_spaces() -> dict[str, str]:
    """Return a line about each search space: its title."""
    return {name: registry.find(name).title for name in registry.names()}


def list_datasets() -> dict[str, str]:
    """Return a line about each data set."""
    return {name: DATASETS[name] for name in EvalConfig.presets}


def list_genotypes() -> dict[str, str]:
    """Return a line about each published genotype: the size of its CIFAR-10 network (C=36, 20 cells) and its source,
    the nodes of a recurrent cell, or the layers of a chain."""
    convolutional = {
        name: f"{SIZES[name][0] / 1e6:.2f}M parameters, {SIZES[name][1] / 1e6:.0f}M multiply-adds; {cell.source}"
        for name, cell in CELLS.items()
    }
    own = {name: f"a cell for each of {len(found.cells)} places: {found}" for name, found in OWN_CELLS.items()}
    recurrent = {name: f"recurrent cell: {cell}" for name, cell in cells.PUBLISHED.items()}
    layers = {
        name: f"{len(chain.layers)} layers of space {chain.space}, {chain.skips()} left out"
        for name, chain in chains.PUBLISHED.items()
    }
    return convolutional | own | recurrent | layers


KINDS: dict[str, Callable[[], dict[str, str]]] = {
    "methods": list_methods,
    "spaces": list_spaces,
    "datasets": list_datasets,
    "genotypes": list_genotypes,
}


def parser(prog: str = _PROGRAM) -> argparse.ArgumentParser:
    """Make the program's parser."""
    made = OneLineParser(prog=prog, description=__doc__, parents=[output_flags()])
    made.add_argument(
        "kind", nargs="?", type=one_of(tuple(KINDS)), choices=tuple(KINDS), help="what to list (default: all)"
    )
    made.add_argument("--json", action="store_true", help="print one JSON object: a list of names and lines by kind")
    return made


def main(argv: Sequence[str] | None = None, prog: str = _PROGRAM) -> int:
    return run_parsed(parser(prog), _run, argv)


def _run(given: argparse.Namespace) -> int:
    found = {kind: lines() for kind, lines in KINDS.items() if given.kind in (None, kind)}
    if given.json:
        tables = {
            kind: [{"name": name, "summary": line} for name, line in lines.items()] for kind, lines in found.items()
        }
        print(json.dumps(tables, indent=2))
        return 0
    for kind, lines in found.items():
        width = max(map(len, lines))
        title = [f"{kind}:"] if given.kind is None else []
        print("\n".join([*title, *(f"  {name:{width}}  {line}" for name, line in lines.items())]))
    return 0
