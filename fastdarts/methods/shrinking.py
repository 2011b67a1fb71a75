"""The phases of progressive shrinking (Cai et al., ICLR 2020): parts that are trained, lengths, learning rates."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastdarts.spaces.elastic import Sides

_FULL, _LONG, _SHORT = 180, 125, 25  # epochs in the paper's code
_RATES = {"full": 1.0, "kernel": 0.4, _SHORT: 1 / 30, _LONG: 0.1}


@dataclass(frozen=True)
class Phase:
    """Train parts of a network for some epochs.

    Attributes:
        name: what it adds: "full", "kernel", "depth" or "width".
        sides: the choices of the parts.
        parts: number of parts whose gradients a step sums.
        epochs: of the paper; phases share out a search's epochs in proportion.
        rate: learning rate in its first epoch, as a share of that of the whole network's.
        shared: before it begins, channels are sorted, except that these expansions keep theirs; None: not sorted.
    """

    name: str
    sides: Sides
    parts: int
    epochs: int
    rate: float
    shared: tuple[int, ...] | None = None

    @property
    def long(self) -> bool:
        """Return True if the phase begins with a rising rate."""
        return self.epochs == _LONG


def phases_of(sides: Sides, deepest: int) -> list[Phase]:
    """Return the phases that end with all choices of `sides`.

    Args:
        sides: the choices of the space.
        deepest: layers of the longest stage.
    """
    widest = sides.expansions[-1:]
    phases = [Phase("full", Sides(sides.kernels[-1:], widest, deepest), 1, _FULL, _RATES["full"])]
    if len(sides.kernels) > 1:
        phases.append(Phase("kernel", Sides(sides.kernels, widest, deepest), 1, _LONG, _RATES["kernel"]))
    for least in range(deepest - 1, sides.least - 1, -1):
        epochs = _LONG if least == sides.least else _SHORT
        phases.append(Phase("depth", Sides(sides.kernels, widest, least), 2, epochs, _RATES[epochs]))
    for first in range(len(sides.expansions) - 2, -1, -1):
        epochs = _LONG if first == 0 else _SHORT
        part, shared = Sides(sides.kernels, sides.expansions[first:], sides.least), sides.expansions[first + 1 : -1]
        phases.append(Phase("width", part, 4, epochs, _RATES[epochs], shared))
    return phases


def lengths(phases: Sequence[Phase], epochs: int) -> list[int]:
    """Return the epoch with which each phase ends, for `epochs` in all; each phase has one at least.

    Raises: ValueError for fewer epochs than phases.
    """
    if epochs < len(phases):
        names = ", ".join(phase.name for phase in phases)
        raise ValueError(f"epochs must be at least {len(phases)}, one for each phase ({names}); got {epochs}")
    whole, done = sum(phase.epochs for phase in phases), 0
    ends: list[int] = []
    for index, phase in enumerate(phases):
        done += phase.epochs
        earliest, latest = (ends[-1] if ends else 0) + 1, epochs - (len(phases) - 1 - index)
        ends.append(min(max(round(epochs * done / whole), earliest), latest))
    return ends
