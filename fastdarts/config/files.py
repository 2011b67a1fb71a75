"""Files that are either whole or not there at all."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


class DiskFullError(OSError):
    """No room was left to write a file; the message names the file."""


def write_atomically(path: str | os.PathLike[str], content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Replace the file at path in one move: whoever reads it, even after a crash, sees the old file or the new one.

    Args:
        path: the file; its folder is made when it is missing.
        content: text (written as UTF-8), bytes, or a function that writes to the open binary file it is given.

    Raises: DiskFullError when the disk or the quota is full (the old file stays); OSError for other refusals.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")  # one name a file: the next write clears what a killed one left
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise_if_full(error, path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def raise_if_full(error: OSError, path: str | os.PathLike[str]) -> None:
    """Turn "no space left" into a DiskFullError that names the file; do nothing for other errors."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise DiskFullError(f"the disk is full: {path} could not be written; free some space and resume") from error


def _sync_folder(folder: Path) -> None:
    """Make the move itself survive a power cut (where the system lets a folder be opened)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
