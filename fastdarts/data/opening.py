"""Open the images of a run: in memory where they fit, else streamed from their files."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from fastdarts.data.files import Files
from fastdarts.data.folder import decode_all, grey_range_of, header_of
from fastdarts.data.images import ImageData, ImageSet, at_most, in_order, statistics_of, value_counts
from fastdarts.data.listing import Listing, list_images
from fastdarts.data.memory import available_bytes, usable_cpus
from fastdarts.data.sources import Split, check_source, load
from fastdarts.data.streamed import StreamedImages

When = Literal["auto", "always", "never"]
Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel."""

_MOST_WORKERS = 16
_BATCH = 64  # images that are decoded at a time to count their values


@dataclass(frozen=True)
class Streaming:
    """Decide which images are streamed.

    Attributes:
        when: "auto" streams an image folder whose decoded images would take more than `room`.
        workers: processes that decode, for each stream of batches; None for one a usable CPU, at most 16.
        room: bytes that decoded images may take; None for half of the free memory.
    """

    when: When = "auto"
    workers: int | None = None
    room: float | None = None

    def limit(self) -> float:
        """Return the bytes that decoded images may take."""
        return available_bytes() / 2 if self.room is None else self.room


def open_images(
    dataset: str,
    data_dir: Path | None = None,
    split: Split = "train",
    image_size: tuple[int, int] | None = None,
    *,
    train: ImageSet | None = None,
    test_portion: float = 0.0,
    streaming: Streaming = Streaming(),
    statistics: Statistics | None = None,
    limit: int | None = None,
) -> ImageData | StreamedImages:
    """Open one part of a data set; print in one line what it holds, and where the images are kept.

    For their mean and standard deviation streamed training images are all decoded once, unless `statistics` are given.

    Args:
        dataset, data_dir, split, image_size, test_portion: as of `load`; an `imagefolder` may hold tar shards.
        train: for a test part the training part, opened already.
        streaming: which images are streamed.
        statistics: mean and standard deviation of an image folder, instead of those of its training images.
        limit: about so many images, the same share of each class; others of a folder are not decoded. None for all.

    Raises: those of `load`.
    """
    check_source(dataset, data_dir, split, image_size)
    if dataset != "imagefolder" or data_dir is None:
        return at_most(load(dataset, data_dir, split, image_size, train=train, test_portion=test_portion), limit)
    listing = at_most(list_images(Path(data_dir), split, test_portion), limit)
    needed, room = _decoded_bytes(listing, image_size), streaming.limit()
    if streaming.when == "never" or (streaming.when == "auto" and needed <= room):
        images: ImageData | StreamedImages = decode_all(listing, image_size, train)
        images = images if statistics is None else images.with_statistics(*statistics)
        how = f"in memory, {needed / 2**30:.2f} GiB"
    else:
        images = _stream(listing, image_size, train if train is not None else statistics, streaming.workers)
        reason = f"{room / 2**30:.2f} GiB are for images" if needed > room else "as asked"
        how = f"streamed by {images.workers} processes ({needed / 2**30:.2f} GiB decoded; {reason})"
    print(f"{listing.line}; {how}", flush=True)
    return images


def _decoded_bytes(listing: Listing, image_size: tuple[int, int] | None) -> int:
    """Return the size of all images once decoded, assumed coloured and, without `image_size`, of the first's size."""
    size = image_size or header_of(listing.files, 0).size
    return len(listing.files) * 3 * math.prod(size)


def _stream(
    listing: Listing, image_size: tuple[int, int] | None, alike: ImageSet | Statistics | None, workers: int | None
) -> StreamedImages:
    files = listing.files
    train = None if isinstance(alike, tuple) else alike
    coloured, deep = _kinds(files)
    if train is not None:
        if coloured and train.shape[0] == 1:
            raise ValueError(f"{listing.place} has coloured images, and all training images are grey")
        coloured = train.shape[0] == 3
    images = StreamedImages(
        files=files,
        targets=listing.targets,
        classes=listing.classes,
        mean=(),
        std=(),
        shape=(3 if coloured else 1, *(image_size or header_of(files, 0).size)),
        resize=image_size is not None,
        workers=workers or min(usable_cpus(), _MOST_WORKERS),
    )
    if train is not None:
        if images.shape != train.shape:
            raise ValueError(f"{listing.place} has images {images.shape}, the training images are {train.shape}")
        return replace(images, mean=train.mean, std=train.std, grey_range=train.grey_range)
    if deep:
        images = replace(images, grey_range=grey_range_of(files, deep))
    if isinstance(alike, tuple):
        return images.with_statistics(*alike)
    counts = sum((value_counts(batch) for batch, _ in in_order(images, _BATCH)), torch.zeros((), dtype=torch.int64))
    return images.with_statistics(*statistics_of(counts))


def _kinds(files: Files) -> tuple[bool, list[int]]:
    """Return True if an image is coloured, and which have 16 bits, of those before the first coloured one."""
    deep: list[int] = []
    for index in range(len(files)):
        header = header_of(files, index)
        if not header.grey:
            return True, deep
        if header.deep:
            deep.append(index)
    return False, deep
