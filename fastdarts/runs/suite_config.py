"""The configuration of DARTS-Bench-Suite: benchmarks, hyper-parameters, and the parts of both that a budget leaves."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

from fastdarts.config.options import Config, option
from fastdarts.config.search_options import Dataset
from fastdarts.methods import find
from fastdarts.runs.eval_config import EvalConfig
from fastdarts.runs.pool import check_pool, scheduler_option, workers_option
from fastdarts.runs.search_config import SearchConfig

Kind = Literal["search", "training"]
Budget = Literal["full", "tenth", "smallest"]

MAY_DIFFER = ("methods", "benchmarks", "workers", "scheduler", "data", "device", "out", "resume")
"""Options that may change when a suite goes on."""

_LEARNING_RATES, _WEIGHT_DECAYS = (0.025, 0.1, 0.01), (1e-4, 3e-4, 1e-3)
SETS = tuple(itertools.product(_LEARNING_RATES, _WEIGHT_DECAYS))
"""The learning rate and weight decay of each training of a found cell."""


class Shape(NamedTuple):
    """Hold the size of a search network, and the images in a step of its searches."""

    init_channels: int
    layers: int
    batch_size: int
    space_options: Mapping[str, Any]


SHAPES = {
    "wide": Shape(18, 4, 96, {}),
    "deep": Shape(7, 18, 64, {}),
    "single-cell": Shape(26, 1, 96, {"steps": 8}),
}
OPS: Mapping[str, Mapping[str, Any]] = {
    "regular": {},
    "no-skip": {"without": "skip_connect"},
    "all-skip": {"auxiliary_skip": True},
}
BENCHMARKS = {f"{shape}-{ops}": (shape, ops) for shape in SHAPES for ops in OPS}
"""The names of the shape and of the ops of each benchmark."""

_SEARCH: Mapping[str, Any] = {
    "order": 1,
    "epochs": 100,
    "lr": 0.025,
    "lr_min": 0.001,
    "arch_lr": 3e-4,
    "weight_decay": 3e-4,
    "cutout": 0,
}
_OF_METHODS: Mapping[str, Mapping[str, Any]] = {
    "drnas": {"lr": 0.1, "lr_min": 0.0, "arch_lr": 6e-4},
    "gdas": {"epochs": 300},
}
_GDAS_BATCHES = 5  # GDAS' batches are so many times as large
_TRAINING: Mapping[str, Any] = {
    "epochs": 300,
    "batch_size": 512,
    "momentum": 0.9,
    "drop_path": 0.3,
    "auxiliary": False,
    "schedule": "cosine",
}


@dataclass(frozen=True)
class Scale:
    """Hold the parts of the suite that a budget leaves.

    Attributes:
        epochs: share of the epochs of searches and trainings, at least one.
        searches: searches of each method on a benchmark.
        sets: the trainings of a found cell, as places in SETS.
        images: about so many images of the training part, and of the test part; None for all.
        batch: share of the images in a step.
    """

    epochs: float = 1.0
    searches: int = 3
    sets: tuple[int, ...] = tuple(range(len(SETS)))
    images: int | None = None
    batch: float = 1.0


SCALES: Mapping[Budget, Scale] = {
    "full": Scale(),
    "tenth": Scale(epochs=0.1),
    "smallest": Scale(epochs=0.01, searches=1, sets=(1,), images=120, batch=1 / 8),
}


class Task(NamedTuple):
    """Name one run: a search with the seed `number`, or the training of the chosen cell under the set `number`."""

    benchmark: str
    method: str
    kind: Kind
    number: int


@dataclass(frozen=True, kw_only=True)
class SuiteConfig(Config):
    """Hold everything that decides a run of the suite.

    Raises: ValueError or TypeError that names the field (and the method that cannot take it).
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {name: {} for name in get_args(Dataset)}

    dataset: Dataset = option("data", "data set; the suite is defined for cifar10", "cifar10")
    data: Path = option("data", "folder of the data set", Path("data"), metavar="DIR")
    image_size: tuple[int, int] | None = option(
        "data", "resize images to this (default: as they are)", None, metavar="SIZE|HxW", at_least=1
    )

    methods: str = option(
        "suite",
        "names of methods with commas between",
        "darts,drnas,gdas,sdarts-rs,fairdarts,oles",
        metavar="NAME,...",
        names_code=True,
    )
    benchmarks: str = option(
        "suite", f"names with commas between, of {', '.join(BENCHMARKS)}", ",".join(BENCHMARKS), metavar="NAME,..."
    )
    budget: Budget = option(
        "suite",
        "full: as published; tenth: a tenth of the epochs; smallest: minutes on a CPU, to see that all of it runs",
        "full",
    )

    device: str = option("run", "auto (CUDA if available), cpu, cuda or cuda:N", "auto", metavar="DEVICE")
    deterministic: bool = option("run", "the same bits in each run on the same machine", False)
    workers: int = workers_option()
    scheduler: str | None = scheduler_option()
    out: Path | None = option("run", "folder of the results (default: runs/suite-DATASET-TIME)", None, metavar="DIR")
    resume: bool = option("run", "continue the suite in --out; methods and benchmarks may be added", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset == "custom":
            raise ValueError("dataset must be one that can be read from files; got custom")
        if self.resume and self.out is None:
            raise ValueError("resume needs out, the folder of the suite to continue")
        check_pool(self)
        for field_name, names in (("methods", self.method_names()), ("benchmarks", self.benchmark_names())):
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"{field_name} names {name!r} more than once")
        for name in self.benchmark_names():
            if name not in BENCHMARKS:
                raise ValueError(f"benchmarks must be among {', '.join(BENCHMARKS)}; got {name!r}")
        for name in self.method_names():
            self._check_method(name)

    def _check_method(self, name: str) -> None:
        if find(name).level in ("single", "coordinate"):
            raise ValueError(f"{name}: searches are chosen by their validation loss, and this method has none")
        for task in self.tasks("search"):
            if task.method == name:
                try:
                    self.search_config(task, Path())
                except (ValueError, TypeError) as error:
                    raise type(error)(f"{name}, {task.benchmark}: {error}") from None

    @property
    def scale(self) -> Scale:
        """Return what the budget leaves."""
        return SCALES[self.budget]

    def method_names(self) -> list[str]:
        return [name.strip() for name in self.methods.split(",")]

    def benchmark_names(self) -> list[str]:
        return [name.strip() for name in self.benchmarks.split(",")]

    def tasks(self, kind: Kind) -> list[Task]:
        """Return all runs of a kind, those of one seed or set after the other."""
        numbers = range(self.scale.searches) if kind == "search" else self.scale.sets
        return [
            Task(benchmark, method, kind, number)
            for number in numbers
            for benchmark in self.benchmark_names()
            for method in self.method_names()
        ]

    def scaled(self) -> list[str]:
        """Return in words what the budget takes away, and what differs from the suite's own data set."""
        scale, full = self.scale, SCALES["full"]
        lines = []
        if scale.epochs < 1:
            lines.append(f"{scale.epochs:.0%} of the epochs, one at least")
        if scale.searches < full.searches:
            lines.append(f"{scale.searches} of {full.searches} searches of a method on a benchmark")
        if len(scale.sets) < len(full.sets):
            lines.append(f"{len(scale.sets)} of {len(full.sets)} trainings of a found cell")
        if scale.images is not None:
            lines.append(f"about {scale.images} training images, half of them for searches, and as many test images")
        if scale.batch < 1:
            lines.append(f"steps of {scale.batch:.0%} of the images")
        if self.dataset != "cifar10":
            lines.append(f"data set {self.dataset} in place of CIFAR-10")
        if len(missing := BENCHMARKS.keys() - set(self.benchmark_names())):
            lines.append(f"{len(BENCHMARKS) - len(missing)} of {len(BENCHMARKS)} benchmarks")
        return lines

    def search_config(self, task: Task, out: Path) -> SearchConfig:
        """Return the config of a search."""
        shape, ops = BENCHMARKS[task.benchmark]
        size = SHAPES[shape]
        values = {**_SEARCH, **_OF_METHODS.get(task.method, {})}
        factor = _GDAS_BATCHES if task.method == "gdas" else 1
        return SearchConfig(
            **{**values, "epochs": self._epochs(values["epochs"])},
            **self._common(out),
            method=task.method,
            init_channels=size.init_channels,
            layers=size.layers,
            batch_size=round(factor * size.batch_size * self.scale.batch),
            space_options={**size.space_options, **OPS[ops]},
            seed=task.number,
        )

    def training_config(self, task: Task, out: Path) -> EvalConfig:
        """Return the config of the training of a found cell, at the size of the search network."""
        size = SHAPES[BENCHMARKS[task.benchmark][0]]
        lr, decay = SETS[task.number]
        batch = round(_TRAINING["batch_size"] * self.scale.batch)
        changed = {"epochs": self._epochs(_TRAINING["epochs"]), "batch_size": batch}
        return EvalConfig(
            **{**_TRAINING, **changed},
            **self._common(out),
            init_channels=size.init_channels,
            layers=size.layers,
            lr=lr,
            weight_decay=decay,
        )

    def _epochs(self, full: Any) -> int:
        return max(round(full * self.scale.epochs), 1)

    def _common(self, out: Path) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "device": self.device,
            "deterministic": self.deterministic,
            "out": out,
            "resume": (out / "config.json").is_file(),
        }
