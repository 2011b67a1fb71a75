"""The one door for text files that a program reads: what is wrong is said in one sentence that names the file."""

import json
import tomllib
from pathlib import Path
from typing import Any

LARGEST = 256 * 2**20
"""Bytes of a text file; metrics.jsonl of a long search has a few MiB."""


def read_text(path: Path) -> str:
    """Return a file's text: UTF-8 with or without a byte-order mark, or UTF-16 with one (as Windows' shell writes).

    Raises: FileNotFoundError; ValueError for a folder, a pipe, a file that is too large or no text.
    """
    if not path.is_file():
        if path.exists():
            raise ValueError(f"{path} is no regular file")
        raise FileNotFoundError(f"there is no file {path}")
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"{path} has {size / 2**20:,.0f} MiB; at most {LARGEST // 2**20} are read")
    content = path.read_bytes()
    try:
        return content.decode(
            "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") and len(content) > 2 else "utf-8-sig"
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text: {error}") from None


def parse_json(text: str) -> Any:
    """Return what a JSON text holds; ValueError that says what is wrong with it, also where it is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_toml(text: str) -> dict[str, Any]:
    """Return what a TOML text holds; errors as of `parse_json`."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_object(path: Path) -> dict[str, Any]:
    """Return the table in a JSON file.

    Raises: FileNotFoundError; ValueError that names the file for all else.
    """
    text = read_text(path)
    try:
        value = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} is damaged, it is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged, it must hold one table; got {text.strip()[:60]!r}")
    return value
