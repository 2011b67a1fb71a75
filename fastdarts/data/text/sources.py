"""The texts known by name: Penn Treebank, WikiText-2, a folder of texts, and Python's own documentation."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from fastdarts.data.text.corpus import UNKNOWN, Corpus, build_corpus

PARTS = ("train", "valid", "test")
TEXTS = ("pydoc", "ptb", "wikitext2", "textfolder")

_NAMES = {  # a part's file, as published and as scripts have renamed it
    "ptb": ("{part}.txt", "ptb.{part}.txt"),
    "wikitext2": ("{part}.txt", "wiki.{part}.tokens"),
    "textfolder": ("{part}.txt",),
}
_TOKEN = re.compile(r"\w+|[^\w\s]")

Lines = Sequence[list[str]]


def load_corpus(name: str, folder: Path | None = None) -> Corpus:
    """Read a data set of texts.

    Args:
        name: one of `TEXTS`. pydoc is the text of `pydoc_data.topics`, a part of Python: of each topic the first 80 %
            of the lines are for training, the next 10 % for validation, the last for testing.
        folder: where train.txt, valid.txt and test.txt are (not for pydoc). Words are separated by blanks. A textfolder
            without these names may hold any .txt files: each is divided like a topic of pydoc.

    In ptb and wikitext2 the vocabulary is that of all three texts, as in the original code. Otherwise it is that of the
    training text; unless this has `<unk>` already, words that it holds once are replaced by it.

    Raises: ValueError for an unknown name, an empty file, one that is not UTF-8, or an unknown word; FileNotFoundError
        that names the files.
    """
    if name not in TEXTS:
        raise ValueError(f"dataset must be one of {', '.join(TEXTS)}; got {name!r}")
    if name == "pydoc":
        return build_corpus(_without_rare(_pydoc()), known=("train",))
    if folder is None:
        raise ValueError(f"data set {name} needs --data DIR, the folder of train.txt, valid.txt and test.txt")
    paths = {part: _find(folder, name, part) for part in PARTS}
    if missing := [part for part, path in paths.items() if path is None]:
        texts = sorted(folder.glob("*.txt"))
        if name != "textfolder" or not texts or len(missing) < len(PARTS):
            raise FileNotFoundError(
                f"data set {name}: {', '.join(f'{part}.txt' for part in missing)} missing in {folder}; put train.txt, "
                "valid.txt and test.txt there"
            )
        lines = _divided([_read(path) for path in texts])
    else:
        lines = {part: _read(path) for part, path in paths.items() if path is not None}
    if name == "textfolder":
        return build_corpus(_without_rare(lines), known=("train",))
    return build_corpus(lines)


def _find(folder: Path, name: str, part: str) -> Path | None:
    paths = (folder / pattern.format(part=part) for pattern in _NAMES[name])
    return next((path for path in paths if path.is_file()), None)


def _read(path: Path) -> list[list[str]]:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte 0x{content[error.start]:02x} at position {error.start}); convert it, for "
            "example by iconv -f latin1 -t utf-8"
        ) from None
    if not text.strip():
        raise ValueError(f"{path} is empty")
    if "\0" in text:
        raise ValueError(f"{path} holds zero bytes; is it UTF-16 or no text at all?")
    return [line.split() for line in text.splitlines()]


def _pydoc() -> dict[str, list[list[str]]]:
    from pydoc_data.topics import topics  # half a megabyte, which only this data set needs

    return _divided([[_TOKEN.findall(line) for line in topics[name].splitlines()] for name in sorted(topics)])


def _divided(texts: Sequence[Lines]) -> dict[str, list[list[str]]]:
    """Return the lines of three parts: of each text the first 80 %, the next 10 % and the rest."""
    parts: dict[str, list[list[str]]] = {part: [] for part in PARTS}
    for lines in texts:
        first, second = 8 * len(lines) // 10, 9 * len(lines) // 10
        parts["train"] += lines[:first]
        parts["valid"] += lines[first:second]
        parts["test"] += lines[second:]
    return parts


def _without_rare(parts: Mapping[str, Lines]) -> dict[str, Lines]:
    """Return the parts with `UNKNOWN` for words that the training text holds once, unless it has it already."""
    counts = Counter(word for line in parts["train"] for word in line)
    if UNKNOWN in counts:
        return dict(parts)
    rare = {word for word, count in counts.items() if count == 1}
    train = [[UNKNOWN if word in rare else word for word in line] for line in parts["train"]]
    return {**parts, "train": train}
