"""Share among runs on texts: windows as batches, dropout masks, hidden states, perplexity."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from fastdarts.data.text import Text, WindowStream
from fastdarts.data.text.windows import Window, equal_lengths
from fastdarts.runs.state import RunState
from fastdarts.tasks.language import Dropouts, Masks, Read
from fastdarts.tasks.task import Batch

_MEASURED_WINDOW = 35  # words of a window when a text is measured; the result does not depend on it


class MaskDraw:
    """Draw the dropout masks of each batch from a generator of its own.

    Args:
        dropouts: the probabilities.
        vocabulary: number of words.
        seed: seed of the generator.
        device: device of the masks.
    """

    def __init__(self, dropouts: Dropouts, vocabulary: int, seed: int, device: torch.device) -> None:
        self.generator = torch.Generator(device).manual_seed(seed)
        self._dropouts = dropouts
        self._vocabulary = vocabulary

    def __call__(self, like: Tensor) -> Masks:
        """Return new masks for a hidden state like this, [B, d]."""
        return self._dropouts.draw(self._vocabulary, like, self.generator)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generator.set_state(state["generator"])


class TextRun(RunState):
    """Run on texts: the first stream's windows train the weights, and their lengths scale the learning rate.

    Subclasses set `columns_measured`, the number of columns in which the validation text is measured.
    """

    unit: ClassVar[str] = "words"
    graph_kinds: ClassVar[int] = 4  # of a search: whole and half windows, and one of each that the text's end cuts
    augment: MaskDraw
    streams: Sequence[WindowStream]
    columns_measured: int

    def next_batches(self) -> list[Batch]:
        return [(*batch, *self.augment(batch[2])) for batch in (stream.next() for stream in self.streams)]

    def trial_batches(self, size: int) -> list[Batch]:
        batches: list[Batch] = []
        for stream in self.streams:
            length = min(self._longest(), len(stream.columns) - 1)
            words, targets = (part[:, :size] for part in stream.at(Window(0, length, length)))
            state = stream.state[:size].clone()
            batches.append((words, targets, state, *self.augment(state)))
        return batches

    def _longest(self) -> int:
        return int(self.config.space_options["window"])

    def size_of(self, batch: Batch) -> int:
        return batch[1].numel()

    def drawn_share(self) -> float:
        """Return the drawn length of the latest window over the usual one, by which the learning rate is multiplied."""
        return self.streams[0].window.drawn / float(self.config.space_options["window"])

    def measure(self, data: Any, between_batches: Callable[[], object]) -> tuple[float, float]:
        """Return the mean loss on a text in nats a word, in eval mode, and NaN for an accuracy.

        The hidden state is carried from window to window and zero at the start of each column.

        Args:
            data: the text.
            between_batches: called before each window.

        Raises: FloatingPointError if the loss is not finite.
        """
        return self.measure_columns(data, self.columns_measured, between_batches), math.nan

    def measure_columns(self, text: Text, count: int, between_batches: Callable[[], object]) -> float:
        """Return the mean loss on a text in `count` columns; fewer where it is too short for that."""
        columns = text.columns(min(count, len(text) // 2))
        stream = WindowStream(columns, equal_lengths(len(columns), _MEASURED_WINDOW), self._width(), self._dtype())
        rest = (len(columns) - 1) % _MEASURED_WINDOW if len(columns) > _MEASURED_WINDOW else 0
        places = [*stream.windows, *([Window(len(columns) - 1 - rest, rest, rest)] if rest else [])]
        total, words = torch.zeros((), dtype=torch.float64, device=columns.device), 0
        self.network.eval()
        with self.measuring():
            for place in places:
                between_batches()
                with torch.inference_mode():
                    batch = (*stream.at(place), stream.state)
                    loss, outputs = self.test_batch(batch)
                    stream.state.copy_(cast(Read, outputs).raw[-1])
                    total += loss.double() * batch[1].numel()
                words += batch[1].numel()
        mean = float(total) / words
        if not math.isfinite(mean):
            raise FloatingPointError(f"the loss measured at the end of epoch {self.epoch + 1} is {mean}")
        return mean

    def measuring(self) -> AbstractContextManager[None]:
        """Return the context in which the network, in eval mode, is measured."""
        return nullcontext()

    def _width(self) -> int:
        return int(self.config.space_options["width"])

    def _dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    def start_epoch_anew(self) -> None:
        super().start_epoch_anew()
        for stream in self.streams:
            stream.begin(self.epoch)
        self.steps_per_epoch = self.streams[0].batches_per_epoch

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.steps_per_epoch = self.streams[0].batches_per_epoch
