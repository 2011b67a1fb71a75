"""Define ImageSet, the images that a run reads, and ImageData, those in memory; split them into a search's halves."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdarts.data.pixels import GreyRange

_FRACTION = 1  # keeps its draws from those of `split`

Batch = tuple[Tensor, Tensor]
"""Images [B, C, H, W] and their targets [B, ...]."""


class ImageSet(Protocol):
    """Images with targets, in memory (`ImageData`) or decoded when they are needed (`StreamedImages`)."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (C, H, W) of every image."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Return the images' dtype: uint8, or float32 for images that are used unchanged."""
        ...

    @property
    def targets(self) -> Tensor:
        """Return class indices [N], or [N, ...] in any form that the loss takes."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Return a name per class index; empty if the targets are not class indices."""
        ...

    @property
    def mean(self) -> tuple[float, ...]:
        """Return the mean of each channel of the training images scaled to 0..1."""
        ...

    @property
    def std(self) -> tuple[float, ...]:
        """Return their standard deviation."""
        ...

    @property
    def grey_range(self) -> GreyRange | None:
        """Return the values of 16-bit images that were mapped to 0 and 255, if there are such."""
        ...

    @property
    def published_order(self) -> bool:
        """Return True if the order of the images mixes the classes; `split` keeps it."""
        ...

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str) -> Self:
        """Return the same images, whose batches are on `device`."""
        ...

    def subset(self, indices: Tensor) -> Self:
        """Return the images at `indices` ([M] int64), with the classes, mean and std of the whole data set."""
        ...

    def with_statistics(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Self:
        """Return the same images with another mean and standard deviation."""
        ...

    def fetch(self, batches: Iterable[Tensor]) -> Iterator[Batch]:
        """Yield the batch of each tensor of indices, int64 on the CPU; `batches` may be read ahead.

        Raises: ValueError that names an image that cannot be decoded.
        """
        ...


def first_images(images: ImageSet, count: int) -> Batch:
    """Return the first `count` images, or all if there are fewer."""
    return next(images.fetch([torch.arange(min(count, len(images)))]))


def in_order(images: ImageSet, batch_size: int) -> Iterator[Batch]:
    """Yield all images once, in their order; the last batch holds those that are left."""
    return images.fetch(torch.arange(len(images)).split(batch_size))


@dataclass(frozen=True, eq=False)
class ImageData:
    """Hold a whole data set in one tensor.

    Attributes:
        images: [N, C, H, W], uint8 (0..255, normalised when batches are made) or float32 (used unchanged).
        targets: [N] int64 class indices, or [N, ...] in any form that the loss takes (several labels, regression).
        classes: a name per class index; empty if the targets are not class indices.
        mean, std: per channel, of the training images scaled to 0..1; 0 and 1 for float images.
        grey_range: for 16-bit images from folders, the values that were mapped to 0 and 255.
        published_order: True if the images are in the data set's own order, which mixes the classes; `split` keeps it.

    Raises: ValueError or TypeError for parts that do not fit together.
    """

    images: Tensor
    targets: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    published_order: bool = False
    grey_range: GreyRange | None = None

    def __post_init__(self) -> None:
        if self.images.dtype not in (torch.uint8, torch.float32):
            raise TypeError(f"images must be uint8 or float32; got {self.images.dtype}")
        if self.images.dim() != 4 or 0 in self.images.shape:
            raise ValueError(f"images must be [N, C, H, W] and not empty; got {list(self.images.shape)}")
        if self.targets.dim() == 0 or len(self.targets) != len(self.images):
            raise ValueError(
                f"targets must be [{len(self.images)}, ...], one per image; got {list(self.targets.shape)}"
            )
        channels = self.images.shape[1]
        if (len(self.mean), len(self.std)) != (channels, channels) or min(self.std) <= 0:
            raise ValueError(f"mean and std must hold {channels} numbers, std positive; got {self.mean} and {self.std}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def dtype(self) -> torch.dtype:
        return self.images.dtype

    def with_statistics(self, mean: tuple[float, ...], std: tuple[float, ...]) -> "ImageData":
        return replace(self, mean=mean, std=std)

    def fetch(self, batches: Iterable[Tensor]) -> Iterator[Batch]:
        for indices in batches:
            there = indices.to(self.images.device, non_blocking=True)
            yield self.images.index_select(0, there), self.targets.index_select(0, there)

    def to(self, device: torch.device | str) -> "ImageData":
        return replace(self, images=self.images.to(device), targets=self.targets.to(device))

    def subset(self, indices: Tensor) -> "ImageData":
        """Return the images at `indices` ([M] int64), with the classes, mean and std of the whole data set."""
        indices = indices.to(self.images.device)
        return replace(self, images=self.images[indices], targets=self.targets[indices])


def check_alike(images: Tensor, train: ImageSet) -> None:
    """Raise a ValueError unless `images` [N, C, H, W] have the dtype and shape of the training images `train`."""
    kinds = ((images.dtype, images.shape[1:]), (train.dtype, train.shape))
    ours, theirs = (f"{dtype} {list(shape)} (C, H, W)" for dtype, shape in kinds)
    if ours != theirs:
        raise ValueError(f"these images are {ours}, the training images {theirs}; they must be alike")


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and (population) standard deviation of each channel of uint8 images [N, C, H, W] scaled to 0..1.

    Both are computed from the 256 counts and exact up to float64 rounding. A constant channel gets standard deviation
    1.
    """
    return statistics_of(value_counts(images))


def value_counts(images: Tensor) -> Tensor:
    """Return how often each value occurs in each channel of uint8 images [N, C, H, W]: int64 [C, 256]."""
    return torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)])


def statistics_of(counts: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return what `channel_statistics` does, from the results of `value_counts`."""
    counts = counts.double()
    values = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ values
    std = (share * (values - mean[:, None]) ** 2).sum(1).sqrt()
    return tuple(mean.tolist()), tuple(torch.where(std > 0, std, 1.0).tolist())


Images = TypeVar("Images", bound=ImageSet)


class Labelled(Protocol):
    """Images of a data set, or its files before they are decoded."""

    @property
    def targets(self) -> Tensor:
        """Return as of `ImageSet`."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Return as of `ImageSet`."""
        ...

    def subset(self, indices: Tensor) -> Self:
        """Return the images at `indices`."""
        ...


Part = TypeVar("Part", bound=Labelled)


def split(data: Images, train_portion: float, seed: int = 0) -> tuple[Images, Images]:
    """Split `data` into the half that trains the weights and the half that trains the alphas.

    A data set in its published order is cut without shuffling, as in the original code: the first
    floor(train_portion * N) images train the weights. Others (folders and digits are sorted or grouped by class) are
    sampled with `seed`: `train_portion` of each class, rounded, with at least one image of it in each half; without
    class indices, `train_portion` of all images. Both halves keep the order of the data.

    Raises: ValueError for a portion outside (0, 1), an empty half, or a class with only one image.
    """
    if not 0 < train_portion < 1:
        raise ValueError(f"train_portion must be between 0 and 1, both excluded; got {train_portion}")
    count = len(data)
    if data.published_order:
        chosen = np.arange(count) < int(train_portion * count)
    else:
        chosen = _draw_per_class(data, train_portion, np.random.default_rng(seed))
    if chosen.all() or not chosen.any():
        raise ValueError(f"train_portion {train_portion} of {count} images leaves one half empty")
    train, valid = (torch.from_numpy(np.flatnonzero(mask)) for mask in (chosen, ~chosen))
    return data.subset(train), data.subset(valid)


def fraction_of(data: Part, fraction: float, seed: int = 0) -> Part:
    """Return a share of the images of each class, rounded, two at least, sampled with `seed`; without classes, of all.

    They keep the order of the data. Raises: ValueError for a fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1; got {fraction}")
    rng = np.random.default_rng((seed, _FRACTION))
    chosen = [rng.permutation(members)[: max(round(fraction * len(members)), 2)] for members in _members(data)]
    return data.subset(torch.from_numpy(np.sort(np.concatenate(chosen))))


def at_most(data: Part, count: int | None) -> Part:
    """Return about `count` of the images, the same share of each class; all if `count` is None or there are no more."""
    have = len(data.targets)
    return data if count is None or have <= count else fraction_of(data, count / have)


def _members(data: Labelled) -> Iterator[NDArray[np.int64]]:
    """Yield the indices of each class's images; of all in one without classes."""
    labels = data.targets.cpu().numpy() if data.classes else np.zeros(len(data.targets), np.int64)
    for label in np.unique(labels):
        yield np.flatnonzero(labels == label)


def _draw_per_class(data: ImageSet, portion: float, rng: np.random.Generator) -> np.ndarray:
    chosen = np.zeros(len(data), bool)
    for in_class in _members(data):
        members = rng.permutation(in_class)
        if len(members) < 2:
            what = f"class {data.classes[int(data.targets[members[0]])]!r} has" if data.classes else "the data set has"
            raise ValueError(f"{what} 1 image; a search needs one or more in each of its two halves")
        chosen[members[: min(max(round(portion * len(members)), 1), len(members) - 1)]] = True
    return chosen
