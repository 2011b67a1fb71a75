"""The configuration of a comparison of search methods."""

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from fastdarts.config.names import did_you_mean
from fastdarts.config.options import Config, option, table_of
from fastdarts.config.search_options import Dataset, TextDataset
from fastdarts.data.text.sources import TEXTS
from fastdarts.methods import NAMES, find
from fastdarts.runs.eval_config import EvalConfig
from fastdarts.runs.pool import check_pool, scheduler_option, workers_option
from fastdarts.runs.search_config import SearchConfig
from fastdarts.runs.space_options import choose_dataset
from fastdarts.spaces import registry
from fastdarts.spaces.space import evaluation_options_of, material_of, search_options_of

_SIZES = ("image_size", "epochs", "init_channels", "layers", "batch_size", "order")
_COMMON = {"dataset", "data", "space", "seed", "device", "deterministic", "out", "resume"}
_SEARCH_OWN = {*_SIZES, *_COMMON, "method"}
_SELECT_OWN = {*_COMMON, "image_size", "epochs", "test_only", "checkpoint", "export"}

_FEW, _IMAGES, _TEXT = 20, 100, 300
"""Epochs of a training that judges a cell: of `digits`; of images and of text as in the paper (section 3.1)."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Config):
    """Hold everything that decides a comparison; what is not given is each method's default for the data set.

    Raises: ValueError or TypeError that names the field (and the method that cannot take it).
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: {"select_epochs": epochs, "search": {}, "select": {}}
        for names, epochs in ((typing.get_args(Dataset), _IMAGES), (TEXTS, _TEXT))
        for name in names
    } | {
        "digits": {"select_epochs": _FEW, "search": {}, "select": {}},
        "pydoc": {"select_epochs": 3, "search": {}, "select": {}},
    }

    dataset: Literal[Dataset, TextDataset] = option("data", "data set and its preset; texts for space recurrent")
    data: Path = option("data", "folder of the data set", Path("data"), metavar="DIR")
    image_size: tuple[int, int] | None = option(
        "data", "resize images to this (default: as they are)", None, metavar="SIZE|HxW", at_least=1
    )

    space: str = option("comparison", f"search space: {', '.join(registry.names())}", "darts", metavar="NAME")
    methods: str = option(
        "comparison",
        "names of methods with commas between, each with options of its own behind it: darts,darts+order=1 (default: "
        "all that the space offers what they need)",
        metavar="NAME[+OPTION=VALUE...],...",
        names_code=True,
    )
    seeds: int = option("comparison", "searches of each method, with the seeds 0, 1, ...", 4, at_least=1)
    select_epochs: int = option("comparison", "epochs of the training of each found cell from scratch", at_least=1)

    epochs: int | None = option("searches", "epochs (default: each method's)", None, at_least=1)
    init_channels: int | None = option("searches", "channels of the first cells (default: each method's)", None)
    layers: int | None = option("searches", "number of cells (default: each method's)", None)
    batch_size: int | None = option(
        "searches", "images, or columns of a text, in a step (default: each method's)", None
    )
    order: int | None = option("searches", "1 or 2 (default: each method's)", None)
    search: dict[str, Any] = option(
        "searches", "other options of fastdarts search, or of the space in a search", metavar="NAME=VALUE"
    )
    select: dict[str, Any] = option(
        "comparison",
        "options of fastdarts evaluate, or of the space there, for these trainings",
        metavar="NAME=VALUE",
    )

    device: str = option("run", "auto (CUDA if available), cpu, cuda or cuda:N", "auto", metavar="DEVICE")
    deterministic: bool = option("run", "the same bits in each run on the same machine", False)
    workers: int = workers_option()
    scheduler: str | None = scheduler_option()
    out: Path | None = option(
        "run", "folder of the results (default: runs/comparison-DATASET-TIME)", None, metavar="DIR"
    )
    resume: bool = option("run", "continue the comparison in --out; methods and seeds may be added", False)

    def preset(self) -> Mapping[str, Any]:
        return {**super().preset(), "methods": ",".join(methods_of(self.space))}

    def __post_init__(self) -> None:
        choose_dataset(self, self.presets)
        super().__post_init__()
        if self.dataset == "custom":
            raise ValueError("dataset must be one that can be read from files; custom is for search() and evaluate()")
        if self.resume and self.out is None:
            raise ValueError("resume needs out, the folder of the comparison to continue")
        check_pool(self)
        for field, own in (("search", _SEARCH_OWN), ("select", _SELECT_OWN)):
            if taken := sorted(own & getattr(self, field).keys()):
                raise ValueError(f"{field} must not set {', '.join(taken)}; a comparison decides that by other means")
        names = self.method_names()
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"methods names {name!r} more than once")
            try:
                self.search_config(name, 0, Path())
            except (ValueError, TypeError) as error:
                raise type(error)(f"{name}: {error}") from None
        self.select_config(0, Path())

    @property
    def reads_text(self) -> bool:
        """Return True if language models are compared."""
        return self.dataset in TEXTS

    def method_names(self) -> list[str]:
        """Return the methods as they are named, with the options behind them."""
        return [name.strip() for name in self.methods.split(",")]

    def search_config(self, method: str, seed: int, out: Path) -> SearchConfig:
        """Return the config of one search; `method` as `method_names` has it."""
        name, own = _with_options(method)
        given = {size: value for size in _SIZES if (value := getattr(self, size)) is not None}
        space = search_options_of(registry.find(self.space))
        values = _placed("search", self.search, SearchConfig, {"space_options": space})
        changed = _placed("methods", own, SearchConfig, {"method_options": find(name).Options})
        if taken := sorted((_SEARCH_OWN - set(_SIZES)) & own.keys()):
            raise ValueError(f"methods must not set {', '.join(taken)}; a comparison decides that by other means")
        options = table_of(values, "method_options") | table_of(changed, "method_options")
        merged = {**given, **values, **changed, **({"method_options": options} if options else {})}
        return SearchConfig(**{**merged, **self._common(seed, out), "method": name})

    def select_config(self, seed: int, out: Path) -> EvalConfig:
        """Return the config of the training that judges a found cell."""
        space = evaluation_options_of(registry.find(self.space))
        values = _placed("select", self.select, EvalConfig, {"space_options": space})
        return EvalConfig(**{**values, **self._common(seed, out), "epochs": self.select_epochs})

    def _common(self, seed: int, out: Path) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "data": self.data,
            "space": self.space,
            "seed": seed,
            "device": self.device,
            "deterministic": self.deterministic,
            "out": out,
            "resume": (out / "config.json").is_file(),
        }


