"""Find a network under another cost in a trained search network, without training: `python -m fastdarts.specialise`.

The search was by a method that trains architectures inside its network (ofa, fairnas, random), in a space of layers.
Evolution scores networks with the trained weights, with batch norms averaged anew for each, among those that cost no
more than the target. With cost=bitops each layer's bits are searched, too, and a predictor of accuracy scores in place
of the weights (APQ). The best one is cut out, measured on the test images and written as a trained network, which
`predict`, `export` and `evaluate --init-from` take.
"""

if __name__ == "__main__":  # before the imports, so that a signal while they run is answered
    import sys

    from fastdarts.cli import run

    sys.exit(run("specialise", sys.argv[1:], "python -m fastdarts.specialise"))

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fastdarts.config.command_line import OneLineParser, output_flags, parse_image_size, parse_name_value
from fastdarts.config.options import read_file
from fastdarts.data.images import in_order
from fastdarts.evaluate import EvalConfig, EvalResult, evaluate, print_result
from fastdarts.export import check_export_packages
from fastdarts.methods import find
from fastdarts.methods.apq import BitSearch
from fastdarts.methods.one_shot import OneShot
from fastdarts.methods.samplers import Limit
from fastdarts.runs import checkpoint
from fastdarts.runs.console import LOGGER
from fastdarts.runs.costs import COUNTED
from fastdarts.runs.device import choose_device
from fastdarts.runs.folder import check_out
from fastdarts.runs.images import Images
from fastdarts.runs.lock import releases_folders
from fastdarts.runs.program import run_parsed
from fastdarts.runs.search_config import SearchConfig
from fastdarts.runs.search_state import SearchState
from fastdarts.search import halves
from fastdarts.spaces import registry
from fastdarts.spaces.layerwise.bitops import UNIT, BitOps
from fastdarts.spaces.layerwise.space import LayerwiseSpace
from fastdarts.spaces.layerwise.supernet import LayerwiseSupernet
from fastdarts.spaces.space import priced_supernet

__all__ = ["Wanted", "specialise"]

_PROGRAM = "fastdarts specialise"
_DESCRIPTION = (__doc__ or "").replace("`", "'")
BITOPS = "bitops"
_BIT_OPTIONS = {"cells": 1000, "predictor": 100}
_WITHOUT_COST: dict[str, Any] = {"cost": None, "cost_target": None}
_CALIBRATION = 250  # training images
_SHARED = ("dataset", "data", "space", "image_size", "test_portion", "stream", "workers", "seed")
_SIZES = ("init_channels", "layers", "batch_size")


@dataclass(frozen=True)
class Wanted:
    """Describe the network that is wanted.

    Attributes:
        cost: flops or params (in millions), or a table that `fastdarts latency` wrote; bitops: the multiply-adds times
            the bits of weights and inputs (in millions), for a network of few bits.
        target: the largest cost that it may have, in the unit of `cost`.
        image_size: (H, W) of its images; None takes the search's.
        options: of the ranking, such as cells or predictor, over those of the search; sampler is evolution.
        quantised: with cost bitops, networks of few bits that are measured to fit the predictor.
        method: MODULE:CLASS of a search by a method of your own; it is imported only when it is named here.
    """

    cost: str
    target: float
    image_size: tuple[int, int] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    quantised: int = 30
    method: str | None = None

    def __post_init__(self) -> None:
        if self.quantised < 1:
            raise ValueError(f"quantised must be at least 1; got {self.quantised}")


