"""NAS-Bench-201 as a search space."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdarts.spaces.group import Group
from fastdarts.spaces.nasbench201 import draw
from fastdarts.spaces.nasbench201.architecture import PRIMITIVES, NasBench201Cell
from fastdarts.spaces.nasbench201.benchmark import open_table
from fastdarts.spaces.nasbench201.discrete import EvalNetwork201
from fastdarts.spaces.nasbench201.supernet import SearchNetwork201, groups_of
from fastdarts.spaces.picture import png, svg
from fastdarts.spaces.space import Feature

_SEARCH = {"init_channels": 16, "layers": 5}
_EVALUATION = {  # the benchmark's own training (Dong and Yang, ICLR 2020, table 2)
    "init_channels": 16,
    "layers": 5,
    "auxiliary": False,
    "drop_path": 0.0,
    "cutout": 0,
    "epochs": 200,
    "batch_size": 256,
    "lr": 0.1,
    "weight_decay": 5e-4,
}
_SMALL = {"init_channels": 4, "layers": 1}
_SMALL_EVALUATION = {"init_channels": 8, "layers": 1, "auxiliary": False, "drop_path": 0.0}


class NasBench201:
    """15,625 cells with an op on each of six edges (Dong and Yang, ICLR 2020).

    Args:
        primitives: a subset of the benchmark's ops.
    """

    name = "nasbench201"
    title = "cells of NAS-Bench-201: an op on each of six edges"
    features = frozenset[Feature](
        {"edges", "skip connections", "auxiliary ops", "partial channels", "drop path", "depth", "weights by cell"}
    )

    def __init__(self, primitives: Sequence[str] = PRIMITIVES) -> None:
        for name in primitives:
            if name not in PRIMITIVES:
                raise ValueError(f"primitives must be among {', '.join(PRIMITIVES)} in this space; got {name!r}")
        self._primitives = tuple(primitives)

    @property
    def groups(self) -> Mapping[str, Group]:
        return groups_of(self._primitives)

    def search_defaults(self, dataset: str) -> Mapping[str, Any]:
        return _SMALL if dataset == "digits" else _SEARCH

    def evaluation_defaults(self, dataset: str) -> Mapping[str, Any]:
        return _SMALL_EVALUATION if dataset == "digits" else _EVALUATION

    def arguments(self) -> dict[str, Any]:
        return {"primitives": self._primitives}

    def supernet(self, **arguments: Any) -> SearchNetwork201:
        return SearchNetwork201(**arguments)

    def discrete(self, architecture: NasBench201Cell, **options: Any) -> EvalNetwork201:
        """Build the benchmark's network.

        Raises: ValueError for an auxiliary head, drop path, the stem of ImageNet or a backend, which it has not.
        """
        for name, value in (("auxiliary", False), ("drop_path_prob", 0), ("backend", "auto")):
            if options.pop(name, value) != value:
                raise ValueError(f"{name.removesuffix('_prob')} has no meaning in space {self.name!r}; leave it out")
        stem = options.pop("stem", "cifar")
        if isinstance(stem, str) and stem != "cifar":
            raise ValueError(f"stem has no meaning in space {self.name!r}; leave it out, or give a function")
        return EvalNetwork201(architecture, stem=None if isinstance(stem, str) else stem, **options)

    def from_json(self, text: str) -> NasBench201Cell:
        return NasBench201Cell.from_json(text)

    def from_text(self, text: str) -> NasBench201Cell | None:
        return NasBench201Cell.parse(text) if text.lstrip().startswith("|") else None

    def numbers(self, architecture: NasBench201Cell) -> dict[str, float]:
        return {"skips_cell": architecture.ops.count("skip_connect")}

    def table(self, file: Path) -> Callable[[NasBench201Cell], dict[str, float]]:
        return open_table(file)

    def svg(self, architecture: NasBench201Cell) -> str:
        return "\n".join(svg(draw.lay_out(architecture), draw.describe(architecture)))

    def png(self, architecture: NasBench201Cell) -> bytes:
        return png(draw.lay_out(architecture))
