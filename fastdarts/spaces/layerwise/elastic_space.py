"""The spaces of Once-for-all and APQ: a chain whose layers share the weights of all their choices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastdarts.config.options import option
from fastdarts.spaces.layerwise.architecture import LayerChoices
from fastdarts.spaces.layerwise.elastic_supernet import ElasticSupernet
from fastdarts.spaces.layerwise.space import LayerwiseOptions, LayerwiseSpace
from fastdarts.spaces.layerwise.supernet import LayerwiseSupernet
from fastdarts.spaces.space import Feature

_TITLES = {"ofa": "Once-for-all", "apq": "APQ: widths in steps of 8"}
_SMALL = {"kernels": [3, 5], "expansions": [2, 4], "least": 1}


@dataclass(frozen=True, kw_only=True)
class ElasticOptions(LayerwiseOptions):
    """Shape the chain and its choices; None takes the space's own."""

    kernels: tuple[int, ...] | None = option("space", "kernels of each layer, odd", None)
    expansions: tuple[int, ...] | None = option("space", "expansions of each layer", None)
    least: int | None = option("space", "layers that each stage keeps", None)


class ElasticSpace(LayerwiseSpace):
    """Offer a chain whose layers share weights, "ofa" or "apq". Its kernels and expansions are options, not primitives.

    Raises: ValueError if primitives are given.
    """

    SearchOptions = ElasticOptions
    kernel_devices = ()
    features = frozenset[Feature]({"elastic layers"})

    def __init__(self, name: str, primitives: Sequence[str] | None = None) -> None:
        if primitives is not None:
            raise ValueError(
                f"primitives are not chosen in space {name!r}; its space options kernels and expansions are"
            )
        super().__init__(name)
        self.title = f"inverted residual blocks of elastic kernel, width and depth that share weights ({_TITLES[name]})"

    def with_options(
        self,
        kernels: Sequence[int] | None = None,
        expansions: Sequence[int] | None = None,
        least: int | None = None,
        **shape: Any,
    ) -> LayerwiseSpace:
        changed = super().with_options(**shape)
        changed.chain = changed.chain.with_choices(kernels, expansions, least)
        return changed

    def shaped_like(self, architecture: LayerChoices) -> LayerwiseSpace:
        changed = super().shaped_like(architecture)
        changed.chain = architecture.chain()
        return changed

    def search_defaults(self, dataset: str) -> Mapping[str, Any]:
        found = dict(super().search_defaults(dataset))
        if dataset == "digits":
            found["space_options"] = {**found["space_options"], **_SMALL}
        return found

    def evaluation_defaults(self, dataset: str) -> Mapping[str, Any]:
        found = super().evaluation_defaults(dataset)
        return {**found, "layers": self.search_defaults(dataset)["layers"]}  # a part has no more layers than the whole

    def supernet(self, **arguments: Any) -> ElasticSupernet:
        return ElasticSupernet(**arguments)

    def priced_supernet(self, **arguments: Any) -> LayerwiseSupernet:
        """Build the network of the same choices with weights of their own, on which costs are counted and measured."""
        return LayerwiseSupernet(**arguments)


OFA, APQ = (partial(ElasticSpace, name) for name in ("ofa", "apq"))
"""Factories of the spaces."""
