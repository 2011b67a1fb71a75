"""Files that are either whole or not there at all."""

import errno
import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO


class DiskFullError(OSError):
    """No room was left to write a file; the message names the file."""


def write_atomically(path: str | os.PathLike[str], content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Replace the file at path in one move: whoever reads it, even after a crash, sees the old file or the new one.

    Each call writes a temporary file of its own, so that two processes never make a file of both. A link stays a link
    and its target is replaced; the file keeps its mode.

    Args:
        path: the file; its folder is made when it is missing.
        content: text (written as UTF-8; what has no UTF-8, as of an odd file name, is escaped), bytes, or a function
            that writes to the open binary file it is given.

    Raises: DiskFullError when the disk or the quota is full (the old file stays); OSError for other refusals, among
        them a path that is a pipe, a device or a folder.
    """
    path = Path(path)
    try:
        _make_folder(path.parent)
        target, mode = _target(path)
        temporary = target.with_name(temporary_name(target.name))
        # O_EXCL: never a file, link or pipe that is there already.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(temporary, flags, 0o666 if mode is None else 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                if mode is not None:
                    os.fchmod(file.fileno(), mode)
                if callable(content):
                    content(file)
                else:
                    file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)
    except OSError as error:
        raise_if_full(error, path)
        raise


_TEMPORARY = ".fastdarts-tmp"


def temporary_name(name: str) -> str:
    """Return a new name for the temporary file of a file."""
    return f".{name[:100]}.{os.getpid()}-{secrets.token_hex(6)}{_TEMPORARY}"


def remove_temporary_files(folder: Path) -> None:
    """Remove what killed writers have left in a folder that no other process writes into."""
    for path in folder.glob(f".*{_TEMPORARY}"):
        with suppress(OSError):
            path.unlink()


def raise_if_full(error: OSError, path: str | os.PathLike[str]) -> None:
    """Turn "no space left" into a DiskFullError that names the file; do nothing for other errors."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise DiskFullError(f"the disk is full: {path} could not be written; free some space and resume") from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None


def _target(path: Path) -> tuple[Path, int | None]:
    """Return the file behind all links and its mode, None if there is none yet."""
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    try:
        found = target.lstat()
    except FileNotFoundError:
        return target, None
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFLNK: "a link to itself"}
        kind = kinds.get(stat.S_IFMT(found.st_mode), "no regular file")
        raise OSError(errno.EINVAL, f"cannot be written, it is {kind}", str(path))
    return target, stat.S_IMODE(found.st_mode)


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
