"""One process at a time in a run's folder."""

import contextvars
import errno
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from fastdarts.config.files import remove_temporary_files

NAME = ".lock"

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_HALF_WRITTEN = 5.0  # seconds after which an empty lock is one whose writer died

_held: contextvars.ContextVar[ExitStack | None] = contextvars.ContextVar("held", default=None)


class FolderInUseError(ValueError):
    """Another process works in the folder; the message says which, and what to do."""


def releases_folders(run: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Release the folders that `hold` has locked inside a call when the call ends."""

    @wraps(run)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with ExitStack() as stack:
            token = _held.set(stack)
            try:
                return run(*args, **kwargs)
            finally:
                _held.reset(token)

    return call


def hold(folder: Path) -> None:
    """Lock a folder until the surrounding call of a `releases_folders` function ends.

    Raises: FolderInUseError.
    """
    stack = _held.get()
    assert stack is not None, "hold() is for functions with @releases_folders"
    stack.enter_context(locked(folder))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock file, which names this process; one of a process that has died is taken over.

    Raises: FolderInUseError while another process, on this machine or another, holds it.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    ours = json.dumps(this_process())
    while not _create(path, ours):
        _take_over(path)
    try:
        remove_temporary_files(folder)  # no living process has any here
        yield
    finally:
        with suppress(OSError):
            if path.read_text() == ours and json.loads(ours)["pid"] == os.getpid():
                path.unlink()
            if made:
                folder.rmdir()  # of a run that was refused before it wrote anything


def check_free(folder: Path) -> None:
    """Raise FolderInUseError if a living process holds the folder; change nothing."""
    path = folder / NAME
    with suppress(OSError):
        _refuse_living(path, _read(path))


def _create(path: Path, content: str) -> bool:
    """Make the file; False if there is one."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(path, flags, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as file:
        file.write(content)
    return True


def _take_over(path: Path) -> None:
    """Remove a dead process's lock file, of several processes that try it one at a time.

    Raises: FolderInUseError for a living one's.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise FolderInUseError(f"{path} is a link, not the lock of a run; remove it") from None
    with os.fdopen(descriptor) as file:
        _wait_for(file.fileno())
        with suppress(FileNotFoundError):
            here, there = os.fstat(file.fileno()), path.lstat()
            if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):  # else another process was first
                _refuse_living(path, _read(path))
                path.unlink()


def _wait_for(descriptor: int) -> None:
    """Wait until no other process takes the same lock over, where the file system can tell."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except (ImportError, OSError):
        pass


def _read(path: Path) -> dict[str, Any] | None:
    """Return what a lock file says; None for one whose writer died while it wrote."""
    for _ in range(20):
        try:
            value = json.loads(path.read_text())
        except ValueError:
            value = None
        if isinstance(value, dict):
            return value
        if time.time() - path.stat().st_mtime > _HALF_WRITTEN:
            return None
        time.sleep(0.05)
    raise FolderInUseError(f"{path.parent} is just being taken by another process; choose another folder")


def _refuse_living(path: Path, owner: dict[str, Any] | None) -> None:
    if owner is None:
        return
    ours, pid, host = this_process(), owner.get("pid"), owner.get("host")
    words = f"{path.parent} is in use by process {pid} on {host} since {owner.get('since')}"
    if host != ours["host"] or (owner.get("boot") == ours["boot"] and owner.get("namespace") != ours["namespace"]):
        raise FolderInUseError(f"{words}; choose another folder, or if that process is gone, remove {path}")
    if owner.get("boot") != ours["boot"] or not isinstance(pid, int) or started(pid) != owner.get("started"):
        return  # the machine, or another process of that number, has started since
    raise FolderInUseError(f"{words}; choose another folder or wait for its end")


def this_process() -> dict[str, Any]:
    """Return what tells this process from all others, on this machine and on others."""
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "started": started(os.getpid()),
        "boot": _text("/proc/sys/kernel/random/boot_id"),
        "namespace": _link("/proc/self/ns/pid"),
        "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
    }


def started(pid: int) -> str | None:
    """Return when a process started, as its system counts; None for one that is dead or waits to be buried."""
    text = _text(f"/proc/{pid}/stat")
    if text is None:
        if Path("/proc/self/stat").exists():
            return None
        return _living(pid)
    fields = text.rpartition(")")[2].split()  # the name before may hold anything
    return None if fields[0] in "ZXx" else fields[19]


def _living(pid: int) -> str | None:
    """Return a word for a living process on systems without /proc."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "living"


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