def methods_of(space: str) -> list[str]:
    """Return the names of the methods that need nothing but what a space offers."""
    offered = registry.find(space)
    images = material_of(offered) == "images"
    methods = {name: find(name) for name in NAMES}
    return [name for name, m in methods.items() if m.needs <= offered.features and (images or not m.measures_images)]


def _with_options(method: str) -> tuple[str, dict[str, Any]]:
    """Split NAME+OPTION=VALUE+... into the name and the options' values, read as JSON where they are that.

    The name of a composed method has words without = between more signs of +, too.
    """
    words = method.split("+")
    count = max(next((place for place, word in enumerate(words) if "=" in word), len(words)), 1)
    name = "+".join(words[:count])
    values: dict[str, Any] = {}
    for pair in words[count:]:
        option_name, separator, value = pair.partition("=")
        if not (option_name and separator):
            raise ValueError(f"methods must be NAME or NAME+OPTION=VALUE; got {method!r}")
        try:
            values[option_name.replace("-", "_")] = json.loads(value)
        except ValueError:
            values[option_name.replace("-", "_")] = value
    return name, values


def _placed(
    what: str, values: Mapping[str, Any], config_type: type[Config], tables: Mapping[str, type[Config]]
) -> dict[str, Any]:
    """Return values of fields of `config_type`; a name that it does not have goes into the table that has it.

    Args:
        what: the field that the values come from, for the message.
        values: by name.
        config_type: config whose fields come first.
        tables: options by the name of the field that holds them.

    Raises: ValueError for a name that none of them has; TypeError for a table that is none.
    """
    own = [field.name for field in dataclasses.fields(config_type)]
    places = {field.name: table for table, options in tables.items() for field in dataclasses.fields(options)}
    placed: dict[str, Any] = {}
    for name, value in values.items():
        if name in own:
            placed[name] = {**placed.get(name, {}), **table_of(values, name)} if name in tables else value
        elif name in places:
            placed.setdefault(places[name], {})[name] = value
        else:
            raise ValueError(f"{what} sets {name!r}, which is unknown{did_you_mean(name, [*own, *places])}")
    return placed
