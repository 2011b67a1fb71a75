"""Find a network under another cost in a trained search network, without training: `python -m fastdarts.specialise`.

The search was by a method that trains architectures inside its network (ofa, fairnas, random), in a space of layers.
Evolution scores networks with the trained weights, with batch norms averaged anew for each, among those that cost no
more than the target. The best one is cut out, measured on the test images and written as a trained network, which
`predict`, `export` and `evaluate --init-from` take.
"""

if __name__ == "__main__":  # before the imports, so that a signal while they run is answered
    import sys

    from fastdarts.cli import run

    sys.exit(run("specialise", sys.argv[1:], "python -m fastdarts.specialise"))

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.nn.functional import cross_entropy

from fastdarts.config.command_line import OneLineParser, output_flags, parse_image_size, parse_name_value
from fastdarts.config.options import read_file
from fastdarts.evaluate import EvalConfig, EvalResult, evaluate, print_result
from fastdarts.export import check_export_packages
from fastdarts.methods import find
from fastdarts.methods.one_shot import OneShot
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
from fastdarts.spaces.layerwise.space import LayerwiseSpace
from fastdarts.spaces.layerwise.supernet import LayerwiseSupernet

__all__ = ["Wanted", "specialise"]

_PROGRAM = "fastdarts specialise"
_DESCRIPTION = (__doc__ or "").replace("`", "'")
_SHARED = ("dataset", "data", "space", "image_size", "test_portion", "stream", "workers", "seed")
_SIZES = ("init_channels", "layers", "batch_size")


@dataclass(frozen=True)
class Wanted:
    """Describe the network that is wanted.

    Attributes:
        cost: flops or params (in millions), or a table that `fastdarts latency` wrote.
        target: the largest cost that it may have, in the unit of `cost`.
        image_size: (H, W) of its images; None takes the search's.
        options: of the ranking, such as cells or predictor, over those of the search; sampler is evolution.
    """

    cost: str
    target: float
    image_size: tuple[int, int] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


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
    table = {} if config.cost in COUNTED else {"cost": Path(str(config.cost))}
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
    network, method = state.network, state.method
    assert isinstance(network, LayerwiseSupernet)
    assert state.costs is not None  # the config has a cost
    if (size := state.costs.about.get("image_size", list(weights_half.shape[1:]))) != list(weights_half.shape[1:]):
        LOGGER.info("note: the table was measured on images of %s, these are of %s", size, weights_half.shape[1:])
    LOGGER.info("scoring %d networks with the weights of %s", method.options.cells, run)
    architecture = method.result(state)
    cost = state.costs.of(network, architecture)
    if cost > wanted.target:
        raise ValueError(
            f"no network of cost {wanted.target:.4g} {state.costs.unit} was found, the cheapest has {cost:.4g}; "
            "raise target, or cells in the method's options"
        )
    LOGGER.info("found one of %.4g %s: %s", cost, state.costs.unit, architecture)
    with network.mixing(method.discrete(network, architecture)):
        state.recalibrate(method.options.recalibrate or 1)
    weights = network.cut(architecture).state_dict()
    return evaluate(architecture, settings, train, test, weights=weights)


def _config(run: Path, wanted: Wanted, train: Images | None, evaluation: Mapping[str, Any]) -> SearchConfig:
    """Return the config of the search with the wanted cost; ValueError where it is of another kind of search."""
    file = run / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{run} holds no search: it has no config.json")
    values = read_file(SearchConfig, file)
    method = find(values["method"])
    if not issubclass(method, OneShot):
        raise ValueError(
            f"{run} is a search by {values['method']!r}, whose weights are not those of single networks; specialise "
            "takes searches by ofa, fairnas and random"
        )
    if not isinstance(registry.find(values["space"]), LayerwiseSpace):
        raise ValueError(f"networks are cut out in spaces of layers alone; {run} is of space {values['space']!r}")
    if values["dataset"] == "custom" and train is None:
        raise ValueError(f"{run} searched images given from Python: call specialise() with train and test")
    options = values["method_options"] | {"sampler": "evolution"} | dict(wanted.options)
    changed = {
        "cost": wanted.cost,
        "cost_target": wanted.target,
        "cost_form": "limit",
        "method_options": options,
        "image_size": wanted.image_size or values["image_size"],
    }
    given = {name: evaluation[name] for name in ("device", "data") if name in evaluation}
    return SearchConfig(**(values | changed | given))


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
        metavar="flops|params|FILE",
        help="what is limited: multiply-adds or weights, in millions, or a table that fastdarts latency wrote",
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
    for name, text in (
        ("data", "folder of the data set (default: the search's)"),
        ("out", "folder of the results (default: runs/evaluation-DATASET-TIME)"),
        ("export", "write the network as FILE.pt2 (torch.export) and FILE.onnx"),
    ):
        made.add_argument(f"--{name}", type=Path, metavar="FILE" if name == "export" else "DIR", help=text)
    made.add_argument("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N (default: the search's)")
    return made


def main(argv: Sequence[str] | None = None, prog: str = _PROGRAM) -> int:
    return run_parsed(parser(prog), _run, argv)


def _run(given: argparse.Namespace) -> int:
    wanted = Wanted(given.cost, given.target, given.image_size, dict(given.method_options))
    names = ("data", "out", "export", "device")
    print_result(specialise(given.run, wanted, **{name: vars(given)[name] for name in names if name in given}))
    return 0
