"""Configure a measurement of latencies; defaults are those of the networks that `evaluate` trains."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from fastdarts.config.options import Config, option, read_table
from fastdarts.config.search_options import LARGEST_SEED
from fastdarts.runs.eval_config import EvalConfig
from fastdarts.spaces import registry
from fastdarts.spaces.space import search_options_of

_SIDES = {"digits": 8, "mnist": 28, "fashionmnist": 28, "imagenet": 224, "imagefolder": 224, "custom": 224}
_FEWEST = 20  # networks for a regressor
_GREY = ("digits", "mnist", "fashionmnist")


@dataclass(frozen=True, kw_only=True)
class LatencyConfig(Config):
    """Everything that decides a measurement.

    Raises: ValueError or TypeError that names the field, what came and what is allowed.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: {
            "init_channels": values["init_channels"],
            "layers": values["layers"],
            "image_size": (_SIDES.get(name, 32),) * 2,
            "in_channels": 1 if name in _GREY else 3,
            "space_options": {},
        }
        for name, values in EvalConfig.presets.items()
    }

    dataset: Literal[tuple(EvalConfig.presets)] = option(  # type: ignore[valid-type]
        "network", "data set whose images and network sizes are the defaults", "cifar10"
    )
    space: str = option("network", f"search space: {', '.join(registry.names())}", "darts", metavar="NAME")
    space_options: dict[str, Any] = option("network", "the space's own, as in a search", metavar="NAME=VALUE")
    primitives: tuple[str, ...] | None = option(
        "network", "candidate ops of every edge (default: the space's)", None, metavar="NAME"
    )
    init_channels: int = option("network", "channels C of the first cells, or of the stem of a chain", at_least=1)
    layers: int = option("network", "number of cells, or of layers of a stage", at_least=1)
    in_channels: int = option("network", "channels of the images", at_least=1)
    image_size: tuple[int, int] = option("network", "size of the images", metavar="SIZE|HxW", at_least=1)
    num_classes: int = option("network", "size of the logits", 10, at_least=1)

    batch_size: int = option("measurement", "images in a pass", 1, at_least=1)
    runtime: Literal["eager", "graph", "onnxruntime"] = option(
        "measurement", "PyTorch as it is, a captured CUDA graph, or ONNX Runtime on a CPU", "eager"
    )
    device: str = option(
        "measurement", "auto (CUDA where there is some), cpu, cuda or cuda:N", "auto", metavar="DEVICE"
    )
    threads: int | None = option("measurement", "threads on a CPU (default: torch's)", None, metavar="N", at_least=1)
    rounds: int = option("measurement", "times that each op and network is measured, in turns", 15, at_least=3)
    networks: int = option(
        "measurement", "whole networks that find the constant, and as many that state the error", 10, at_least=2
    )
    samples: int = option(
        "measurement",
        "fit a regressor to so many whole random networks, of which a fifth is held out, instead of a table of ops "
        "(Latency-DARTS; 0: a table)",
        0,
        at_least=0,
    )
    seed: int = option("measurement", "seed of those networks", 0, at_least=0, at_most=LARGEST_SEED)
    out: Path = option("measurement", "the file to write", Path("latency.json"), metavar="FILE")

    def preset(self) -> Mapping[str, Any]:
        space = registry.find(self.space)
        searched, trained = space.search_defaults(self.dataset), space.evaluation_defaults(self.dataset)
        own = {name: trained[name] for name in ("init_channels", "layers") if name in trained}
        return {**super().preset(), **own, "space_options": searched.get("space_options", {})}

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.samples < _FEWEST:
            raise ValueError(f"samples must be 0, or at least {_FEWEST} for a regressor; got {self.samples}")
        options = search_options_of(registry.find(self.space))
        values = {**self.preset()["space_options"], **self.space_options}
        object.__setattr__(self, "space_options", asdict(read_table(options, values, "space_options")))
