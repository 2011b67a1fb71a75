"""DARTS' convolutional space, and its subsets s1 to s4, as search spaces."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fastdarts.config.options import option
from fastdarts.config.reading import parse_json
from fastdarts.primitives.table import PRIMITIVES, check_primitives
from fastdarts.spaces.darts import cell_genotypes, draw
from fastdarts.spaces.darts.benchmark import open_surrogate
from fastdarts.spaces.darts.candidates import arguments_of
from fastdarts.spaces.darts.cell_genotypes import CellGenotypes
from fastdarts.spaces.darts.derivation import skips
from fastdarts.spaces.darts.discrete import EvalNetwork
from fastdarts.spaces.darts.genotype import PUBLISHED, Genotype
from fastdarts.spaces.darts.supernet import SearchNetwork, groups_of
from fastdarts.spaces.group import Group
from fastdarts.spaces.space import Feature, SpaceOptions


@dataclass(frozen=True, kw_only=True)
class DartsOptions(SpaceOptions):
    """Shape the cells of a search; a found cell keeps its shape."""

    steps: int = option("space", "nodes of a cell", 4, at_least=1)
    multiplier: int = option("space", "last nodes of a cell that it puts out", 4, at_least=1)
    without: str = option("space", "candidate ops to leave out, with commas between", "", metavar="OP,...")
    auxiliary_skip: bool = option(
        "space", "true: every edge has a skip connection with weight 1 besides its ops, which found cells keep", False
    )


class DartsSpace:
    """Normal and reduction cells (Liu et al., ICLR 2019).

    Args:
        primitives: the candidate ops of every edge.
        subset: "s1" to "s4" for the ops of RobustDARTS' small spaces instead.
        steps, multiplier: nodes of a cell, and how many of the last ones it puts out.
        auxiliary_skip: every edge also has a skip connection with weight 1, which found cells keep.
    """

    SearchOptions = DartsOptions

    def __init__(
        self,
        primitives: Sequence[str] = PRIMITIVES,
        subset: str | None = None,
        steps: int = 4,
        multiplier: int = 4,
        auxiliary_skip: bool = False,
    ) -> None:
        self.name = subset or "darts"
        self.title = "normal and reduction cells of four nodes" + (f", ops of RobustDARTS' {subset}" if subset else "")
        names = check_primitives(primitives)
        self._arguments: dict[str, Any] = arguments_of(subset) if subset else {"primitives": names}
        self._arguments |= {"steps": steps, "multiplier": multiplier, "auxiliary_skip": auxiliary_skip}
        self._subset = subset

    def with_options(self, **options: Any) -> "DartsSpace":
        """Return the space with cells of another shape, without some ops or with an auxiliary skip connection.

        Raises: ValueError for options that do not go together, or with the ops of a subset.
        """
        wanted = DartsOptions(**options)
        if wanted.multiplier > wanted.steps:
            raise ValueError(
                f"space_options: multiplier must be at most steps = {wanted.steps}; got {wanted.multiplier}"
            )
        without = [name.strip() for name in wanted.without.split(",") if name.strip()]
        if self._subset and (without or wanted.steps != 4):
            raise ValueError(f"space_options: the ops of space {self.name!r} are those of cells of four nodes")
        ops = self._arguments["primitives"]
        for name in without:
            if name not in ops:
                raise ValueError(f"space_options: without must name ops among {', '.join(ops)}; got {name!r}")
        left = tuple(name for name in ops if name not in without)
        shape = wanted.steps, wanted.multiplier, wanted.auxiliary_skip
        return DartsSpace(ops if self._subset else left, self._subset, *shape)

    @property
    def groups(self) -> Mapping[str, Group]:
        arguments = self._arguments
        return groups_of(arguments["primitives"], arguments.get("candidates"), arguments["steps"])

    @property
    def features(self) -> frozenset[Feature]:
        common: set[Feature] = {"edges", "auxiliary ops", "partial channels", "drop path", "depth", "stem"}
        skip: set[Feature] = {"skip connections"} if "skip_connect" in self._arguments["primitives"] else set()
        return frozenset(common | skip | {"weights by cell", "own cells"})

    def search_defaults(self, dataset: str) -> Mapping[str, Any]:
        return {}

    def evaluation_defaults(self, dataset: str) -> Mapping[str, Any]:
        return {}

    def arguments(self) -> dict[str, Any]:
        return dict(self._arguments)

    def supernet(self, **arguments: Any) -> SearchNetwork:
        return SearchNetwork(**arguments)

    def discrete(self, architecture: Genotype | CellGenotypes, **options: Any) -> EvalNetwork:
        own = {"layers": len(architecture.cells)} if isinstance(architecture, CellGenotypes) else {}
        return EvalNetwork(architecture, **(options | own))

    def from_json(self, text: str) -> Genotype | CellGenotypes:
        value = parse_json(text)
        if isinstance(value, dict) and "cells" in value:
            return CellGenotypes.from_json(text)
        return Genotype.from_json(text)

    def from_text(self, text: str) -> Genotype | CellGenotypes | None:
        return PUBLISHED.get(text) or cell_genotypes.PUBLISHED.get(text)

    def numbers(self, architecture: Genotype | CellGenotypes) -> dict[str, float]:
        if isinstance(architecture, CellGenotypes):
            ops = architecture.ops()
            return {"ops": ops.total(), "skips": ops["skip_connect"]}
        if architecture.auxiliary_skip:
            architecture = architecture.without_auxiliary_skip()
        return {f"skips_{cell}": skips(architecture.nodes(cell)) for cell in ("normal", "reduce")}

    def table(self, file: Path) -> Callable[[Any], dict[str, float]]:
        return open_surrogate(file)

    def svg(self, architecture: Genotype | CellGenotypes) -> str:
        return draw.draw_cells(architecture)

    def png(self, architecture: Genotype | CellGenotypes) -> bytes:
        return draw.png_of(architecture)


def _subset(name: str, primitives: Sequence[str] | None = None) -> DartsSpace:
    if primitives is not None:
        raise ValueError(f"primitives cannot be chosen in space {name!r}, which is defined by its ops; take darts")
    return DartsSpace(subset=name)


S1, S2, S3, S4 = (partial(_subset, name) for name in ("s1", "s2", "s3", "s4"))
"""Factories of RobustDARTS' small spaces."""
