"""Anyone's Dataset of (image, target), read once into tensors."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from fastdarts.data.images import ImageData, ImageSet, channel_statistics, check_alike
from fastdarts.data.pixels import is_grey, pixels
from fastdarts.data.rows import Pairs, Rows


def from_dataset(
    dataset: Dataset[Any] | Rows,
    train: ImageSet | None = None,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
) -> ImageData:
    """Read a map-style Dataset of (image, target) pairs, each item once (random transforms are frozen at one draw).

    Args:
        dataset: has a length and takes indices 0..length-1. All images have one shape and kind:
            PIL images (grey gives one channel, others three); numpy arrays [H, W] or [H, W, C] and tensors [H, W] or
            [C, H, W], uint8 or floating. Floats become float32 and are used as they are, neither scaled nor normalised.
            Targets are class indices (ints, from 0) or tensors, arrays or floats of one shape for other losses.
            Texts are class names, in the order of their letters; other names are taken from the attribute `classes`.
            Rows with named columns (mappings, as Hugging Face's data sets give them, and pandas' and polars' data
            frames) are taken too; their images may also be files' paths or contents.
        train: for test data the training data, whose mean, std and class names they take; left out they are those of
            their own.
        image_column, label_column: of rows, where they have no usual names.

    Raises: TypeError or ValueError that names the index of the item at fault.
    """
    pairs = Pairs(dataset, image_column, label_column)
    count = len(pairs)
    if count == 0:
        raise ValueError("the Dataset is empty")
    images = targets = torch.empty(0)
    names: list[str] | None = None
    for index in range(count):
        image, target = _item(pairs, index, names)
        if index == 0 and isinstance(target, str):
            names = []
        if isinstance(target, str):
            assert names is not None  # else `_item` refuses text
            names.append(target)
            target = torch.tensor(0)
        if index == 0:
            images = torch.empty((count, *image.shape), dtype=image.dtype)
            targets = torch.empty((count, *target.shape), dtype=target.dtype)
        for what, value, store in (("image", image, images), ("target", target, targets)):
            if value.shape != store.shape[1:] or value.dtype != store.dtype:
                raise ValueError(
                    f"dataset[{index}]: {what} is {value.dtype} {list(value.shape)}, "
                    f"that of dataset[0] is {store.dtype} {list(store.shape[1:])}; they must be alike"
                )
            store[index] = value
    if train is not None:
        check_alike(images, train)
        mean, std = train.mean, train.std
    elif images.dtype == torch.uint8:
        mean, std = channel_statistics(images)
    else:
        mean, std = (0.0,) * images.shape[1], (1.0,) * images.shape[1]
    if names is not None:
        classes = train.classes if train is not None else pairs.class_names() or tuple(sorted(set(names)))
        return ImageData(images, _indices(names, classes), classes, mean, std)
    return ImageData(images, targets, _class_names(pairs, targets), mean, std)


def _indices(names: list[str], classes: tuple[str, ...]) -> Tensor:
    """Class indices of class names."""
    numbers = {name: number for number, name in enumerate(classes)}
    for index, name in enumerate(names):
        if name not in numbers:
            raise ValueError(f"dataset[{index}]: class {name!r} is none of the training images'; {', '.join(classes)}")
    return torch.tensor([numbers[name] for name in names])


def _item(pairs: Pairs, index: int, names: list[str] | None) -> tuple[Tensor, Tensor | str]:
    try:
        image, target = pairs[index]
        if isinstance(target, str) and (index == 0 or names is not None):
            return _image(image), str(target)
        if names is not None:
            raise TypeError(f"target must be a text as that of dataset[0]; got {type(target).__name__}")
        return _image(image), _target(target)
    except TypeError as error:
        raise TypeError(f"dataset[{index}]: {error}") from error
    except Exception as error:  # whatever the user's code raises
        raise ValueError(f"dataset[{index}]: {error}") from error


def _image(image: Any) -> Tensor:
    if isinstance(image, Image.Image):
        return torch.tensor(pixels(image, is_grey(image)))
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(image.copy())
        image = image.permute(2, 0, 1) if image.dim() == 3 else image
    if not isinstance(image, Tensor):
        raise TypeError(f"image must be a PIL image, numpy array or tensor; got {type(image).__name__}")
    if image.dim() == 2:
        image = image[None]
    if image.dim() != 3:
        raise ValueError(f"image must have 2 or 3 dimensions; got {list(image.shape)}")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise TypeError(f"image must be uint8 or floating; got {image.dtype}")
    return image if image.dtype == torch.uint8 else image.float()


def _target(target: Any) -> Tensor:
    """int64 for a class index; other integer and all floating tensors keep their kind (floating as float32)."""
    try:
        value = torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"target must be an int, float, tensor or array; got {type(target).__name__}") from None
    if value.is_floating_point():
        return value.float()
    if value.dim() == 0:
        if value < 0:
            raise ValueError(f"class index must be at least 0; got {int(value)}")
        return value.long()
    return value


def _class_names(pairs: Pairs, targets: Tensor) -> tuple[str, ...]:
    if targets.is_floating_point() or targets.dim() > 1:
        return ()
    count = int(targets.max()) + 1
    names = pairs.class_names() or range(count)
    if len(names) < count:
        raise ValueError(f"dataset.classes has {len(names)} names, but targets go up to {count - 1}")
    return tuple(map(str, names))
