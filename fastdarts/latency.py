"""Measure how long each op of a space takes on this machine, for `search --cost FILE`.

Each distinct op, shape and stride is measured once, in turns with whole random networks. Half of these give the time of
what a table of ops does not hold; for the others the table's error is printed. With `--samples N` a regressor is fitted
to N whole networks instead (Latency-DARTS, Xu et al., arXiv:2001.06392), and its error on a fifth of them is printed.
"""

if __name__ == "__main__":  # before the imports, so that a signal while they run is answered
    import sys

    from fastdarts.cli import run

    sys.exit(run("latency", sys.argv[1:], "python -m fastdarts.latency"))

import copy
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from fastdarts.config.command_line import build_parser
from fastdarts.runs.console import LOGGER
from fastdarts.runs.device import choose_device
from fastdarts.runs.folder import check_writable
from fastdarts.runs.latency_config import LatencyConfig
from fastdarts.runs.program import run_cli
from fastdarts.runs.timing import milliseconds, runner
from fastdarts.spaces import registry
from fastdarts.spaces.cost import CostTable, Place, names_of, places
from fastdarts.spaces.cost_model import CostModel, fit, weights_of
from fastdarts.spaces.space import Space, priced_supernet
from fastdarts.spaces.supernet import Supernet

_PROGRAM = "fastdarts latency"
_DESCRIPTION = (__doc__ or "").replace("`", "'")


@dataclass(frozen=True)
class Latencies:
    """Hold the result of a measurement.

    Attributes:
        table: milliseconds of each choice, or a regressor.
        measured: milliseconds of whole networks.
        predicted: the table's, for the same networks, which it was not made from.
    """

    table: CostTable | CostModel
    measured: list[float]
    predicted: list[float]

    @property
    def error(self) -> float:
        """Return the mean of |predicted / measured - 1|."""
        return mean(abs(p / m - 1) for p, m in zip(self.predicted, self.measured, strict=True))

    @property
    def spread(self) -> float:
        """Return the standard deviation of predicted / measured."""
        return stdev(p / m for p, m in zip(self.predicted, self.measured, strict=True))


