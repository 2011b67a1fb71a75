"""Options of the recurrent space, beside those of any search and evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastdarts.config.options import option
from fastdarts.spaces.space import SpaceOptions
from fastdarts.tasks.language import Dropouts


@dataclass(frozen=True, kw_only=True)
class LanguageOptions(SpaceOptions):
    """Hold what a language model and its training have of their own; defaults are those of the search (Liu et al., ICLR
    2019, section A.1.2, and the authors' code)."""

    width: int = option("space", "size of embedding, states and hidden state", 300, at_least=1)
    window: int = option("space", "words of a window through which gradients flow", 35, at_least=1)
    valid_columns: int = option(
        "space", "columns into which the validation text is cut when it is measured", 10, at_least=1
    )
    dropout: float = option("space", "dropout of the cell's output", 0.75, at_least=0, below=1)
    dropouth: float = option("space", "dropout of hidden states inside the cell", 0.25, at_least=0, below=1)
    dropoutx: float = option("space", "dropout of the cell's input", 0.75, at_least=0, below=1)
    dropouti: float = option("space", "dropout of embedded words", 0.2, at_least=0, below=1)
    dropoute: float = option("space", "dropout of whole words of the embedding", 0.0, at_least=0, below=1)
    slowness: float = option("space", "factor of the squared change of the hidden state in the loss", 1e-3, at_least=0)
    activation: float = option("space", "factor of the squared output in the loss", 0.0, at_least=0)

    def dropouts(self) -> Dropouts:
        """Return the dropout probabilities."""
        return Dropouts(self.dropout, self.dropouth, self.dropoutx, self.dropouti, self.dropoute)


@dataclass(frozen=True, kw_only=True)
class RecurrentSearchOptions(LanguageOptions):
    """Options of a search."""

    valid_columns: int = option(
        "space",
        "columns into which the validation text is cut when it is measured; the norm's statistics are those of the "
        "columns",
        64,
        at_least=2,
    )
    compat: bool = option(
        "space",
        "second order as the published code computes it: embedding and decoder stay in the virtual step, every pass "
        "draws its own dropout, the implicit term's factor may exceed 1, validation windows follow the training text, "
        "and the perplexity is measured with the norm's running statistics",
        False,
    )


@dataclass(frozen=True, kw_only=True)
class RecurrentEvaluationOptions(LanguageOptions):
    """Options of a training of a found cell."""

    test_columns: int = option("space", "columns into which the test text is cut", 1, at_least=1)
    patience: int = option(
        "space", "epochs without a better validation loss before averaging of the weights begins", 5, at_least=1
    )


_SMALL = {"width": 32, "dropout": 0.2, "dropouth": 0.1, "dropoutx": 0.2, "dropouti": 0.1}

SEARCH: Mapping[str, Mapping[str, Any]] = {"pydoc": _SMALL | {"window": 10, "valid_columns": 32}}
"""Defaults of a data set that differ from those of `RecurrentSearchOptions`."""

EVALUATION: Mapping[str, Mapping[str, Any]] = {
    "pydoc": _SMALL | {"width": 100},
    "ptb": {"width": 850, "dropoute": 0.1},
    "wikitext2": {"width": 700, "dropouth": 0.15, "dropoute": 0.1},
    "textfolder": {"width": 850, "dropoute": 0.1},
}
"""Defaults of a data set that differ from those of `RecurrentEvaluationOptions` (Liu et al., section A.2.2)."""
