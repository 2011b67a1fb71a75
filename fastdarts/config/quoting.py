"""Command lines that can be pasted, whatever bytes the names of files have."""

import os
import shlex
from collections.abc import Iterable


def quote(word: str) -> str:
    """Return a word for a shell; one that is not UTF-8 or has control characters as $'...' with escapes, in ASCII."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = "".join(
        chr(byte) if 32 <= byte < 127 and chr(byte) not in "'\\" else f"\\x{byte:02x}" for byte in os.fsencode(word)
    )
    return f"$'{escaped}'"


def join(words: Iterable[str]) -> str:
    """Return the words as one line."""
    return " ".join(map(quote, words))