@releases_folders
def specialise(
    run: Path, wanted: Wanted, train: Images | None = None, test: Images | None = None, **evaluation: Any
) -> EvalResult:
    """Find a network in the search network of a finished search and write it as a trained one.

    Args:
        run: the search's folder.
        wanted: see `Wanted`.
        train, test: the images, where the search had images from Python.
        evaluation: options of `EvalConfig`, such as out, device, data and export.

    Raises:
        ValueError, TypeError, FileNotFoundError: `run` holds no such search, or no network meets the target.
        ImportError: as of `evaluate`.
    """
    config = _config(run, wanted, train, evaluation)
    shared = {name: getattr(config, name) for name in (*_SHARED, *_SIZES)}
    table = {} if config.cost is None or config.cost in COUNTED else {"cost": Path(str(config.cost))}
    settings = EvalConfig(**{**shared, **table, **evaluation})
    check_out(settings)
    if settings.export is not None:
        check_export_packages(settings.export)
    device = choose_device(config.device)
    weights_half, alphas_half = halves(config, train, None, None, device)
    assert alphas_half is not None  # all one-shot methods leave it
    state = SearchState(config, weights_half.to(device), alphas_half.to(device), cross_entropy, device)
    saved = checkpoint.load(run / "checkpoint.pt", state.kind)
    if saved["epoch"] < config.epochs:
        raise ValueError(f"{run} has ended {saved['epoch']} of {config.epochs} epochs; resume the search first")
    state.load_state_dict(saved)
    architecture, weights = (_of_few_bits if wanted.cost == BITOPS else _in_floats)(state, wanted)
    return evaluate(architecture, settings, train, test, weights=weights)


def _in_floats(state: SearchState, wanted: Wanted) -> tuple[Any, Mapping[str, Tensor]]:
    """Return the network that was found under a cost of the config, and its weights."""
    network, method, costs = state.network, state.method, state.costs
    assert isinstance(network, LayerwiseSupernet)
    assert costs is not None
    shape = list(state.streams[0].data.shape[1:])
    if (size := costs.about.get("image_size", shape)) != shape:
        LOGGER.info("note: the table was measured on images of %s, these are of %s", size, shape)
    LOGGER.info("scoring %d networks with the trained weights", method.options.cells)
    architecture = method.result(state)
    _check_cost(architecture, costs.of(network, architecture), costs.unit, wanted)
    with network.mixing(method.discrete(network, architecture)):
        state.recalibrate(method.options.recalibrate or 1)
    return architecture, network.cut(architecture).state_dict()


def _of_few_bits(state: SearchState, wanted: Wanted) -> tuple[Any, Mapping[str, Tensor]]:
    """Return the network of few bits that was found, and its weights and ranges."""
    network, method, config = state.network, state.method, state.config
    assert isinstance(network, LayerwiseSupernet)
    assert isinstance(method, OneShot)
    data = state.streams[0].data
    with torch.device("meta"):
        sizes = {"C": config.init_channels, "num_classes": network.num_classes, "in_channels": network.in_channels}
        priced = priced_supernet(method.space, **sizes, **method.cost_arguments())
    assert isinstance(priced, LayerwiseSupernet)
    bit_operations = BitOps(priced, (1, *data.shape))
    if wanted.target < (lowest := bit_operations.lowest()):
        raise ValueError(f"target must be at least {lowest:.4g} {UNIT}; got {wanted.target:.4g}")
    images, _ = next(iter(in_order(data, _CALIBRATION)))
    search = BitSearch(method, state, network, state.augment.normalise(images), Limit(bit_operations.of, wanted.target))
    LOGGER.info(
        "measuring %d networks in floats and %d of few bits with the trained weights, then predicting %d",
        *(method.options.predictor, wanted.quantised, method.options.cells),
    )
    found = search.found(wanted.quantised)
    assert found.cost is not None
    _check_cost(found.architecture, found.cost, UNIT, wanted)
    return found.architecture, search.cut(found.architecture).state_dict()


def _check_cost(architecture: Any, cost: float, unit: str, wanted: Wanted) -> None:
    """Say what was found; ValueError if it costs more than the target."""
    if cost > wanted.target:
        raise ValueError(
            f"no network of cost {wanted.target:.4g} {unit} was found, the cheapest has {cost:.4g}; "
            "raise target, or cells in the method's options"
        )
    LOGGER.info("found one of %.4g %s: %s", cost, unit, architecture)


