"""Open the images of a run: in memory where they fit, else streamed from their files."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from fastdarts.data.folder import decode_all, header_of
from fastdarts.data.images import ImageData, ImageSet, in_order, statistics_of, value_counts
from fastdarts.data.listing import Listing, list_images
from fastdarts.data.memory import available_bytes, usable_cpus
from fastdarts.data.pixels import deep_sample, range_of
from fastdarts.data.sources import Split, check_source, load
from fastdarts.data.streamed import StreamedImages

When = Literal["auto", "always", "never"]

_SAMPLE = 2000  # images of which a stream's mean and standard deviation, and its range of 16-bit values, are taken
_MOST_WORKERS = 16
_BATCH = 64  # images of the sample that are decoded at a time


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
) -> ImageData | StreamedImages:
    """Open one part of a data set; print in one line what it holds, and where the images are kept.

    Streamed images have the mean and standard deviation of a seeded sample of 2,000.

    Args:
        dataset, data_dir, split, image_size, test_portion: as of `load`; an `imagefolder` may hold tar shards.
        train: for a test part the training part, opened already.
        streaming: which images are streamed.

    Raises: those of `load`.
    """
    check_source(dataset, data_dir, split, image_size)
    if dataset != "imagefolder" or data_dir is None:
        return load(dataset, data_dir, split, image_size, train=train, test_portion=test_portion)
    listing = list_images(Path(data_dir), split, test_portion)
    needed, limit = _decoded_bytes(listing, image_size), streaming.limit()
    if streaming.when == "never" or (streaming.when == "auto" and needed <= limit):
        images: ImageData | StreamedImages = decode_all(listing, image_size, train)
        how = f"in memory, {needed / 2**30:.2f} GiB"
    else:
        images = _stream(listing, image_size, train, streaming.workers)
        reason = f"{limit / 2**30:.2f} GiB are for images" if needed > limit else "as asked"
        how = f"streamed by {images.workers} processes ({needed / 2**30:.2f} GiB decoded; {reason})"
    print(f"{listing.line}; {how}", flush=True)
    return images


def _decoded_bytes(listing: Listing, image_size: tuple[int, int] | None) -> int:
    """Return the size of all images once decoded, assumed coloured and, without `image_size`, of the first's size."""
    size = image_size or header_of(listing.files, 0).size
    return len(listing.files) * 3 * math.prod(size)


def _stream(
    listing: Listing, image_size: tuple[int, int] | None, train: ImageSet | None, workers: int | None
) -> StreamedImages:
    files = listing.files
    coloured = any(not header_of(files, index).grey for index in range(len(files)))  # ends at the first one
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
    chosen = np.sort(np.random.default_rng(0).permutation(len(files))[:_SAMPLE])
    deep = [index for index in chosen.tolist() if header_of(files, index).deep]
    if deep:
        images = replace(images, grey_range=range_of([files.read(index, deep_sample) for index in deep]))
    sample = images.subset(torch.from_numpy(chosen))
    mean, std = statistics_of(torch.stack([value_counts(batch) for batch, _ in in_order(sample, _BATCH)]).sum(0))
    return images.with_statistics(mean, std)
