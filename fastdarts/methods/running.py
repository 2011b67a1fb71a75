"""Declare the parts of a running search that a search method may use."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from fastdarts.bilevel.architect import Architect
from fastdarts.config.search_options import SearchOptions
from fastdarts.data import ImageSet
from fastdarts.data.augment import Augment
from fastdarts.spaces.supernet import Supernet


class RunningSearch(Protocol):
    """Declare the state of a search between two steps."""

    @property
    def config(self) -> SearchOptions: ...

    network: Supernet
    architect: Architect
    augment: Augment
    validation: ImageSet | None
    """Images of the alpha steps, also used to measure the search; None if alphas are trained on the training images."""
    epoch: int
    metrics: list[dict[str, Any]]
    """Metrics of each epoch that has ended."""

    def measure(self, data: ImageSet, between_batches: Callable[[], object]) -> tuple[float, float]:
        """Return the network's mean loss and accuracy on `data`; call `between_batches` between batches."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all that changes during the search; its tensors are not copies."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the search as it was when `state` was taken."""
        ...
