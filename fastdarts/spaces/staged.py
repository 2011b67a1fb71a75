"""Search networks of stages that are trained one by one, as methods that train them see them."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

Handing = Callable[[int, Tensor], Tensor]
"""Returns what is read next, given the number of a stage and its output."""


class StageLayer(Protocol):
    """Declare a layer of a stage: a module."""

    stride: int

    @property
    def primitives(self) -> Sequence[str]:
        """Return its choices."""
        ...

    def __call__(self, x: Tensor, weights: Tensor, active: Sequence[int] | None = None) -> Tensor:
        """Compute the layer by op weights [choices], of which the columns `active` run."""
        ...


class StagedSpace(Protocol):
    """Declare what a space with the feature "stages" has besides that of any space."""

    @property
    def stages(self) -> int:
        """Return the number of stages."""
        ...


class Staged(Protocol):
    """Declare what a search network has in a space with the feature "stages", besides that of any space.

    Its only group, "layers", has a row for each layer, stage by stage.
    """

    handing: Handing | None
    """Called between stages of a forward pass, and behind the last one; None hands outputs on as they are."""

    def begin(self, x: Tensor) -> Tensor:
        """Compute what the first stage reads."""
        ...

    def stages(self) -> Sequence[Sequence[StageLayer]]:
        """Return the layers of each stage."""
        ...
