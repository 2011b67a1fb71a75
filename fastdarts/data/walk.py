"""The image files below class folders: links are followed once, hidden and tools' folders passed over."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fastdarts.data.formats import suffixes

_TOOLS = frozenset({"@eadir", "__macosx", "__pycache__", "#recycle", "$recycle.bin", "lost+found"})
_TOOLS_FILES = frozenset({"thumbs.db", "desktop.ini"})

Identity = tuple[int, int]


class Passed:
    """Count the files that were passed over, by reason."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()

    def note(self, reason: str) -> None:
        self.reasons[reason] += 1

    def words(self) -> str:
        """Return "3 passed over (2 hidden, 1 not an image)", or nothing."""
        parts = [f"{count} {reason}" for reason, count in self.reasons.most_common()]
        return f"; {self.reasons.total()} passed over ({', '.join(parts)})" if parts else ""


def class_folders(folder: Path, passed: Passed) -> dict[str, Path]:
    """Return the class folders in a folder by their names, in order; a name that is not UTF-8 is escaped.

    Raises: ValueError when there is none, or when two are one folder.
    """
    above = {_identity(path) for path in (folder.absolute(), *folder.absolute().parents)}
    found: dict[str, Path] = {}
    seen: dict[Identity, str] = {}
    for path in sorted(folder.iterdir()):
        if not path.is_dir():
            continue
        reason = _reason(path.name)
        if reason is None and _identity(path.resolve()) in above:
            reason = "linked to a folder above"
        if reason is not None:
            passed.note(reason)
            continue
        name = printable(path.name)
        if (other := seen.setdefault(_identity(path), name)) != name:
            raise ValueError(f"class folders {other} and {name} of {folder} are one folder, linked; remove one of them")
        found[name] = path
    if not found:
        raise ValueError(f"{folder} holds no class folders; wanted {folder}/<class>/<image files>")
    return found


def image_files(folder: Path, passed: Passed) -> list[Path]:
    """Return the image files (by suffix) below a folder, in the order of their names."""
    return sorted(_walk(folder, (_identity(folder),), {_identity(folder)}, passed))


def check_one_class(files: dict[str, list[Path]]) -> None:
    """Raise ValueError if one file is, by links, in two classes."""
    seen: dict[Identity, tuple[str, Path]] = {}
    for name, paths in files.items():
        for path in paths:
            other, first = seen.setdefault(_identity(path), (name, path))
            if other != name:
                raise ValueError(f"{path} is the same file as {first}, linked: one image cannot be of two classes")


def printable(name: str) -> str:
    """Return a file's name with what is not UTF-8 escaped, so that it can be printed and written."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _walk(folder: Path, trail: tuple[Identity, ...], seen: set[Identity], passed: Passed) -> Iterator[Path]:
    for path in folder.iterdir():
        reason = _reason(path.name)
        if path.is_dir():
            identity = _identity(path)
            if reason is None and identity in trail:
                reason = "linked to a folder above"
            elif reason is None and identity in seen:
                reason = "linked to a folder read already"
            if reason is None:
                seen.add(identity)
                yield from _walk(path, (*trail, identity), seen, passed)
                continue
        elif reason is None and path.suffix.lower() not in suffixes():
            reason = "not an image"
        elif reason is None and not path.is_file():
            reason = "a broken link" if path.is_symlink() else "no regular file"
        if reason is None:
            yield path
        else:
            passed.note(reason)


def _reason(name: str) -> str | None:
    """Return why a name is passed over, whatever it holds."""
    if name.startswith("."):
        return "hidden"
    lower = name.lower()
    return "of a tool" if lower in _TOOLS or lower in _TOOLS_FILES else None


def _identity(path: Path) -> Identity:
    found = path.stat()
    return found.st_dev, found.st_ino
