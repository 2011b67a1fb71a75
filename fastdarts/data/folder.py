"""A folder of image files, a subfolder per class, decoded in parallel into one tensor."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastdarts.data import walk
from fastdarts.data.formats import open_image, suffixes
from fastdarts.data.memory import Budget, available_bytes, check_room
from fastdarts.data.pixels import (
    FULL_RANGE,
    GreyRange,
    deep_sample,
    is_deep,
    is_grey,
    pixels,
    range_of,
    turned,
    upright_size,
)

Item = TypeVar("Item")
Result = TypeVar("Result")

_PARTS = frozenset({"test", "train", "training", "val", "valid", "validation"})
_DEEP_FILES = 500  # of which the range of 16-bit values is taken
_BYTES_A_PIXEL = 8  # while an image is decoded, converted and resized


class FolderImages(NamedTuple):
    """Hold the result of `load_folder`.

    Attributes:
        images: [N, C, H, W] uint8.
        targets: class indices [N].
        classes: their names.
        grey_range: of the values of 16-bit images, None where all have 8.
        line: what was read and passed over, in words.
    """

    images: Tensor
    targets: Tensor
    classes: tuple[str, ...]
    grey_range: GreyRange | None
    line: str


class _Header(NamedTuple):
    size: tuple[int, int]
    grey: bool
    deep: bool
    jpeg: bool


def has_test_part(data_dir: Path) -> bool:
    """False for a folder that holds the classes themselves, or whose training part is alone."""
    return (data_dir / "train").is_dir() and (data_dir / "test").is_dir()


def load_folder(
    data_dir: Path,
    split: Literal["train", "test"],
    image_size: tuple[int, int] | None,
    test_portion: float = 0.0,
    grey_range: GreyRange | None = None,
) -> FolderImages:
    """Read the images in `data_dir/<split>/<class>/**`.

    A `data_dir` without a folder `train` holds the classes itself. Classes and files are in the order of their names.
    Links are followed, each folder is read once; hidden files and folders, those of tools and files that are no images
    (by suffix) are passed over. C is 1 when every file is grey and else 3; EXIF's orientation is applied; transparency
    is laid over white; 16-bit grey keeps its range (see `range_of`); of an animation the first frame is taken. All
    files must have one size, or are resized to `image_size` (H, W).

    Args:
        test_portion: where there is no test part, the share of each class's files, drawn with a fixed seed, that is
            one; at least one file of each class is in each part.
        grey_range: of 16-bit values, as the training part has it; left out, that of these images.

    Raises: FileNotFoundError for a missing folder; MemoryError before decoding when they do not fit; ValueError for no
        classes, a folder beside the classes that is named like a part of the data, a class without images, a test class
        that training does not have, sizes that differ, and, naming the file, one that cannot be read.
    """
    if not data_dir.is_dir():
        raise FileNotFoundError(f"image folder {data_dir} does not exist or is no folder")
    train_dir = data_dir / "train" if (data_dir / "train").is_dir() else data_dir
    divided = test_portion > 0 and not has_test_part(data_dir)
    folder = train_dir if split == "train" or divided else data_dir / "test"
    if not folder.is_dir() or (split == "test" and not divided and train_dir == data_dir):
        raise FileNotFoundError(
            f"{data_dir} has no test images: put them into {data_dir}/test/<class>/ and the others "
            f"into {data_dir}/train/<class>/, or set a part of the images aside with test_portion"
        )
    passed = walk.Passed()
    classes = tuple(walk.class_folders(train_dir, passed if folder == train_dir else walk.Passed()))
    if train_dir == data_dir and (parts := [name for name in classes if name.lower() in _PARTS]):
        raise ValueError(
            f"{data_dir} has a folder {parts[0]} but no folder train: training images belong into "
            f"{data_dir}/train/<class>/ and test images into {data_dir}/test/<class>/"
        )
    found = walk.class_folders(folder, walk.Passed() if folder == train_dir else passed)
    unknown = sorted(set(found) - set(classes))
    if unknown:
        raise ValueError(f"{folder} has classes that {train_dir} does not have: {', '.join(unknown)}")
    members = {name: _images_in(path, passed) for name, path in found.items()}
    walk.check_one_class(members)
    if divided:
        members = {name: _part(paths, name, test_portion, split) for name, paths in members.items()}
    files = [path for paths in members.values() for path in paths]
    labels = torch.tensor([classes.index(name) for name, paths in members.items() for _ in paths])
    images, grey_range = _decode(files, image_size, grey_range)
    aside = f" ({test_portion:.0%} of each class, drawn with a fixed seed, are the test part)" if divided else ""
    line = f"{walk.printable(str(folder))}: {len(files):,} files in {len(found)} classes{aside}{passed.words()}"
    return FolderImages(images, labels, classes, grey_range, line)


def _images_in(folder: Path, passed: walk.Passed) -> list[Path]:
    files = walk.image_files(folder, passed)
    if not files:
        raise ValueError(f"class folder {folder} holds no image ({' '.join(sorted(suffixes()))})")
    return files


def _part(files: Sequence[Path], name: str, test_portion: float, split: str) -> list[Path]:
    """Return the files of a class that are in one part."""
    if len(files) < 2:
        raise ValueError(f"class {name} has one image; a test portion needs one or more in each part")
    order = np.random.default_rng(0).permutation(len(files))
    test = set(order[: min(max(round(test_portion * len(files)), 1), len(files) - 1)].tolist())
    return [path for index, path in enumerate(files) if (index in test) == (split == "test")]


def _decode(
    files: Sequence[Path], size: tuple[int, int] | None, grey_range: GreyRange | None
) -> tuple[Tensor, GreyRange | None]:
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as pool:
        headers = _map(pool, _header, files)  # first, so that a wrong size is told before minutes of decoding
        first = headers[0].size
        for path, header in zip(files, headers, strict=True):
            if size is None and header.size != first:
                raise ValueError(
                    f"images must have one size unless image_size is given: {path} is "
                    f"{header.size[0]}x{header.size[1]}, {files[0]} is {first[0]}x{first[1]} (height x width)"
                )
        grey = all(header.grey for header in headers)
        shape = (1 if grey else 3, *(size or first))
        check_room(len(files), shape)
        images = np.empty((len(files), *shape), np.uint8)
        budget = Budget(max(available_bytes() / 4, 2.0**26))
        deep = [index for index, header in enumerate(headers) if header.deep]
        if deep and grey_range is None:
            some = deep[:: len(deep) // _DEEP_FILES + 1]

            def sample(index: int) -> np.ndarray:
                with budget.part(_bytes_of(headers[index], None)):
                    return open_image(files[index], deep_sample)

            grey_range = range_of(_map(pool, sample, some))

        def decode(index: int) -> None:
            with budget.part(_bytes_of(headers[index], size)):
                images[index] = open_image(files[index], _decoder(grey, size, grey_range or FULL_RANGE))

        _map(pool, decode, range(len(files)))
    return torch.from_numpy(images), grey_range


def _header(path: Path) -> _Header:
    return open_image(path, lambda im: _Header(upright_size(im), is_grey(im), is_deep(im), im.format == "JPEG"))


def _decoder(grey: bool, size: tuple[int, int] | None, grey_range: GreyRange) -> Callable[[Image.Image], np.ndarray]:
    def decode(image: Image.Image) -> np.ndarray:
        if size is not None:  # a large JPEG is decoded at a fraction of its size
            sides = size if upright_size(image) == (image.height, image.width) else size[::-1]
            image.draft(None, (2 * sides[1], 2 * sides[0]))
        return pixels(turned(image), grey, size, grey_range)

    return decode


def _bytes_of(header: _Header, size: tuple[int, int] | None) -> float:
    """Estimate the memory that decoding takes."""
    scale = 1
    if size is not None and header.jpeg:
        scale = max(min(whole // (2 * part) for whole, part in zip(header.size, size, strict=True)), 1)
        scale = 1 << (min(scale, 8).bit_length() - 1)
    return _BYTES_A_PIXEL * header.size[0] * header.size[1] / scale**2


def _map(pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """In order and in chunks; of several errors the first item's is raised, and chunks not begun are dropped."""
    chunks = [items[start : start + 256] for start in range(0, len(items), 256)]
    futures = [pool.submit(lambda chunk: [function(item) for item in chunk], chunk) for chunk in chunks]
    try:
        return [result for future in futures for result in future.result()]
    finally:
        for future in futures:
            future.cancel()
