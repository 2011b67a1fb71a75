"""The version of fastdarts: pyproject.toml's, as installed or as read from a checkout."""

import tomllib
from importlib import metadata
from pathlib import Path

_UNKNOWN = "0+unknown"


def find_version(checkout: Path) -> str:
    """Return the installed version, or the one in the pyproject.toml of a checkout that was never installed."""
    try:
        return metadata.version("fastdarts")
    except metadata.PackageNotFoundError:
        pass
    try:
        project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except (OSError, ValueError, KeyError):
        return _UNKNOWN
    return str(project["version"]) if project.get("name") == "fastdarts" else _UNKNOWN


__version__ = find_version(Path(__file__).resolve().parents[2])
