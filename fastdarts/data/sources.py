"""The data sets known by name: scikit-learn's digits, torchvision's, and a folder of images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fastdarts.config.importing import importing
from fastdarts.data.folder import decode_all
from fastdarts.data.images import ImageData, ImageSet, channel_statistics, check_alike
from fastdarts.data.listing import list_images

Split = Literal["train", "test"]

# torchvision class, and the files it wants inside the data folder
_TORCHVISION = {
    "mnist": ("MNIST", "MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"),
    "fashionmnist": ("FashionMNIST", "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py/{data_batch_1..5,test_batch,batches.meta}"),
    "cifar100": ("CIFAR100", "cifar-100-python/{train,test,meta}"),
    "svhn": ("SVHN", "{train,test}_32x32.mat"),
}
DATASETS = ("digits", *_TORCHVISION, "imagefolder")

_CIFAR10_MEAN = (0.49139968, 0.48215827, 0.44653124)  # those of the original code
_CIFAR10_STD = (0.24703233, 0.24348505, 0.26158768)


def load(
    dataset: str,
    data_dir: Path | None = None,
    split: Split = "train",
    image_size: tuple[int, int] | None = None,
    *,
    train: ImageSet | None = None,
    test_portion: float = 0.0,
) -> ImageData:
    """Read one part of a data set into memory, as uint8.

    Args:
        dataset: one of DATASETS.
        data_dir: the folder with the data (not for digits): torchvision's standard layout, downloaded when missing and
            possible; for imagefolder `train/<class>/*` and `test/<class>/*`, or `<class>/*` alone (see `list_images`).
        split: "train" or "test". Of digits, every fifth image of each class is a test image.
        image_size: (H, W) in pixels; every image is resized to it (bilinear, antialiased; the aspect ratio may change).
        train: for a test part, the training part if it is in memory already; else it is read too. The test images take
            its mean and std and must have its shape.
        test_portion: of an image folder without a test part, the share of each class that is set aside as one; the
            same images for both splits.

    Mean and std are the published ones for cifar10 and those of the training images for the others.

    Raises: ValueError for a name, split or size that is not allowed and for images that cannot be used;
        FileNotFoundError, saying which files go where, when the data are missing.
    """
    check_source(dataset, data_dir, split, image_size)
    folder = Path() if data_dir is None else Path(data_dir)
    if split == "test" and train is None:
        train = load(dataset, data_dir, "train", image_size, test_portion=test_portion)
    if dataset == "imagefolder":
        listing = list_images(folder, split, test_portion)
        decoded = decode_all(listing, image_size, train)
        print(listing.line, flush=True)
        return decoded
    images, targets, classes = _read(dataset, folder, split, image_size)
    if train is not None:
        check_alike(images, train)
        mean, std = train.mean, train.std
    else:
        mean, std = (_CIFAR10_MEAN, _CIFAR10_STD) if dataset == "cifar10" else channel_statistics(images)
    return ImageData(images, targets, classes, mean, std, published_order=dataset in _TORCHVISION)


def check_source(dataset: str, data_dir: Path | None, split: str, image_size: tuple[int, int] | None) -> None:
    """Raise a ValueError for arguments of `load` that are not allowed."""
    if dataset not in DATASETS:
        raise ValueError(f"dataset must be one of {', '.join(DATASETS)}; got {dataset!r}")
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test'; got {split!r}")
    if image_size is not None and (len(image_size) != 2 or min(image_size) < 1):
        raise ValueError(f"image_size must be (height, width), both at least 1; got {image_size}")
    if dataset != "digits" and data_dir is None:
        raise ValueError(f"data set {dataset} needs data_dir (--data DIR), the folder it is in")


def _read(
    dataset: str, data_dir: Path, split: Split, image_size: tuple[int, int] | None
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    images, targets, classes = _digits(split) if dataset == "digits" else _torchvision(dataset, data_dir, split)
    if image_size is not None and image_size != images.shape[2:]:
        images = torch.nn.functional.interpolate(images, image_size, mode="bilinear", antialias=True)
    return images, targets, classes


def _digits(split: Split) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    with importing("scikit-learn"):
        from sklearn.datasets import load_digits  # here, because importing scikit-learn takes a second

    digits = load_digits()
    rank = np.zeros(len(digits.target), np.int64)  # of an image within its class
    for label in range(10):
        members = digits.target == label
        rank[members] = np.arange(members.sum())
    part = (rank % 5 == 4) == (split == "test")
    images = (digits.images[part] * 15).astype(np.uint8)  # 0..16 in the file
    return torch.from_numpy(images)[:, None], torch.from_numpy(digits.target[part]).long(), tuple(map(str, range(10)))


def _torchvision(name: str, data_dir: Path, split: Split) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    with importing("torchvision"):
        import torchvision  # here, because importing it takes a second

    class_name, files = _TORCHVISION[name]
    maker = getattr(torchvision.datasets, class_name)
    part = {"split": split} if name == "svhn" else {"train": split == "train"}
    dataset = _make(maker, name, data_dir, files, part)
    images = torch.as_tensor(dataset.data)
    if name in ("cifar10", "cifar100"):
        images = images.permute(0, 3, 1, 2)
    elif images.dim() == 3:
        images = images[:, None]
    targets = torch.as_tensor(dataset.labels if name == "svhn" else dataset.targets).long()
    classes = tuple(map(str, getattr(dataset, "classes", range(10))))
    return images.contiguous(), targets, classes


def _make(maker: Callable[..., Any], name: str, data_dir: Path, files: str, part: dict[str, Any]) -> Any:
    try:
        return maker(data_dir, download=False, **part)
    except Exception:  # missing, or damaged, for which torchvision raises many kinds
        try:
            return maker(data_dir, download=True, **part)
        except Exception as error:
            raise FileNotFoundError(
                f"data set {name} is missing or damaged in {data_dir}: put {files} there "
                f"(torchvision says: {' '.join(str(error).split())})"
            ) from error
