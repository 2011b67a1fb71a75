"""Cut a text into windows, and iterate over them with the hidden state that each begins with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_USUAL = 0.95  # probability of a window of the whole length; others have half
_SHORTEST, _SPREAD, _LONGER = 5, 5.0, 20  # of windows of varying length (the authors' code)


class Window(NamedTuple):
    """Hold the place of a window: its words are rows start to start + length, its targets the rows behind them."""

    start: int
    length: int
    drawn: int
    """The length that was drawn; the last window of a text may be shorter. The learning rate follows the drawn one."""


Windows = Callable[[int], list[Window]]
"""windows(epoch) -> the windows of an epoch, counted from 0."""


def two_lengths(rows: int, window: int, seed: int) -> Windows:
    """Return windows of `window` words, one in twenty of half that, as in the search for a recurrent cell."""

    def draw(random: np.random.Generator) -> int:
        return window if random.random() < _USUAL else max(window // 2, 1)

    return lambda epoch: _cut(rows, draw, np.random.default_rng((seed, epoch)))


def varying_lengths(rows: int, window: int, seed: int) -> Windows:
    """Return windows of normally distributed lengths, as in the training of a found cell (AWD-LSTM, Merity et al.)."""

    def draw(random: np.random.Generator) -> int:
        mean = window if random.random() < _USUAL else window / 2
        return min(max(int(random.normal(mean, _SPREAD)), _SHORTEST), window + _LONGER)

    return lambda epoch: _cut(rows, draw, np.random.default_rng((seed, epoch)))


def equal_lengths(rows: int, window: int) -> Windows:
    """Return windows of `window` words without the shorter rest; of a text shorter than that, the whole."""
    length = min(window, rows - 1)
    found = [Window(start, length, length) for start in range(0, rows - length, length)]
    return lambda epoch: found


def following(train: Windows, rows: int, window: int) -> Windows:
    """Return validation windows as the authors' code takes them: each starts where the training window does, modulo the
    length of the text, and is cut at its end."""

    def windows(epoch: int) -> list[Window]:
        starts = (place.start % (rows - 1) for place in train(epoch))
        return [Window(start, min(window, rows - 1 - start), window) for start in starts]

    return windows


def _cut(rows: int, draw: Callable[[np.random.Generator], int], random: np.random.Generator) -> list[Window]:
    windows, start = [], 0
    while start < max(rows - 2, 1):  # a last single word is left out
        drawn = draw(random)
        windows.append(Window(start, min(drawn, rows - 1 - start), drawn))
        start += drawn
    return windows


class WindowStream:
    """Yield the windows of a text, epoch after epoch; those of an epoch come again when they are used up.

    The hidden state is zero when an epoch begins and when the text begins again. The order depends on the epoch only.

    Args:
        columns: [rows, B], a text in columns (`Text.columns`).
        windows: windows of each epoch.
        width: size of the hidden state.
        dtype: dtype of the hidden state.
    """

    state: Tensor
    """[B, width]: the hidden state with which the next window begins; a step moves it on in place."""
    windows: list[Window]
    """The windows of the present epoch."""

    def __init__(self, columns: Tensor, windows: Windows, width: int, dtype: torch.dtype = torch.float32) -> None:
        self.columns = columns
        self._windows_of = windows
        self.state = torch.zeros(columns.shape[1], width, dtype=dtype, device=columns.device)
        self.begin(0)

    @property
    def batches_per_epoch(self) -> int:
        """Return the number of windows in the present epoch."""
        return len(self.windows)

    @property
    def window(self) -> Window:
        """Return the latest window."""
        return self.windows[(self._step - 1) % len(self.windows)]

    def begin(self, epoch: int) -> None:
        """Go to the first window of an epoch."""
        self._epoch, self._step = epoch, 0
        self.windows = self._windows_of(epoch)

    def next(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return words and targets [T, B] of the next window, and the hidden state [B, width] before it."""
        place = self.windows[self._step % len(self.windows)]
        if self._step % len(self.windows) == 0:
            self.state.zero_()
        self._step += 1
        return *self.at(place), self.state

    def at(self, place: Window) -> tuple[Tensor, Tensor]:
        """Return words and targets [T, B] of a window."""
        words = self.columns[place.start : place.start + place.length]
        return words, self.columns[place.start + 1 : place.start + 1 + place.length]

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "step": self._step, "state": self.state, "shape": list(self.columns.shape)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises: ValueError if it was taken with a text of another length or number of columns.
        """
        if state["shape"] != list(self.columns.shape):
            ours = list(self.columns.shape)
            raise ValueError(f"the state is of a text of {state['shape']} words; this one has {ours}")
        self.begin(state["epoch"])
        self._step = state["step"]
        self.state.copy_(state["state"])
