"""Search spaces by name, and architectures from files."""

import difflib
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdarts.config.reading import parse_json, read_text
from fastdarts.spaces.darts.genotype import Genotype
from fastdarts.spaces.space import Architecture, Space, with_options

_FACTORIES: dict[str, str | Callable[..., Space]] = {
    "darts": "fastdarts.spaces.darts.space:DartsSpace",
    **{name: f"fastdarts.spaces.darts.space:{name.upper()}" for name in ("s1", "s2", "s3", "s4")},
    "nasbench201": "fastdarts.spaces.nasbench201.space:NasBench201",
    "recurrent": "fastdarts.spaces.recurrent.space:Recurrent",
    "proxyless": "fastdarts.spaces.layerwise.space:PROXYLESS",
    "fbnet": "fastdarts.spaces.layerwise.space:FBNET",
    "fairnas": "fastdarts.spaces.layerwise.space:FAIRNAS",
    "mobilenet-small": "fastdarts.spaces.layerwise.space:MOBILENET_SMALL",
    "dna": "fastdarts.spaces.layerwise.space:DNA",
    "ofa": "fastdarts.spaces.layerwise.elastic_space:OFA",
    "apq": "fastdarts.spaces.layerwise.elastic_space:APQ",
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


def find(name: str, primitives: Sequence[str] | None = None, options: Mapping[str, Any] | None = None) -> Space:
    """Return a space.

    Args:
        name: the space's name.
        primitives: candidate ops instead of its own.
        options: values of its search options, see `fastdarts.spaces.space.with_options`.

    Raises: ValueError for an unknown name.
    """
    factory = _FACTORIES.get(_ALIASES.get(name, name))
    if factory is None:
        close = difflib.get_close_matches(name, [*_FACTORIES, *_ALIASES], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"space must be one of {', '.join(_FACTORIES)}; got {name!r}{hint}")
    if isinstance(factory, str):
        module, _, attribute = factory.partition(":")
        factory = getattr(importlib.import_module(module), attribute)
    space = factory() if primitives is None else factory(primitives=tuple(primitives))
    return with_options(space, options or {})


def space_of(architecture: Architecture) -> Space:
    """Return the space of an architecture."""
    return find(architecture.space)


def shaped_like(architecture: Architecture) -> Space:
    """Return the space with the shape that an architecture has, such as the depths of a chain: `Space.shaped_like`."""
    space = space_of(architecture)
    change: Callable[[Architecture], Space] | None = getattr(space, "shaped_like", None)
    return space if change is None else change(architecture)


def architecture_of(value: Any) -> Any:
    """Return an architecture as it is, or the genotype that an object of other code holds (see `Genotype.of`)."""
    if isinstance(getattr(value, "space", None), str) and not isinstance(value, Genotype):
        return value
    return Genotype.of(value)


def read_architecture(text: str) -> Any:
    """Read an architecture of any space from JSON; without the key `space` it is a genotype of DARTS' space."""
    try:
        value = parse_json(text)
    except ValueError as error:
        raise ValueError(f"genotype is not JSON: {error}") from None
    name = value.get("space", "darts") if isinstance(value, dict) else "darts"
    if not isinstance(name, str):
        raise ValueError(f"genotype.space must be the name of a space; got {name!r}")
    return find(name).from_json(text)


def load_architecture(source: str) -> Any:
    """Return the architecture that a user names.

    Args:
        source: a JSON file such as a search's genotype.json; a run's folder; RUN/candidates.json:N, the N-th of the
            architectures that a search has compared; text that one of the spaces understands: a
            cell as the space's users write it; or anything that `Genotype.load` takes.

    Raises: ValueError with what is wrong with the file, or with what is allowed.
    """
    for name in _FACTORIES:
        if (found := find(name).from_text(source)) is not None:
            return found
    if (found := _compared(source)) is not None:
        return found
    path = Path(source)
    if not source.lstrip().startswith("{") and "(" not in source:
        path = path / "genotype.json" if path.is_dir() else path
        if path.is_file() and (text := read_text(path)).lstrip().startswith("{"):
            try:
                return read_architecture(text)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
    return Genotype.load(source)


def _compared(source: str) -> Any | None:
    """Return the architecture that PATH/candidates.json:N names; None for other text."""
    name, _, number = source.rpartition(":")
    path = Path(name)
    if path.name != "candidates.json" or not number.isdecimal():
        return None
    text = read_text(path)
    try:
        listed = [json.dumps(one["architecture"]) for one in parse_json(text)["candidates"]]
        found = read_architecture(listed[int(number)]) if int(number) < len(listed) else None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no list of compared architectures: {error}") from None
    if found is None:
        raise ValueError(f"{path} has the architectures 0..{len(listed) - 1}; got {number}")
    return found
