"""Define ImageData, which every source of images returns, and split it into the two halves of a search."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fastdarts.data.pixels import GreyRange


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

    def to(self, device: torch.device | str) -> "ImageData":
        return replace(self, images=self.images.to(device), targets=self.targets.to(device))

    def subset(self, indices: Tensor) -> "ImageData":
        """Return the images at `indices` ([M] int64), with the classes, mean and std of the whole data set."""
        indices = indices.to(self.images.device)
        return replace(self, images=self.images[indices], targets=self.targets[indices])


def check_alike(images: Tensor, train: ImageData) -> None:
    """Raise a ValueError unless `images` have the dtype and shape of the training images `train`."""
    ours, theirs = (f"{part.dtype} {list(part.shape[1:])} (C, H, W)" for part in (images, train.images))
    if ours != theirs:
        raise ValueError(f"these images are {ours}, the training images {theirs}; they must be alike")


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and (population) standard deviation of each channel of uint8 images [N, C, H, W] scaled to 0..1.

    Both are computed from the 256 counts and exact up to float64 rounding. A constant channel gets standard deviation
    1.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).double()
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ values
    std = (share * (values - mean[:, None]) ** 2).sum(1).sqrt()
    return tuple(mean.tolist()), tuple(torch.where(std > 0, std, 1.0).tolist())


def split(data: ImageData, train_portion: float, seed: int = 0) -> tuple[ImageData, ImageData]:
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


def _draw_per_class(data: ImageData, portion: float, rng: np.random.Generator) -> np.ndarray:
    labels = data.targets.cpu().numpy() if data.classes else np.zeros(len(data), np.int64)
    chosen = np.zeros(len(data), bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            what = f"class {data.classes[label]!r} has" if data.classes else "the data set has"
            raise ValueError(f"{what} 1 image; a search needs one or more in each of its two halves")
        chosen[members[: min(max(round(portion * len(members)), 1), len(members) - 1)]] = True
    return chosen
