"""Images given from Python, and the number of outputs they ask for."""

from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import Dataset

from fastdarts import data
from fastdarts.data import ImageData, ImageSet, StreamedImages, Streaming
from fastdarts.data.memory import available_bytes
from fastdarts.data.rows import Rows
from fastdarts.data.targets import Loss, settled

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation, as everywhere

Images = ImageData | StreamedImages | Dataset[Any] | Rows


def read_images(images: Images, loss: Loss | None) -> ImageSet:
    """Images given from Python, with targets as the loss (None: cross entropy) reads them."""
    if isinstance(images, StreamedImages):
        return images
    return settled(images if isinstance(images, ImageData) else data.from_dataset(images), loss)


def read_second_images(name: str, images: Images, train: ImageSet, loss: Loss | None) -> ImageSet:
    """Images given from Python beside `train`, whose statistics they take; ValueError where they are not alike."""
    second = images if isinstance(images, StreamedImages) else _read_second(name, images, train, loss)
    ours, theirs = (f"images {list(part.shape)} and targets {list(part.targets.shape[1:])}" for part in (second, train))
    if ours != theirs:
        raise ValueError(f"{name} must be like train, {theirs}; got {ours}")
    if len(second.classes) > len(train.classes):
        raise ValueError(f"{name} has {len(second.classes)} classes, train has {len(train.classes)}")
    return second


def _read_second(name: str, images: Any, train: ImageSet, loss: Loss | None) -> ImageData:
    try:
        second = images if isinstance(images, ImageData) else data.from_dataset(images, train=train)
        second = settled(second, loss, train)
        if (second.targets.dim(), train.targets.dim()) == (1, 2) and train.targets.shape[1] == 1:
            second = replace(second, targets=second.targets[:, None])  # too few of them told how the loss reads them
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error
    return second


def open_images(config: Any, split: data.Split, device: torch.device, train: ImageSet | None = None) -> ImageSet:
    """Open a part of the data set that a config names; see `data.open_images`.

    Args:
        config: a SearchConfig or EvalConfig.
        split: the part.
        device: of the run; images stay in memory if they fit into half of its free memory, too.
        train: for the test part the training part.
    """
    room = available_bytes() / 2
    if device.type == "cuda":
        room = min(room, torch.cuda.mem_get_info(device)[0] / 2)
    images = data.open_images(
        "imagefolder" if config.dataset == "imagenet" else config.dataset,
        config.data,
        split,
        config.image_size,
        train=train,
        test_portion=config.test_portion,
        streaming=Streaming(config.stream, config.workers, room),
    )
    return images.with_statistics(*_IMAGENET) if config.dataset == "imagenet" else images


def outputs_for(data: ImageSet) -> int:
    """Return the number of outputs that the network needs: one a class, or as many as a target has numbers.

    ValueError for one class, with which every answer is right.
    """
    if len(data.classes) == 1:
        raise ValueError(
            f"the images are all of one class, {data.classes[0]}: there is nothing to learn (if that is no class, an "
            "image folder's `data` is one folder too high)"
        )
    return len(data.classes) or (data.targets.shape[1] if data.targets.dim() > 1 else 1)
