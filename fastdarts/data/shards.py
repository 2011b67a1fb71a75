"""Tar files of images and class indices, as `webdataset` writes them, read in any order by an index."""

import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastdarts.data.files import Numbers, Result
from fastdarts.data.formats import open_image, suffixes

_CLASS_FILE = "classes.txt"


class _Member(NamedTuple):
    offset: int
    size: int
    label: int


class ShardFiles:
    """Members of tar files.

    Args:
        shards: the tar files.
        table: [N, 3], the shard, offset and size in bytes of each member.
    """

    def __init__(self, shards: Sequence[Path], table: Numbers) -> None:
        self._shards = tuple(shards)
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def name(self, index: int) -> Path:
        shard, offset, _ = self._table[index]
        return Path(f"{self._shards[shard]}@{offset}")

    def read(self, index: int, use: Callable[[Image.Image], Result]) -> Result:
        shard, offset, size = self._table[index].tolist()
        with self._shards[shard].open("rb") as file:
            file.seek(offset)
            return open_image(self.name(index), use, file.read(size))

    def subset(self, indices: Numbers) -> "ShardFiles":
        return ShardFiles(self._shards, self._table[indices])


def shards_in(folder: Path) -> list[Path]:
    """Return the tar files in a folder, in the order of their names."""
    return sorted(path for path in folder.glob("*.tar") if path.is_file() and not path.name.startswith("."))


def read_index(shards: Sequence[Path]) -> tuple[ShardFiles, Tensor]:
    """Find the images in tar files and their class indices [N].

    A sample is an image beside a member of the same name up to its first dot: `.cls` holds the index as text, `.json`
    an object with `label` or `cls`.

    Raises: ValueError that names the shard and the sample for a damaged file, an image without a class index or with
        two, or when there is no image.
    """
    rows: list[tuple[int, int, int]] = []
    labels: list[int] = []
    for number, shard in enumerate(shards):
        try:
            with tarfile.open(shard, "r:") as archive:
                for member in _samples(shard, archive):
                    rows.append((number, member.offset, member.size))
                    labels.append(member.label)
        except tarfile.TarError as error:
            raise ValueError(f"{shard} is no readable tar file, which must not be compressed: {error}") from error
    if not rows:
        raise ValueError(f"{shards[0].parent}: the tar files hold no image ({' '.join(sorted(suffixes()))})")
    return ShardFiles(shards, np.array(rows, np.int64)), torch.tensor(labels)


def class_names(folder: Path, count: int) -> tuple[str, ...]:
    """Return the classes' names, the lines of `classes.txt` beside the shards, or their indices without that file.

    Raises: ValueError if the file has fewer lines than there are classes.
    """
    path = folder / _CLASS_FILE
    names = path.read_text(encoding="utf-8").splitlines() if path.is_file() else list(map(str, range(count)))
    if len(names) < count:
        raise ValueError(f"{path} names {len(names)} classes; the shards' class indices go up to {count - 1}")
    return tuple(names)


def _samples(shard: Path, archive: tarfile.TarFile) -> Iterator[_Member]:
    """Yield the images of a shard; the members of a sample follow each other."""
    key, image, label = "", None, None
    for info in archive:
        if not info.isfile():
            continue
        path = PurePosixPath(info.name)
        stem, _, extension = path.name.partition(".")
        if str(path.parent / stem) != key:
            if image is not None:
                yield _member(shard, key, image, label)
            key, image, label = str(path.parent / stem), None, None
        extension = extension.lower()
        if f".{extension}" in suffixes():
            if image is not None:
                raise ValueError(f"{shard}: sample {key} has two images")
            image = info
        elif extension in ("cls", "json"):
            label = _label(shard, key, extension, _read(archive, info))
    if image is not None:
        yield _member(shard, key, image, label)


def _member(shard: Path, key: str, image: tarfile.TarInfo, label: int | None) -> _Member:
    if label is None:
        raise ValueError(f"{shard}: sample {key} has no class index; it needs a member {key}.cls or {key}.json")
    return _Member(image.offset_data, image.size, label)


def _read(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(info)
    assert file is not None  # it is None for what is no regular file
    return file.read()


def _label(shard: Path, key: str, extension: str, content: bytes) -> int | None:
    """Return the class index in a member; None for a JSON object that has none."""
    try:
        value = json.loads(content)
    except ValueError:
        value = None
    if extension == "json":
        if not isinstance(value, dict) or not {"label", "cls"} & value.keys():
            return None
        value = value.get("label", value.get("cls"))
    if type(value) is not int or value < 0:
        raise ValueError(f"{shard}: sample {key}: a class index is a whole number from 0; got {content[:40]!r}")
    return value
