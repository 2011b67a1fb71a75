"""Encoded images by number: files of a folder, or members of tar shards."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastdarts.data.formats import open_image

Result = TypeVar("Result")
Numbers = NDArray[np.int64]


class Files(Protocol):
    """Encoded images in an order, which processes may read side by side."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> Path:
        """Return the file's name for messages."""
        ...

    def read(self, index: int, use: Callable[[Image.Image], Result]) -> Result:
        """Open an image and give it to `use`. Raises: as `open_image`."""
        ...

    def subset(self, indices: Numbers) -> "Files":
        """Return the files at `indices`, in their order."""
        ...


class PathFiles:
    """Files by their paths, kept as one array of bytes: a million Python objects would be copied into every process.

    Args:
        paths: the files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        names = [os.fsencode(path) for path in paths]
        self._names = np.frombuffer(b"".join(names), np.uint8)
        self._ends = np.cumsum([0, *map(len, names)], dtype=np.int64)
        self._rows: Numbers = np.arange(len(names))

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> Path:
        row = self._rows[index]
        return Path(os.fsdecode(self._names[self._ends[row] : self._ends[row + 1]].tobytes()))

    def read(self, index: int, use: Callable[[Image.Image], Result]) -> Result:
        return open_image(self.name(index), use)

    def subset(self, indices: Numbers) -> "PathFiles":
        part = PathFiles([])
        part._names, part._ends, part._rows = self._names, self._ends, self._rows[indices]
        return part
