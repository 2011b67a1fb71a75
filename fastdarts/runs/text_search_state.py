"""Hold all that changes during a search on texts."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch

from fastdarts.bilevel.clipping import VirtualClip
from fastdarts.data.text import Corpus, Text, WindowStream
from fastdarts.data.text.windows import equal_lengths, following, two_lengths
from fastdarts.methods import find
from fastdarts.runs.progress import json_number
from fastdarts.runs.search_config import SearchConfig
from fastdarts.runs.search_state import SearchState
from fastdarts.runs.text_run import MaskDraw, TextRun
from fastdarts.spaces.recurrent.options import RecurrentSearchOptions
from fastdarts.spaces.recurrent.supernet import RecurrentSearchNetwork
from fastdarts.tasks.language import Language, perplexity


class TextSearchState(TextRun, SearchState):
    """Hold a search on texts as it is between two steps: weights learn from the training text, alphas from the other.

    Args:
        config: config as given to `search`.
        corpus: the texts, on `device`.
        device: device of network and texts.

    Raises: ValueError for a text that is too short for the config's columns.
    """

    network: RecurrentSearchNetwork

    def __init__(self, config: SearchConfig, corpus: Corpus, device: torch.device) -> None:
        self._options = options = RecurrentSearchOptions(**config.space_options)
        self.method = find(config.method)(config)
        self._sizes = {"vocabulary": len(corpus.vocabulary), "width": options.width}
        self.validation = corpus.valid
        self.columns_measured = options.valid_columns
        columns = corpus.train.columns(config.batch_size)
        windows = two_lengths(len(columns), options.window, config.seed)
        streams = [WindowStream(columns, windows, options.width)]
        if self.method.level not in ("single", "coordinate"):
            valid = corpus.valid.columns(config.batch_size)
            equal = equal_lengths(len(valid), options.window)
            places = following(windows, len(valid), options.window) if options.compat else equal
            streams.append(WindowStream(valid, places, options.width))
        task = Language(options.slowness, options.activation, options.dropouts() if options.compat else None)
        masks = MaskDraw(options.dropouts(), len(corpus.vocabulary), config.seed, device)
        self._start(config, task, device, masks, streams)

    def first_batches(self, batches: int) -> Text:
        words: Text = self.validation.first(batches * self.config.batch_size * self._options.window)
        return words

    def recalibrate(self, batches: int) -> None:
        """Do nothing: the cell's one batch norm sees all its nodes, whatever the architecture."""

    def measuring(self) -> AbstractContextManager[None]:
        return nullcontext() if self._options.compat else self.network.normalised_by_batch()

    def virtual_clip(self) -> VirtualClip:
        held = [self.network.encoder.weight] if self._options.compat else []
        return VirtualClip(self.config.grad_clip, self._options.compat, held)

    def numbers(self, losses: Mapping[str, float]) -> dict[str, float | None]:
        return {f"{name}_perplexity": json_number(perplexity(loss)) for name, loss in losses.items()}

    def step_rate(self) -> float:
        return self.learning_rate() * self.drawn_share()
