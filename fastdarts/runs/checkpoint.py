"""Checkpoints: all that a run needs to go on as if it had never stopped, tensors and plain values in one file."""

import errno
import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdarts.config.files import write_atomically
from fastdarts.config.plain import plain

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
    if state["version"] != VERSION:
        raise ValueError(f"checkpoint {path} has format {state['version']}; this release reads format {VERSION}")
    return state


def load_weights(path: Path) -> dict[str, Tensor]:
    """A network's state_dict, on the CPU: of one of our checkpoints, or saved alone (as the original code does), or
    under the key "state_dict".

    Raises: FileNotFoundError when there is none; ValueError when the file is damaged or holds no state_dict.
    """
    state = _read(path)
    for key in ("network", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"checkpoint {path} holds no state_dict of a network")
    return dict(state)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        if zipfile.is_zipfile(path):  # torch does not check the sums; before 1.6 it wrote no archives
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"bad checksum of {damaged}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # torch seeks before a short file
            raise
        # Torch's own words for a pickle end in the advice to run whatever code is in it.
        reason = "no tensors saved by torch" if isinstance(error, pickle.UnpicklingError) else _first_line(error)
        raise ValueError(f"checkpoint {path} is damaged or not a checkpoint ({reason})") from error


def random_state() -> dict[str, Any]:
    """The states of torch's global generators, CPU and CUDA."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
