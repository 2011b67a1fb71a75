"""Set a table's prediction beside the measured latency of a trained network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastdarts.runs.timing import milliseconds, runner
from fastdarts.spaces import registry
from fastdarts.spaces.cost import Cost
from fastdarts.spaces.space import priced_supernet

_ROUNDS = 15
_CHANNELS = 8  # of a search network that only knows its rows


@dataclass(frozen=True)
class CostComparison:
    """A predicted cost, and the measured one where the table holds milliseconds.

    Attributes:
        unit: of both.
        predicted: the table's cost of the architecture.
        measured: the trained network's, as the table's own numbers were measured; None for other units.
        how: the batch and runtime of the measurement.
    """

    unit: str
    predicted: float
    measured: float | None = None
    how: str = ""

    def __str__(self) -> str:
        text = f"cost: predicted {self.predicted:.3g} {self.unit}"
        if self.measured is None:
            return text
        difference = 100 * (self.predicted / self.measured - 1)
        return f"{text}, measured {self.measured:.3g} {self.unit} ({difference:+.0f} %; {self.how})"


def predicted_cost(table: Cost, architecture: Any, layers: int) -> CostComparison:
    """Return the table's cost of an architecture.

    Args:
        table: its costs.
        architecture: of any space.
        layers: of the network that is trained.

    Raises: ValueError for a table of another space.
    """
    space = registry.shaped_like(architecture)
    network = priced_supernet(space, C=_CHANNELS, num_classes=2, layers=layers, in_channels=1)
    table.check(network.groups, "cost")
    return CostComparison(table.unit, table.of(network, architecture))


def with_measured(
    found: CostComparison, table: Cost, network: nn.Module, image_shape: Sequence[int], device: torch.device
) -> CostComparison:
    """Add the latency of a network in eval mode, with the batch and runtime of the table's own measurement.

    Args:
        found: the prediction.
        table: where it is from.
        network: the trained network, on `device`.
        image_shape: (C, H, W) of its images.
        device: where it is measured.
    """
    if table.unit != "ms":
        return found
    size, runtime = int(table.about.get("batch_size", 1)), str(table.about.get("runtime", "eager"))
    x = torch.randn(size, *image_shape, device=device).contiguous(memory_format=torch.channels_last)
    taken = milliseconds({"network": runner(network, x, runtime)}, _ROUNDS)["network"]
    images = f"{size} image{'s' * (size != 1)}"
    return CostComparison(found.unit, found.predicted, taken, f"{images}, {runtime}, {device}")
