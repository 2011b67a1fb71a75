"""Search spaces by name, and architectures from files."""

import difflib
import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastdarts.spaces.darts.genotype import Genotype
from fastdarts.spaces.space import Space

_FACTORIES: dict[str, str | Callable[..., Space]] = {
    "darts": "fastdarts.spaces.darts.space:DartsSpace",
    **{name: f"fastdarts.spaces.darts.space:{name.upper()}" for name in ("s1", "s2", "s3", "s4")},
    "nasbench201": "fastdarts.spaces.nasbench201.space:NasBench201",
}
_ALIASES = {"s5": "darts"}  # RobustDARTS' name for the whole space


def names() -> tuple[str, ...]:
    """Return the names of all spaces."""
    return tuple(_FACTORIES)


def register_space(name: str, factory: Callable[..., Space]) -> None:
    """Add a search space under a name.

    Args:
        name: as on the command line; ValueError if it is taken.
        factory: makes the space; with `primitives=` where the user chooses the candidate ops.
    """
    if name in _FACTORIES or name in _ALIASES:
        raise ValueError(f"space {name!r} is registered already")
    _FACTORIES[name] = factory


def find(name: str, primitives: Sequence[str] | None = None) -> Space:
    """Return the space called `name`, with these candidate ops instead of its own; ValueError for an unknown name."""
    factory = _FACTORIES.get(_ALIASES.get(name, name))
    if factory is None:
        close = difflib.get_close_matches(name, [*_FACTORIES, *_ALIASES], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"space must be one of {', '.join(_FACTORIES)}; got {name!r}{hint}")
    if isinstance(factory, str):
        module, _, attribute = factory.partition(":")
        factory = getattr(importlib.import_module(module), attribute)
    return factory() if primitives is None else factory(primitives=tuple(primitives))


def space_of(architecture: Any) -> Space:
    """Return the space of an architecture."""
    return find(architecture.space)


def read_architecture(text: str) -> Any:
    """Read an architecture of any space from JSON; without the key `space` it is a genotype of DARTS' space."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"genotype is not JSON: {error}") from None
    name = value.get("space", "darts") if isinstance(value, dict) else "darts"
    if not isinstance(name, str):
        raise ValueError(f"genotype.space must be the name of a space; got {name!r}")
    return find(name).from_json(text)


def load_architecture(source: str) -> Any:
    """Return the architecture that a user names.

    Args:
        source: a JSON file such as a search's genotype.json, or text that one of the spaces understands: the name of a
            published cell, or a cell written as the space's users write it.

    Raises: ValueError with what is wrong with the file, or with what is allowed.
    """
    path = Path(source)
    if path.is_file():
        try:
            return read_architecture(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise ValueError(f"{path}: {error}") from None
    for name in _FACTORIES:
        if (found := find(name).from_text(source)) is not None:
            return found
    return Genotype.load(source)  # says what is allowed
