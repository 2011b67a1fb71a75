"""Declare the parts of a running search that a search method may use."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from fastdarts.bilevel.architect import Architect
from fastdarts.config.search_options import SearchOptions
from fastdarts.data.augment import Augment
from fastdarts.spaces.cost import Cost
from fastdarts.spaces.supernet import Supernet
from fastdarts.tasks.faults import Faults
from fastdarts.tasks.task import Batch


class RunningSearch(Protocol):
    """Declare the state of a search between two steps."""

    @property
    def config(self) -> SearchOptions: ...

    network: Supernet
    architect: Architect
    augment: Augment
    validation: Any
    """Images or text of the alpha steps, also used to measure the search; None if alphas learn from the others."""
    costs: Cost | None
    """Costs of the space's choices, where the config asks for a cost."""
    epoch: int
    metrics: list[dict[str, Any]]
    """Metrics of each epoch that has ended."""

    def first_batches(self, batches: int) -> Any:
        """Return the part of `validation` that fills the first so many batches."""
        ...

    def measure(self, data: Any, between_batches: Callable[[], object]) -> tuple[float, float]:
        """Return the network's mean loss and accuracy on `data`; call `between_batches` between batches."""
        ...

    def under(self, faults: Faults) -> AbstractContextManager[None]:
        """Inside, `measure` is that under faults, where the config asks for some."""
        ...

    def recalibrate(self, batches: int) -> None:
        """Average the running statistics of the batch norms in use over so many training batches."""
        ...

    def plain_batches(self, batches: int) -> Iterator[Batch]:
        """Yield so many training batches, at least one, in the data's order and not augmented."""
        ...

    def measure_by_batch(self, data: Any, between_batches: Callable[[], object]) -> tuple[float, float]:
        """Return the same with the statistics of each batch in place of the running ones."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all that changes during the search; its tensors are not copies."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the search as it was when `state` was taken."""
        ...
