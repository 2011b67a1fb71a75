"""Chains of layers as search spaces."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fastdarts.config.options import option
from fastdarts.spaces.group import Group
from fastdarts.spaces.layerwise import draw
from fastdarts.spaces.layerwise.architecture import LayerChoices
from fastdarts.spaces.layerwise.chain import CHAINS, SKIP
from fastdarts.spaces.layerwise.discrete import LayerwiseNetwork
from fastdarts.spaces.layerwise.published import PUBLISHED
from fastdarts.spaces.layerwise.supernet import LayerwiseSupernet, groups_of
from fastdarts.spaces.picture import png, svg
from fastdarts.spaces.space import Feature, SpaceOptions

_LARGE_IMAGES = ("imagefolder", "imagenet", "custom")
_DEPTH = 4


@dataclass(frozen=True, kw_only=True)
class LayerwiseOptions(SpaceOptions):
    """Shape a chain; None takes the space's own numbers."""

    strides: tuple[int, ...] | None = option("space", "strides of the stem and of each stage, 1 or 2", None)
    widths: tuple[int, ...] | None = option("space", "channels of each stage, with the space's own stem", None)
    depths: tuple[int, ...] | None = option("space", "layers of each stage", None)


class LayerwiseSpace:
    """A chain of layers, each with a choice of blocks.

    Args:
        name: a key of `CHAINS`.
        primitives: a subset of the chain's choices, "skip" included or not.

    Raises: ValueError for other choices.
    """

    SearchOptions = LayerwiseOptions
    kernel_devices: tuple[str, ...] = ("cpu",)
    features = frozenset[Feature]({"probed ops"})

    def __init__(self, name: str, primitives: Sequence[str] | None = None) -> None:
        self.name = name
        self.title = f"layers of inverted residual blocks ({name})"
        own = CHAINS[name]
        if primitives is not None:
            allowed = own.blocks if own.skips == "none" else (*own.blocks, SKIP)
            for primitive in primitives:
                if primitive not in allowed:
                    raise ValueError(f"primitives must be among {', '.join(allowed)} in this space; got {primitive!r}")
            blocks = tuple(primitive for primitive in primitives if primitive != SKIP)
            own = replace(own, blocks=blocks, skips=own.skips if SKIP in primitives else "none")
        if not own.blocks:
            raise ValueError(f"primitives must name a block besides {SKIP!r}")
        if own.skips == "none":  # one group, and layers that may change the channels
            self.features = self.features | {"stages"}
        if own.activation not in ("relu", "relu6"):
            self.kernel_devices = ()
        self.chain = own

    def with_options(self, **values: Any) -> "LayerwiseSpace":
        """Return this space with the shape that its search options give."""
        changed = copy(self)
        changed.chain = self.chain.changed(**values)
        return changed

    def shaped_like(self, architecture: LayerChoices) -> "LayerwiseSpace":
        """Return this space with the shape of an architecture's chain."""
        shape = {name: getattr(architecture, name) or None for name in ("strides", "widths", "depths")}
        return self.with_options(**shape)

    @property
    def groups(self) -> Mapping[str, Group]:
        return groups_of(self.chain)

    def search_defaults(self, dataset: str) -> Mapping[str, Any]:
        if dataset == "digits":
            return {"init_channels": 8, "layers": 2, "space_options": {"strides": self._small_strides()}}
        small = {} if dataset in _LARGE_IMAGES else {"space_options": {"strides": self._small_strides()}}
        return {"init_channels": self.chain.stem, "layers": _DEPTH, **small}

    def evaluation_defaults(self, dataset: str) -> Mapping[str, Any]:
        channels = 8 if dataset == "digits" else self.chain.stem
        return {"init_channels": channels, "layers": _DEPTH, "auxiliary": False, "drop_path": 0.0, "stem": "cifar"}

    def _small_strides(self) -> list[int]:
        """Return strides for images of 32x32 and smaller: all but the last two strides of 2 become 1."""
        strides = list(CHAINS[self.name].strides)
        halving = [place for place, stride in enumerate(strides) if stride == 2]
        for place in halving[: max(0, len(halving) - 2)]:
            strides[place] = 1
        return strides

    @property
    def stages(self) -> int:
        """Return the number of stages."""
        return len(self.chain.stages)

    def arguments(self) -> dict[str, Any]:
        return {"space": self.name, "chain": self.chain}

    def supernet(self, **arguments: Any) -> LayerwiseSupernet:
        return LayerwiseSupernet(**arguments)

    def discrete(self, architecture: LayerChoices, **options: Any) -> LayerwiseNetwork:
        """Build the network of an architecture.

        Raises: ValueError for fewer `layers` than a stage of the architecture has, and for an auxiliary head, drop path
            or another stem, which a chain has not.
        """
        deepest = max(stage.layers for stage in architecture.chain().stages)
        if options.pop("layers", deepest) < deepest:
            raise ValueError(f"layers must be at least {deepest}, those of the architecture's deepest stage")
        for name, value in (("auxiliary", False), ("drop_path_prob", 0), ("stem", "cifar")):
            if options.pop(name, value) != value:
                raise ValueError(f"{name.removesuffix('_prob')} has no meaning in space {self.name!r}; leave it out")
        return LayerwiseNetwork(architecture, **options)

    def from_json(self, text: str) -> LayerChoices:
        return LayerChoices.from_json(text)

    def from_text(self, text: str) -> LayerChoices | None:
        return PUBLISHED.get(text)

    def numbers(self, architecture: LayerChoices) -> dict[str, float]:
        return {"skips_layers": architecture.skips()}

    def table(self, file: Path) -> Callable[[LayerChoices], dict[str, float]]:
        raise ValueError(f"benchmark: space {self.name!r} has no tabulated accuracies")

    def svg(self, architecture: LayerChoices) -> str:
        return "\n".join(svg(draw.lay_out(architecture), draw.describe(architecture)))

    def png(self, architecture: LayerChoices) -> bytes:
        return png(draw.lay_out(architecture))


PROXYLESS, FBNET, FAIRNAS, MOBILENET_SMALL, DNA = (
    partial(LayerwiseSpace, name) for name in ("proxyless", "fbnet", "fairnas", "mobilenet-small", "dna")
)
"""Factories of the spaces."""
