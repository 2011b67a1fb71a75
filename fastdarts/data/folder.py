"""A folder of image files, a subfolder per class, decoded in parallel into one tensor."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastdarts.data.decoding import Decoder
from fastdarts.data.files import Files
from fastdarts.data.images import ImageData, ImageSet, channel_statistics, check_alike
from fastdarts.data.listing import Listing
from fastdarts.data.memory import Budget, available_bytes, check_room, usable_cpus
from fastdarts.data.pixels import FULL_RANGE, GreyRange, deep_sample, is_deep, is_grey, range_of, upright_size

Item = TypeVar("Item")
Result = TypeVar("Result")

_DEEP_FILES = 500  # of which the range of 16-bit values is taken
_BYTES_A_PIXEL = 8  # while an image is decoded, converted and resized


class Header(NamedTuple):
    """Hold what an image file's header tells: (H, W) of the upright image, and its kind."""

    size: tuple[int, int]
    grey: bool
    deep: bool
    jpeg: bool


def decode_all(listing: Listing, image_size: tuple[int, int] | None, train: ImageSet | None = None) -> ImageData:
    """Decode all images of a part into memory.

    C is 1 when every file is grey and else 3; EXIF's orientation is applied; transparency is laid over white; 16-bit
    grey keeps its range (see `range_of`); of an animation the first frame is taken. All files must have one size, or
    are resized to `image_size` (H, W).

    Args:
        listing: the part.
        image_size: (H, W), or None.
        train: for a test part the training part, whose mean, std and range of 16-bit values it takes.

    Raises: MemoryError before decoding when they do not fit; ValueError for sizes that differ, and, naming the file,
        one that cannot be read.
    """
    images, grey_range = _decode(listing.files, image_size, train.grey_range if train is not None else None)
    if train is None:
        mean, std = channel_statistics(images)
    else:
        if train.shape[0] == 3 and images.shape[1] == 1:  # a folder of grey images beside a coloured one
            images = images.expand(-1, 3, -1, -1).contiguous()
        check_alike(images, train)
        mean, std = train.mean, train.std
    return ImageData(images, listing.targets, listing.classes, mean, std, grey_range=grey_range)


def _decode(
    files: Files, size: tuple[int, int] | None, grey_range: GreyRange | None
) -> tuple[Tensor, GreyRange | None]:
    with ThreadPoolExecutor(usable_cpus()) as pool:
        # headers first, so that a wrong size is told before minutes of decoding
        headers = _map(pool, lambda index: header_of(files, index), range(len(files)))
        first = headers[0].size
        for index, header in enumerate(headers):
            if size is None and header.size != first:
                raise ValueError(
                    f"images must have one size unless image_size is given: {files.name(index)} is "
                    f"{header.size[0]}x{header.size[1]}, {files.name(0)} is {first[0]}x{first[1]} (height x width)"
                )
        grey = all(header.grey for header in headers)
        shape = (1 if grey else 3, *(size or first))
        check_room(len(files), shape)
        images = torch.empty((len(files), *shape), dtype=torch.uint8)
        budget = Budget(max(available_bytes() / 4, 2.0**26))
        deep = [index for index, header in enumerate(headers) if header.deep]
        if deep and grey_range is None:
            some = deep[:: len(deep) // _DEEP_FILES + 1]

            def sample(index: int) -> np.ndarray:
                with budget.part(_bytes_of(headers[index], None)):
                    return files.read(index, deep_sample)

            grey_range = range_of(_map(pool, sample, some))
        decoder = Decoder(grey, size, grey_range or FULL_RANGE)

        def decode(index: int) -> None:
            with budget.part(_bytes_of(headers[index], size)):
                images[index] = files.read(index, decoder)

        _map(pool, decode, range(len(files)))
    return images, grey_range


def header_of(files: Files, index: int) -> Header:
    """Read the header of an image file. Raises: as `open_image`."""
    return files.read(index, lambda im: Header(upright_size(im), is_grey(im), is_deep(im), im.format == "JPEG"))


def _bytes_of(header: Header, size: tuple[int, int] | None) -> float:
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
