"""The choice of each layer of a chain, with the chain's shape where it is not that of the space."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from fastdarts.spaces.layerwise.chain import CHAINS, SKIP, Chain, sides_of

_LISTS = ("strides", "widths", "depths", "kernels", "expansions")
_NUMBERS = ("head", "least")


@dataclass(frozen=True)
class LayerChoices:
    """One choice a layer.

    Attributes:
        space: the space's name, a key of `CHAINS`.
        layers: the name of each layer's block, or "skip".
        strides: of the stem and of each stage.
        widths: of each stage, for the space's own width of the stem.
        depths: layers of each stage, left-out ones included.
        head: channels of the last 1x1 convolution; None takes the space's own.
        kernels, expansions, least: of a chain whose layers share weights, see `Chain.with_choices`.

    Raises: ValueError for an unknown space, numbers that make no chain, or another number of layers.
    """

    space: str
    layers: tuple[str, ...]
    strides: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()
    depths: tuple[int, ...] = ()
    head: int | None = None
    kernels: tuple[int, ...] = ()
    expansions: tuple[int, ...] = ()
    least: int | None = None

    def __post_init__(self) -> None:
        if self.space not in CHAINS:
            raise ValueError(f"space must be one of {', '.join(CHAINS)}; got {self.space!r}")
        for name in ("layers", *_LISTS):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        chain = self.chain()
        layers = chain.layers()
        if len(self.layers) != len(layers):
            raise ValueError(f"layers must name a block for each of the {len(layers)} layers; got {len(self.layers)}")
        for index, (name, layer) in enumerate(zip(self.layers, layers, strict=True)):
            if name not in layer.choices:
                raise ValueError(f"layers[{index}] must be one of {', '.join(layer.choices)}; got {name!r}")
            left_out = index > 0 and self.layers[index - 1] == SKIP and layers[index - 1].stage == layer.stage
            if chain.skips == "last" and left_out and name != SKIP:
                raise ValueError(f"layers[{index}] must be {SKIP!r}, as the layer before it in its stage; got {name!r}")

    def chain(self) -> Chain:
        """Return the chain of these choices, with the space's own widths or `widths`."""
        own = CHAINS[self.space]
        if self.kernels or self.expansions or self.least is not None:
            own = own.with_choices(self.kernels or None, self.expansions or None, self.least)
        return own.changed(self.strides or None, self.widths or None, self.depths or None, self.head)

    def __str__(self) -> str:
        return " | ".join(self.layers)

    def to_json(self) -> str:
        """Return one JSON object: the space, the layers, and the numbers that differ from the space's own."""
        changed = {name: getattr(self, name) for name in (*_LISTS, *_NUMBERS)}
        return json.dumps({"space": self.space, "layers": self.layers} | {k: v for k, v in changed.items() if v})

    @classmethod
    def from_json(cls, text: str) -> LayerChoices:
        """Read what `to_json` wrote; ValueError says what is wrong with `text`."""
        value: Any = json.loads(text)
        if not isinstance(value, dict) or not isinstance(value.get("layers"), list):
            raise ValueError(f"genotype must be a JSON object with the key layers, a list of names; got {text[:80]!r}")
        allowed = ("space", "layers", *_NUMBERS, *_LISTS)
        for name in value:
            if name not in allowed:
                raise ValueError(f"genotype has the key {name!r}; the keys are {', '.join(allowed)}")
        for name in _LISTS:
            listed = value.get(name, [])
            if not isinstance(listed, list) or any(type(number) is not int for number in listed):
                raise ValueError(f"{name} must be a list of integers; got {listed!r}")
        for name in _NUMBERS:
            if type(value.get(name, 1)) is not int:
                raise ValueError(f"{name} must be an integer; got {value[name]!r}")
        return cls(**value)

    def skips(self) -> int:
        """Return the number of layers that are left out."""
        return self.layers.count(SKIP)


def shape_arguments(space: str, chain: Chain) -> dict[str, Any]:
    """Return the arguments of `LayerChoices` by which `chain` differs from the space's own chain."""
    own = CHAINS[space]
    numbers = {
        "strides": (own.strides, chain.strides),
        "widths": (tuple(s.width for s in own.stages), tuple(s.width for s in chain.stages)),
        "depths": (tuple(s.layers for s in own.stages), tuple(s.layers for s in chain.stages)),
    }
    different: dict[str, Any] = {name: theirs for name, (ours, theirs) in numbers.items() if ours != theirs}
    if own.skips == "last":
        pairs = zip(("kernels", "expansions"), sides_of(own.blocks), sides_of(chain.blocks), strict=True)
        different |= {name: theirs for name, ours, theirs in pairs if ours != theirs}
        different |= {"least": chain.least} if chain.least != own.least else {}
    return different
