"""What a method sees of a running search."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from fastdarts.bilevel.architect import Architect
from fastdarts.config.search_options import SearchOptions
from fastdarts.data import ImageData
from fastdarts.data.augment import Augment
from fastdarts.spaces.supernet import Supernet


class RunningSearch(Protocol):
    """A search between two steps."""

    @property
    def config(self) -> SearchOptions: ...

    network: Supernet
    architect: Architect
    augment: Augment
    validation: ImageData | None
    """The images of the alpha steps, which also measure the search; None if alphas learn from the training images."""
    epoch: int
    metrics: list[dict[str, Any]]
    """Of each epoch that has ended."""

    def measure(self, data: ImageData, between_batches: Callable[[], object]) -> tuple[float, float]:
        """Return mean loss and accuracy of the network on images."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all that changes during the search; tensors are the live ones."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to where `state` was taken."""
        ...