def measure(config: LatencyConfig) -> Latencies:
    """Measure the latency of all choices of a space, and of whole networks.

    Raises:
        ValueError: a runtime or device that is not there; options that make no network.
        ImportError: names the package that a runtime needs.
    """
    device = choose_device(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    space = registry.find(config.space, config.primitives, config.space_options)
    shape = (config.batch_size, config.in_channels, *config.image_size)
    with torch.device("meta"):
        network = _supernet(space, config)
    found = places(network, shape)
    distinct = {place.key: place for _, place in found}
    with_alphas = _supernet(space, config)
    architectures = _architectures(with_alphas, config)
    LOGGER.info(
        "measuring %d ops and %d networks %d times on %s", len(distinct), len(architectures), config.rounds, device
    )
    x = _input(shape, device)
    passes: dict[Any, Any] = {key: _pass_of(place, config, device) for key, place in distinct.items()}
    for index, architecture in enumerate(architectures):
        passes[index] = runner(_whole(space, architecture, config, device), x, config.runtime)
    times = milliseconds(passes, config.rounds)
    rows = {name: torch.zeros(group.shape, dtype=torch.float64) for name, group in network.groups.items()}
    for (group, row, column), place in found:
        rows[group][row, column] += times[place.key]
    table = CostTable("ms", names_of(network), rows, 0.0, _about(config, device))
    sums = [table.of(with_alphas, architecture) for architecture in architectures]
    wholes = [times[index] for index in range(len(architectures))]
    half = config.networks
    constant = mean(whole - ops for whole, ops in zip(wholes[:half], sums[:half], strict=True))
    table = CostTable(table.unit, table.ops, table.rows, constant, table.about)
    return Latencies(table, wholes[half:], [ops + constant for ops in sums[half:]])


def measure_whole(config: LatencyConfig) -> Latencies:
    """Fit a regressor to the latency of `config.samples` random networks; a fifth of them is held out.

    Raises: as `measure`.
    """
    device = choose_device(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    space = registry.find(config.space, config.primitives, config.space_options)
    network = _supernet(space, config)
    generator = torch.Generator().manual_seed(config.seed)
    architectures = [network.random(generator) for _ in range(config.samples)]
    LOGGER.info("measuring %d networks %d times on %s", len(architectures), config.rounds, device)
    x = _input((config.batch_size, config.in_channels, *config.image_size), device)
    passes = {
        index: runner(_whole(space, architecture, config, device), x, config.runtime)
        for index, architecture in enumerate(architectures)
    }
    times = milliseconds(passes, config.rounds)
    costs = [times[index] for index in passes]
    held = len(costs) // 5
    weights = [weights_of(network.mixes_of(architecture), network.groups) for architecture in architectures]
    fitted = fit(names_of(network), weights[held:], costs[held:], "ms", config.seed)
    model = replace(fitted, about=_about(config, device))
    return Latencies(model, costs[:held], [model.of(network, architecture) for architecture in architectures[:held]])


def _supernet(space: Space, config: LatencyConfig) -> Supernet:
    return priced_supernet(
        space,
        C=config.init_channels,
        num_classes=config.num_classes,
        layers=config.layers,
        in_channels=config.in_channels,
    )


def _architectures(network: Supernet, config: LatencyConfig) -> list[Any]:
    generator = torch.Generator().manual_seed(config.seed)
    return [network.random(generator) for _ in range(2 * config.networks)]


def _whole(space: Space, architecture: Any, config: LatencyConfig, device: torch.device) -> nn.Module:
    network = space.discrete(
        architecture,
        C=config.init_channels,
        num_classes=config.num_classes,
        layers=config.layers,
        in_channels=config.in_channels,
        auxiliary=False,
        drop_path_prob=0.0,
        stem="cifar",
    )
    return _ready(network, device)


def _pass_of(place: Place, config: LatencyConfig, device: torch.device) -> Any:
    op = copy.deepcopy(place.op).to_empty(device="cpu")
    for tensor in (*op.parameters(), *op.buffers()):
        torch.nn.init.ones_(tensor) if tensor.is_floating_point() else tensor.data.zero_()
    return runner(_ready(op, device), _input(place.shape, device), config.runtime)


def _ready(module: nn.Module, device: torch.device) -> nn.Module:
    module = module.eval().requires_grad_(False)
    return module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _input(shape: Sequence[int], device: torch.device) -> Tensor:
    return torch.randn(*shape, device=device).contiguous(memory_format=torch.channels_last)


def _about(config: LatencyConfig, device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "torch": torch.__version__,
        "runtime": config.runtime,
        "batch_size": config.batch_size,
        "image_size": list(config.image_size),
        "space": config.space,
        "init_channels": config.init_channels,
        "layers": config.layers,
    }


def parser(prog: str = _PROGRAM) -> Any:
    """Make the program's parser."""
    return build_parser(LatencyConfig, prog=prog, description=_DESCRIPTION)


def main(argv: Sequence[str] | None = None, prog: str = _PROGRAM) -> int:
    return run_cli(LatencyConfig, _run, argv, prog, _DESCRIPTION)


def _run(config: LatencyConfig) -> int:
    check_writable("out", config.out.parent)
    found = measure_whole(config) if config.samples else measure(config)
    found.table.save(config.out)
    about = found.table.about
    print(f"device: {about['device']}, runtime {about['runtime']}, {about['batch_size']} images a pass")
    print(
        f"error on {len(found.measured)} other networks of {min(found.measured):.3g} to {max(found.measured):.3g} ms: "
        f"mean {100 * found.error:.1f} %, spread {100 * found.spread:.1f} %"
    )
    print(f"table: {config.out}; use it with: fastdarts search --space {config.space} --cost {config.out}")
    return 0
