"""Numbers of numpy and torch, and subclasses of plain types, as the plain values that every file can hold."""

import math
import os
from collections.abc import Callable, Mapping, Set
from typing import Any


def plain(
    value: Any,
    place: str = "value",
    keep: tuple[type, ...] = (),
    unknown: Callable[[Any], Any] | None = None,
) -> Any:
    """Return the value made of None, bool, int, float, str, bytes, list, tuple, set and dict alone.

    Args:
        value: may hold numbers and arrays of numpy or torch (arrays become lists), named tuples, mappings, paths.
        place: what the value is called in an error message.
        keep: types that are returned as they are.
        unknown: converts all else; left out, that is an error.

    Raises: TypeError that names the place of a value that cannot be converted.
    """

    def inner(value: Any, place: str) -> Any:
        return plain(value, place, keep, unknown)

    if value is None or isinstance(value, keep) or type(value) in (bool, int, float, str, bytes):
        return value
    if hasattr(value, "tolist") and hasattr(value, "dtype"):  # of numpy or torch, neither of which is imported here
        return inner(value.tolist(), place)
    if isinstance(value, bool | int | float | str | bytes):  # enumerations and other subclasses
        base: Any = next(base for base in (bool, int, float, str, bytes) if isinstance(value, base))
        return str.__str__(value) if isinstance(value, str) else base(value)
    if isinstance(value, Mapping):
        return {inner(key, place): inner(item, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [inner(item, f"{place}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, range):
        return list(value)
    if isinstance(value, Set):
        return {inner(item, place) for item in value}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if unknown is not None:
        return unknown(value)
    raise TypeError(f"{place} is a {type(value).__name__}; only numbers, texts and lists or tables of them can be kept")


def for_json(value: Any) -> Any:
    """Return a plain value with None for numbers that are not finite, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: for_json(item) for key, item in value.items()}
    return [for_json(item) for item in value] if isinstance(value, list | tuple) else value
