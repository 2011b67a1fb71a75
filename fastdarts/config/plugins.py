"""Modules of the user's that register ops, spaces or methods of their own."""

import importlib
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

FLAG = "--plugin"
_loaded: list[str] = []


def load_plugins(argv: Sequence[str]) -> None:
    """Import the modules that a command line names with --plugin, also from the working folder.

    A run's files never name plugins: what they hold is not executed.

    Raises: ValueError that names the module that cannot be imported.
    """
    for name in plugins_of(argv):
        if str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ValueError(f"plugin {name!r} cannot be imported: {error}") from error
        if name not in _loaded:
            _loaded.append(name)


def plugins_of(argv: Sequence[str]) -> list[str]:
    """Return the modules that a command line names."""
    words = list(argv)
    named = [word.partition("=")[2] for word in words if word.startswith(f"{FLAG}=")]
    return named + [after for word, after in itertools.pairwise(words) if word == FLAG]


def plugin_flags() -> list[str]:
    """Return the flags that load the same plugins in another process."""
    return [word for name in _loaded for word in (FLAG, name)]
