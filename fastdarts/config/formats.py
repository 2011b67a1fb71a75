"""Config files: JSON, TOML and YAML, read as one table of names and values."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastdarts.config.reading import parse_json, parse_toml, read_text


def read_values(path: Path) -> dict[str, Any]:
    """Read the values of a .json, .toml, .yaml or .yml file; dashes in their names become underscores.

    Raises: FileNotFoundError, or ValueError that names the file and says what is wrong with it.
    """
    if path.suffix not in _PARSERS:
        raise ValueError(f"config: {path} must end in {', '.join(_PARSERS)}")
    try:
        text = read_text(path)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"config: {error}") from None
    try:
        values = _PARSERS[path.suffix](text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"config: {path} is not readable as {_NAMES[path.suffix]}: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"config: {path} must hold one table of names and values")
    return {name.replace("-", "_"): value for name, value in values.items()}


def _parse_yaml(text: str) -> Any:
    import yaml  # takes 20 ms, and most runs read no file

    class Loader(yaml.SafeLoader):
        """Reads 1e-3 as a number, as YAML 1.2 and Python do; PyYAML follows YAML 1.1, which wants 1.0e-3."""

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


_PARSERS: Mapping[str, Callable[[str], Any]] = {
    ".json": parse_json,
    ".toml": parse_toml,
    ".yaml": _parse_yaml,
    ".yml": _parse_yaml,
}
_NAMES = {".json": "JSON", ".toml": "TOML", ".yaml": "YAML", ".yml": "YAML"}
