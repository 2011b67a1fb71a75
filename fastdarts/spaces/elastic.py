"""Search networks of which each architecture is a part, as methods that train them see them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Sides:
    """Hold the choices among which parts of an elastic network are drawn.

    Attributes:
        kernels: of each layer, in rising order.
        expansions: of each layer, in rising order.
        least: layers that each stage keeps.
    """

    kernels: tuple[int, ...]
    expansions: tuple[int, ...]
    least: int


class Elastic(Protocol):
    """Declare what a search network has in a space with the feature "elastic layers", besides that of any space."""

    sides: Sides
    """All that the space offers."""
    deepest: int
    """Layers of the longest stage."""

    def draw(self, sides: Sides, generator: torch.Generator) -> Any:
        """Draw a part: the depth of each stage, the kernel and expansion of each layer, all uniformly."""
        ...

    def largest(self) -> Any:
        """Return the part that is the whole network."""
        ...

    def smallest(self, sides: Sides) -> Any:
        """Return the smallest of the parts that `draw` draws."""
        ...

    def sort_channels(self, shared: Sequence[int]) -> None:
        """Sort the channels inside all blocks by importance, without a change of the whole network's outputs.

        Args:
            shared: expansions below the largest that have been trained; each keeps its set of channels.
        """
        ...
