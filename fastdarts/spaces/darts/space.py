"""DARTS' convolutional space, and its subsets s1 to s4, as search spaces."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fastdarts.primitives.table import PRIMITIVES, check_primitives
from fastdarts.spaces.darts import draw
from fastdarts.spaces.darts.candidates import arguments_of
from fastdarts.spaces.darts.derivation import skips
from fastdarts.spaces.darts.discrete import EvalNetwork
from fastdarts.spaces.darts.genotype import PUBLISHED, Genotype
from fastdarts.spaces.darts.supernet import SearchNetwork, groups_of
from fastdarts.spaces.group import Group
from fastdarts.spaces.space import Feature


class DartsSpace:
    """Normal and reduction cells of four nodes (Liu et al., ICLR 2019).

    Args:
        primitives: the candidate ops of every edge.
        subset: "s1" to "s4" for the ops of RobustDARTS' small spaces instead.
    """

    def __init__(self, primitives: Sequence[str] = PRIMITIVES, subset: str | None = None) -> None:
        self.name = subset or "darts"
        self.title = "normal and reduction cells of four nodes" + (f", ops of RobustDARTS' {subset}" if subset else "")
        names = check_primitives(primitives)
        self._arguments: dict[str, Any] = arguments_of(subset) if subset else {"primitives": names}

    @property
    def groups(self) -> Mapping[str, Group]:
        return groups_of(self._arguments["primitives"], self._arguments.get("candidates"))

    @property
    def features(self) -> frozenset[Feature]:
        common: set[Feature] = {"edges", "auxiliary ops", "partial channels", "drop path", "depth", "stem"}
        skip: set[Feature] = {"skip connections"} if "skip_connect" in self._arguments["primitives"] else set()
        return frozenset(common | skip | {"weights by cell"})

    def search_defaults(self, dataset: str) -> Mapping[str, Any]:
        return {}

    def evaluation_defaults(self, dataset: str) -> Mapping[str, Any]:
        return {}

    def arguments(self) -> dict[str, Any]:
        return dict(self._arguments)

    def supernet(self, **arguments: Any) -> SearchNetwork:
        return SearchNetwork(**arguments)

    def discrete(self, architecture: Genotype, **options: Any) -> EvalNetwork:
        return EvalNetwork(architecture, **options)

    def from_json(self, text: str) -> Genotype:
        return Genotype.from_json(text)

    def from_text(self, text: str) -> Genotype | None:
        return PUBLISHED.get(text)

    def numbers(self, architecture: Genotype) -> dict[str, float]:
        return {f"skips_{cell}": skips(architecture.nodes(cell)) for cell in ("normal", "reduce")}

    def table(self, file: Path) -> Callable[[Genotype], dict[str, float]]:
        raise ValueError(f"benchmark: space {self.name!r} has no tabulated accuracies")

    def svg(self, architecture: Genotype) -> str:
        return draw.draw_cells(architecture)

    def png(self, architecture: Genotype) -> bytes:
        return draw.png_of(architecture)


def _subset(name: str, primitives: Sequence[str] | None = None) -> DartsSpace:
    if primitives is not None:
        raise ValueError(f"primitives cannot be chosen in space {name!r}, which is defined by its ops; take darts")
    return DartsSpace(subset=name)


S1, S2, S3, S4 = (partial(_subset, name) for name in ("s1", "s2", "s3", "s4"))
"""Factories of RobustDARTS' small spaces."""
