"""pyproject.toml: every library that the package imports is declared, and what an extra brings is imported late."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from fastdarts.cli import main

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = ("tensorboard", "export", "completion", "dask", "evolution")  # those that users choose


def names_of(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=\[ ]", requirement)[0].lower() for requirement in requirements}


def imports_of(path: Path) -> dict[str, bool]:
    """Return the libraries that a file imports, and whether it does when it is imported itself."""
    tree = ast.parse(path.read_text())
    early = {id(node) for node in tree.body}
    found: dict[str, bool] = {}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [str(node.module)]
        for name in {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"fastdarts"}:
            found[name] = found.get(name, False) or id(node) in early
    return found


@pytest.mark.parametrize("folder", ["fastdarts", "kernels"])
def test_imported_libraries_are_declared(folder: str) -> None:
    distributions = packages_distributions()
    required = names_of(PROJECT["dependencies"])
    optional = required.union(*(names_of(PROJECT["optional-dependencies"][extra]) for extra in EXTRAS))
    for path in sorted((ROOT / folder).rglob("*.py")):
        for library, early in imports_of(path).items():
            if library == "triton":  # comes with torch where there are GPUs
                continue
            owners = {name.lower() for name in distributions.get(library, [library])}
            assert owners & (required if early else optional), f"{path.name} imports {library}: not in pyproject.toml"


def test_extras_are_named_in_messages() -> None:
    text = "".join(path.read_text() for path in (ROOT / "fastdarts").rglob("*.py"))
    for extra in EXTRAS:
        assert f"pip install 'fastdarts[{extra}]'" in text


def test_the_command_is_the_front_door() -> None:
    assert PROJECT["scripts"] == {"fastdarts": f"{main.__module__}:{main.__name__}"}
