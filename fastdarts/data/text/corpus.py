"""Define Corpus: three texts over one vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

END = "<eos>"
"""The word at the end of each line."""
UNKNOWN = "<unk>"


@dataclass(frozen=True, eq=False)
class Text:
    """Hold a text as indices into a vocabulary.

    Attributes:
        words: [N] int64.
    """

    words: Tensor

    def __len__(self) -> int:
        return len(self.words)

    def to(self, device: torch.device | str) -> Text:
        return Text(self.words.to(device))

    def first(self, words: int) -> Text:
        """Return the first words; all if there are fewer."""
        return Text(self.words[:words])

    def columns(self, count: int) -> Tensor:
        """Return the text cut into `count` columns of equal length, [len // count, count]; the rest is left out.

        Raises: ValueError if a column has fewer than two words, so that none has a next word.
        """
        rows = len(self.words) // count
        if rows < 2:
            raise ValueError(
                f"a text of {len(self.words)} words is too short for {count} columns of two words or more; give a "
                "smaller batch_size or a longer text"
            )
        return self.words[: rows * count].view(count, rows).t().contiguous()


@dataclass(frozen=True, eq=False)
class Corpus:
    """Hold the texts of a data set.

    Attributes:
        train, valid, test: the texts.
        vocabulary: the words by index.
    """

    train: Text
    valid: Text
    test: Text
    vocabulary: tuple[str, ...]

    def line(self) -> str:
        """Return a line for the log."""
        sizes = (f"{len(text):,} {name}" for name, text in (("training", self.train), ("validation", self.valid)))
        return f"text: {', '.join(sizes)} and {len(self.test):,} test words, {len(self.vocabulary):,} of them different"

    def to(self, device: torch.device | str) -> Corpus:
        return replace(self, train=self.train.to(device), valid=self.valid.to(device), test=self.test.to(device))


def build_corpus(lines: Mapping[str, Iterable[list[str]]], known: Iterable[str] | None = None) -> Corpus:
    """Return the corpus of three texts.

    Args:
        lines: the lines of "train", "valid" and "test", each a list of words; every line ends with `END`.
        known: the texts that the vocabulary is made from, in the order of first occurrence; None for all three. Words
            of the others that are not in it become `UNKNOWN`.

    Raises: ValueError for an empty text, or for an unknown word where the vocabulary has no `UNKNOWN`.
    """
    index: dict[str, int] = {}
    texts: dict[str, Text] = {}
    growing = set(lines if known is None else known)
    for part, part_lines in lines.items():
        numbers = []
        for line in part_lines:
            for word in (*line, END):
                if part in growing:
                    numbers.append(index.setdefault(word, len(index)))
                elif word in index or UNKNOWN in index:
                    numbers.append(index.get(word, index.get(UNKNOWN, -1)))
                else:
                    raise ValueError(
                        f"{part}: the word {word!r} is not in the training text, which has no {UNKNOWN} to stand for it"
                    )
        if not numbers:
            raise ValueError(f"the {part} text is empty")
        texts[part] = Text(torch.tensor(numbers))
    return Corpus(texts["train"], texts["valid"], texts["test"], tuple(index))
