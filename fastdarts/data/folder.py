"""A folder of image files, a subfolder per class, decoded in parallel into one tensor."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastdarts.data.pixels import is_grey, pixels

Item = TypeVar("Item")
Result = TypeVar("Result")

_PARTS = frozenset({"test", "train", "training", "val", "valid", "validation"})
_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def load_folder(
    data_dir: Path, split: Literal["train", "test"], image_size: tuple[int, int] | None
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Images [N, C, H, W] uint8, class indices [N] and class names from `data_dir/<split>/<class>/**`.

    A `data_dir` without a folder `train` holds the classes itself and has no test part. Classes and files are in the
    order of their names; other files than images (by suffix) and hidden ones are passed over. C is 1 when every file
    is grey and else 3; transparency is laid over white; of 16-bit grey the upper 8 bits are taken; of an animation the
    first frame. All files must have one size, or are resized to `image_size` (H, W).

    Raises: FileNotFoundError for a missing folder; ValueError for no classes, a folder beside the classes that is named
        like a part of the data, a class without images, a test class that training does not have, sizes that differ,
        and, naming the file, one that cannot be read.
    """
    if not data_dir.is_dir():
        raise FileNotFoundError(f"image folder {data_dir} does not exist or is no folder")
    train_dir = data_dir / "train" if (data_dir / "train").is_dir() else data_dir
    folder = train_dir if split == "train" else data_dir / "test"
    if not folder.is_dir() or (split == "test" and train_dir == data_dir):
        raise FileNotFoundError(
            f"{data_dir} has no test images: put them into {data_dir}/test/<class>/ and the others "
            f"into {data_dir}/train/<class>/"
        )
    classes = _class_names(train_dir)
    if train_dir == data_dir and (parts := [name for name in classes if name.lower() in _PARTS]):
        raise ValueError(
            f"{data_dir} has a folder {parts[0]} but no folder train: training images belong into "
            f"{data_dir}/train/<class>/ and test images into {data_dir}/test/<class>/"
        )
    found = _class_names(folder)
    unknown = sorted(set(found) - set(classes))
    if unknown:
        raise ValueError(f"{folder} has classes that {train_dir} does not have: {', '.join(unknown)}")
    files: list[Path] = []
    labels: list[int] = []
    for name in found:
        members = sorted(path for path in (folder / name).rglob("*") if _is_image(path))
        if not members:
            raise ValueError(f"class folder {folder / name} holds no image ({' '.join(sorted(_SUFFIXES))})")
        files += members
        labels += [classes.index(name)] * len(members)
    return _decode(files, image_size), torch.tensor(labels), classes


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if not names:
        raise ValueError(f"{folder} holds no class folders; wanted {folder}/<class>/<image files>")
    return names


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()


def _decode(files: Sequence[Path], size: tuple[int, int] | None) -> Tensor:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        headers = _map(pool, _header, files)  # first, so that a wrong size is told before minutes of decoding
        first = headers[0][0]
        for path, ((height, width), _) in zip(files, headers, strict=True):
            if size is None and (height, width) != first:
                raise ValueError(
                    f"images must have one size unless image_size is given: {path} is {height}x{width}, "
                    f"{files[0]} is {first[0]}x{first[1]} (height x width)"
                )
        grey = all(grey for _, grey in headers)
        images = np.empty((len(files), 1 if grey else 3, *(size or first)), np.uint8)

        def decode(index: int) -> None:
            images[index] = _open(files[index], partial(_decoded, grey=grey, size=size))

        _map(pool, decode, range(len(files)))
    return torch.from_numpy(images)


def _header(path: Path) -> tuple[tuple[int, int], bool]:
    return _open(path, lambda image: ((image.height, image.width), is_grey(image)))


def _decoded(image: Image.Image, grey: bool, size: tuple[int, int] | None) -> np.ndarray:
    if size is not None:
        image.draft(None, (2 * size[1], 2 * size[0]))  # a large JPEG is decoded at a fraction of its size
    return pixels(image, grey, size)


def _open(path: Path, use: Callable[[Image.Image], Result]) -> Result:
    try:
        with Image.open(path) as image:
            return use(image)
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise ValueError(f"cannot read image {path}: {error}") from error


def _map(pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """In order and in chunks; of several errors the first item's is raised, and chunks not begun are dropped."""
    chunks = [items[start : start + 256] for start in range(0, len(items), 256)]
    futures = [pool.submit(lambda chunk: [function(item) for item in chunk], chunk) for chunk in chunks]
    try:
        return [result for future in futures for result in future.result()]
    finally:
        for future in futures:
            future.cancel()