def _config(run: Path, wanted: Wanted, train: Images | None, evaluation: Mapping[str, Any]) -> SearchConfig:
    """Return the config of the search with the wanted cost; ValueError where it is of another kind of search."""
    file = run / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{run} holds no search: it has no config.json")
    named = {} if wanted.method is None else {"method": wanted.method}
    searched = SearchConfig(**(read_file(SearchConfig, file, named) | named))
    if not issubclass(find(searched.method), OneShot):
        raise ValueError(
            f"{run} is a search by {searched.method!r}, whose weights are not those of single networks; specialise "
            "takes searches by ofa, fairnas and random"
        )
    if not isinstance(registry.find(searched.space), LayerwiseSpace):
        raise ValueError(f"networks are cut out in spaces of layers alone; {run} is of space {searched.space!r}")
    if searched.dataset == "custom" and train is None:
        raise ValueError(f"{run} searched images given from Python: call specialise() with train and test")
    own = _BIT_OPTIONS if wanted.cost == BITOPS else {}
    options = searched.method_options | {"sampler": "evolution"} | own | dict(wanted.options)
    limited = {"cost": wanted.cost, "cost_target": wanted.target, "cost_form": "limit"}
    changed = {
        **(_WITHOUT_COST if wanted.cost == BITOPS else limited),
        "method_options": options,
        "image_size": wanted.image_size or searched.image_size,
    }
    given = {name: evaluation[name] for name in ("device", "data") if name in evaluation}
    return dataclasses.replace(searched, **changed, **given)


def parser(prog: str = _PROGRAM) -> argparse.ArgumentParser:
    """Make the program's parser."""
    made = OneLineParser(
        prog=prog,
        description=_DESCRIPTION,
        parents=[output_flags()],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    made.add_argument("run", type=Path, metavar="RUN", help="folder of a finished search")
    made.add_argument(
        "--cost",
        required=True,
        metavar="flops|params|bitops|FILE",
        help="what is limited: multiply-adds or weights, in millions, or a table that fastdarts latency wrote; bitops: "
        "multiply-adds times bits of weights and inputs, in millions, of a network whose bits are found, too",
    )
    made.add_argument("--target", required=True, type=float, metavar="X", help="largest cost, in the cost's unit")
    made.add_argument(
        "--image-size",
        type=parse_image_size,
        default=None,
        metavar="SIZE|HxW",
        help="of its images (default: the search's size)",
    )
    made.add_argument(
        "--method-options",
        nargs="+",
        type=parse_name_value,
        default=[],
        metavar="NAME=VALUE",
        help="of the ranking: cells, population, predictor, recalibrate, ... (default: the search's)",
    )
    made.add_argument(
        "--quantised",
        type=int,
        default=30,
        metavar="N",
        help="with --cost bitops, networks of few bits that are measured to fit the predictor (default: 30)",
    )
    for name, text in (
        ("data", "folder of the data set (default: the search's)"),
        ("out", "folder of the results (default: runs/evaluation-DATASET-TIME)"),
        ("export", "write the network as FILE.pt2 (torch.export) and FILE.onnx"),
    ):
        made.add_argument(f"--{name}", type=Path, metavar="FILE" if name == "export" else "DIR", help=text)
    made.add_argument("--method", default=None, metavar="MODULE:CLASS", help="the search's, if it is code of your own")
    made.add_argument("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N (default: the search's)")
    return made


def main(argv: Sequence[str] | None = None, prog: str = _PROGRAM) -> int:
    return run_parsed(parser(prog), _run, argv)


def _run(given: argparse.Namespace) -> int:
    wanted = Wanted(
        given.cost, given.target, given.image_size, dict(given.method_options), given.quantised, given.method
    )
    names = ("data", "out", "export", "device")
    print_result(specialise(given.run, wanted, **{name: vars(given)[name] for name in names if name in given}))
    return 0
