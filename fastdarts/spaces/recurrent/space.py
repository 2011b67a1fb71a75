"""The recurrent cell as a search space."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdarts.spaces.group import Group
from fastdarts.spaces.picture import png, svg
from fastdarts.spaces.recurrent import draw
from fastdarts.spaces.recurrent.architecture import PRIMITIVES, PUBLISHED, RecurrentCell
from fastdarts.spaces.recurrent.discrete import RecurrentNetwork
from fastdarts.spaces.recurrent.options import (
    EVALUATION,
    SEARCH,
    RecurrentEvaluationOptions,
    RecurrentSearchOptions,
)
from fastdarts.spaces.recurrent.supernet import RecurrentSearchNetwork, groups_of
from fastdarts.spaces.space import Feature, Material


class Recurrent:
    """A cell of eight nodes for language models, an activation on one of each node's edges (Liu et al., ICLR 2019).

    Args:
        primitives: a subset of none, tanh, relu, sigmoid and identity.
    """

    name = "recurrent"
    title = "recurrent cell of eight nodes, for text: a predecessor and an activation of each"
    features: frozenset[Feature] = frozenset()
    material: Material = "text"
    SearchOptions = RecurrentSearchOptions
    EvaluationOptions = RecurrentEvaluationOptions

    def __init__(self, primitives: Sequence[str] = PRIMITIVES) -> None:
        for name in primitives:
            if name not in PRIMITIVES:
                raise ValueError(f"primitives must be among {', '.join(PRIMITIVES)} in this space; got {name!r}")
        if not set(primitives) - {"none"}:
            raise ValueError("primitives must hold an activation other than 'none'")
        self._primitives = tuple(primitives)

    @property
    def groups(self) -> Mapping[str, Group]:
        return groups_of(self._primitives)

    def search_defaults(self, dataset: str) -> Mapping[str, Any]:
        return {"space_options": SEARCH.get(dataset, {})}

    def evaluation_defaults(self, dataset: str) -> Mapping[str, Any]:
        return {"space_options": EVALUATION.get(dataset, {})}

    def arguments(self) -> dict[str, Any]:
        return {"primitives": self._primitives}

    def supernet(self, **arguments: Any) -> RecurrentSearchNetwork:
        """Build the search network; arguments are vocabulary, width, backend and primitives. It has no `layers`."""
        return RecurrentSearchNetwork(**{name: value for name, value in arguments.items() if name != "layers"})

    def discrete(self, architecture: RecurrentCell, **options: Any) -> RecurrentNetwork:
        """Build the language model of a cell; options are vocabulary, width and backend."""
        return RecurrentNetwork(architecture, **options)

    def from_json(self, text: str) -> RecurrentCell:
        return RecurrentCell.from_json(text)

    def from_text(self, text: str) -> RecurrentCell | None:
        """Read a published cell's name, `relu-0 tanh-1 ...`, or a genotype as the original code prints it."""
        if text in PUBLISHED:
            return PUBLISHED[text]
        written = "recurrent=" in text or RecurrentCell.looks_like(text)
        return RecurrentCell.parse(text) if written else None

    def numbers(self, architecture: RecurrentCell) -> dict[str, float]:
        depth = [0]
        for _, source in architecture.nodes:
            depth.append(depth[source] + 1)
        return {"depth": max(depth)}

    def table(self, file: Path) -> Callable[[RecurrentCell], dict[str, float]]:
        raise ValueError("benchmark: space 'recurrent' has no tabulated accuracies")

    def svg(self, architecture: RecurrentCell) -> str:
        return "\n".join(svg(draw.lay_out(architecture), draw.describe(architecture)))

    def png(self, architecture: RecurrentCell) -> bytes:
        return png(draw.lay_out(architecture))
