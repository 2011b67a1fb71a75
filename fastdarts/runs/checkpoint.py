"""Checkpoints: all that a run needs to go on as if it had never stopped, tensors and plain values in one file."""

import errno
import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdarts.config.files import write_atomically
from fastdarts.config.plain import plain
from fastdarts.runs import inert_pickle

VERSION = 1


def save(path: Path, kind: str, state: Mapping[str, Any]) -> None:
    """Write state atomically.

    Args:
        path: the file.
        kind: what it is a checkpoint of, "search" or "evaluation"; `load` refuses another kind.
        state: tensors and values that `plain` can convert, so that `torch.load(weights_only=True)` accepts them.

    Raises: TypeError that names a value that could not be read again; DiskFullError, OSError (see `write_atomically`).
    """
    state = plain(state, kind, keep=(Tensor,))
    buffer = io.BytesIO()  # torch's zip writer reports a full disk as an error of its own; ours names the file
    torch.save({"fastdarts": kind, "version": VERSION, **state}, buffer)
    write_atomically(path, buffer.getvalue())


def load(path: Path, kind: str) -> dict[str, Any]:
    """Read what `save` wrote, on the CPU.

    Raises: FileNotFoundError when there is none; ValueError when the file is damaged or not a checkpoint of this kind.
    """
    state = _read(path)
    found = state.get("fastdarts") if isinstance(state, dict) else None
    if found != kind:
        what = f"a checkpoint of {found!r}" if isinstance(found, str) else "not a checkpoint of fastdarts"
        raise ValueError(f"checkpoint {path} is {what}; wanted one of {kind!r}")
    if state.get("version") != VERSION:
        raise ValueError(f"checkpoint {path} has format {state.get('version')}; this release reads format {VERSION}")
    return state


def read_any(path: Path) -> tuple[Any, bool]:
    """Read a file that torch saved, also one with objects of other code, of which nothing is made or run.

    Returns: what it holds, on the CPU, and True if other objects are in it (see `inert_pickle`).

    Raises: FileNotFoundError when there is none; ValueError when the file is damaged.
    """
    try:
        return _read(path), False
    except _ForeignObjectsError as error:
        try:
            with warnings.catch_warnings(action="ignore"):  # torch misses the source code of the unknown classes
                return torch.load(path, map_location="cpu", weights_only=False, pickle_module=inert_pickle), True
        except Exception as second:  # whatever a pickle can do wrong
            raise ValueError(f"{error}; {_first_line(second)}") from second


class _ForeignObjectsError(ValueError):
    """A file has more in it than tensors and plain values."""


def _read(path: Path) -> Any:
    if not path.is_file():
        if path.exists():
            raise ValueError(f"checkpoint {path} is no regular file")
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        if zipfile.is_zipfile(path):  # torch does not check the sums; before 1.6 it wrote no archives
            with zipfile.ZipFile(path) as archive:
                _check_archive(path, archive)
                damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"bad checksum of {damaged}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, *_DAMAGE) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # torch seeks before a short file
            raise
        # Torch's own words for a pickle end in the advice to run whatever code is in it.
        foreign = isinstance(error, pickle.UnpicklingError) and _FOREIGN.search(str(error)) is not None
        reason = "it holds other Python objects than tensors" if foreign else _first_line(error)
        if isinstance(error, pickle.UnpicklingError) and not foreign:
            reason = "no tensors saved by torch"
        kind = _ForeignObjectsError if foreign else ValueError
        raise kind(f"checkpoint {path} is damaged or not a checkpoint ({reason})") from error


_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Exceptions of torch for contents that it did not write."""
_FOREIGN = re.compile("GLOBAL|Can only (create new|build)")  # in torch's messages about other objects


def _check_archive(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse an archive that would grow when it is read: torch stores its records as they are."""
    records = archive.infolist()
    packed = [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise zipfile.BadZipFile(f"{packed[0]} is compressed, which torch never does")
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise zipfile.BadZipFile("its records are larger than the file")
    if any(record.filename.endswith("constants.pkl") for record in records):
        raise zipfile.BadZipFile("it is a TorchScript program, not weights")


def random_state(device: torch.device | None = None) -> dict[str, Any]:
    """Return the states of torch's global generators, of the CPU and of CUDA device `device` (None: of all)."""
    if device is None:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    else:
        cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: Mapping[str, Any], device: torch.device | None = None) -> None:
    """Restore what `random_state` returned; CUDA's only if there are as many devices."""
    torch.set_rng_state(state["cpu"])
    if device is not None:
        if device.type == "cuda" and len(state["cuda"]) == 1:
            torch.cuda.set_rng_state(state["cuda"][0], device)
        return
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
