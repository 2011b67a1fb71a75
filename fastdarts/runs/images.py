"""Images given from Python, and the number of outputs they ask for."""

from dataclasses import replace
from typing import Any

from torch.utils.data import Dataset

from fastdarts import data
from fastdarts.data import ImageData
from fastdarts.data.rows import Rows
from fastdarts.data.targets import Loss, settled

Images = ImageData | Dataset[Any] | Rows


def read_images(images: Images, loss: Loss | None) -> ImageData:
    """Images given from Python, with targets as the loss (None: cross entropy) reads them."""
    return settled(images if isinstance(images, ImageData) else data.from_dataset(images), loss)


def read_second_images(name: str, images: Images, train: ImageData, loss: Loss | None) -> ImageData:
    """Images given from Python beside `train`, whose statistics they take; ValueError where they are not alike."""
    try:
        second = images if isinstance(images, ImageData) else data.from_dataset(images, train=train)
        second = settled(second, loss, train)
        if (second.targets.dim(), train.targets.dim()) == (1, 2) and train.targets.shape[1] == 1:
            second = replace(second, targets=second.targets[:, None])  # too few of them told how the loss reads them
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error
    ours, theirs = (
        f"images {list(part.images.shape[1:])} and targets {list(part.targets.shape[1:])}" for part in (second, train)
    )
    if ours != theirs:
        raise ValueError(f"{name} must be like train, {theirs}; got {ours}")
    if len(second.classes) > len(train.classes):
        raise ValueError(f"{name} has {len(second.classes)} classes, train has {len(train.classes)}")
    return second


def outputs_for(data: ImageData) -> int:
    """Return the number of outputs that the network needs: one a class, or as many as a target has numbers.

    ValueError for one class, with which every answer is right.
    """
    if len(data.classes) == 1:
        raise ValueError(
            f"the images are all of one class, {data.classes[0]}: there is nothing to learn (if that is no class, an "
            "image folder's `data` is one folder too high)"
        )
    return len(data.classes) or (data.targets.shape[1] if data.targets.dim() > 1 else 1)
