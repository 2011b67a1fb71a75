"""The package's rooms: imports point one way, and no file imports another in a circle."""

import ast
from pathlib import Path

import fastdarts

ROOT = Path(fastdarts.__file__).parent
ROOMS = (  # from the top: a room may import its own files and those of rooms below it
    "programs",
    "report",
    "runs",
    "methods",
    "spaces",
    "bilevel",
    "tasks",
    "data",
    "mixed",
    "ops",
    "primitives",
    "config",
)


def modules() -> dict[str, Path]:
    """Return the path of each Python file of the package by its module name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ("fastdarts", *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path, known: dict[str, Path]) -> set[str]:
    """Return the package's modules that a file imports anywhere in it, also inside functions or for types only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else str(node.module) for name in names]
        found |= {name for name in names if name in known}
    return found


def room_of(module: str) -> str:
    """Return the room of a module; files that lie in no folder are programs."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "programs"


def test_every_folder_is_a_room() -> None:
    folders = {path.parent.relative_to(ROOT).parts[0] for path in ROOT.rglob("*.py") if path.parent != ROOT}
    assert folders <= set(ROOMS), f"folders without a place in the order of rooms: {folders - set(ROOMS)}"


def test_imports_point_down() -> None:
    known = modules()
    wrong = [
        f"{module} imports {target}"
        for module, path in known.items()
        for target in sorted(imports_of(path, known))
        if ROOMS.index(room_of(target)) < ROOMS.index(room_of(module))
    ]
    assert not wrong, "\n".join(wrong)


def test_no_circles() -> None:
    known = modules()
    graph = {module: imports_of(path, known) - {module} for module, path in known.items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"imports in a circle: {' -> '.join((*trail, module))}"
        if module not in done:
            for target in sorted(graph[module]):
                visit(target, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())
