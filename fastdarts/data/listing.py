"""Find the encoded images of one part of a data set: class folders, or tar shards."""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastdarts.data import shards, walk
from fastdarts.data.files import Files, PathFiles
from fastdarts.data.formats import suffixes

_PARTS = frozenset({"test", "train", "training", "val", "valid", "validation"})


class Listing(NamedTuple):
    """Hold the images of a part before any is decoded.

    Attributes:
        files: the encoded images.
        targets: class indices [N].
        classes: their names.
        place: the folder.
        passed: what was passed over, in words.
        aside: what was set aside, in words.
    """

    files: Files
    targets: Tensor
    classes: tuple[str, ...]
    place: str
    passed: str = ""
    aside: str = ""

    def subset(self, indices: Tensor) -> "Listing":
        """Return the listing of the images at `indices`."""
        return self._replace(files=self.files.subset(indices.numpy()), targets=self.targets[indices])

    @property
    def line(self) -> str:
        """Return what was found and passed over, in words."""
        classes = len(self.targets.unique())
        return f"{self.place}: {len(self.files):,} files in {classes} classes{self.aside}{self.passed}"


def test_folder(data_dir: Path) -> Path | None:
    """Return the folder of the test part: `test`, or where there is none `val`, as ImageNet's is called.

    None for a folder that holds the classes themselves, or whose training part is alone. ImageNet's validation images
    in one folder, without their classes, are no part.
    """
    if not (data_dir / "train").is_dir():
        return None
    if (data_dir / "test").is_dir():
        return data_dir / "test"
    named = [data_dir / name for name in ("val", "valid", "validation") if (data_dir / name).is_dir()]
    return next((path for path in named if any(f.is_dir() or f.suffix == ".tar" for f in path.iterdir())), None)


def list_images(data_dir: Path, split: Literal["train", "test"], test_portion: float = 0.0) -> Listing:
    """Find the images in `data_dir/<split>/<class>/**` or `data_dir/<split>/*.tar`; a test part may be called `val`.

    A `data_dir` without a folder `train` holds the classes or the shards itself. Classes and files are in the order of
    their names. Links are followed, each folder is read once; hidden files and folders, those of tools and files that
    are no images (by suffix) are passed over. For shards see `shards.read_index`.

    Args:
        data_dir: the folder.
        split: the part.
        test_portion: where there is no test part, the share of each class's images, drawn with a fixed seed, that is
            one; at least one image of each class is in each part.

    Raises: FileNotFoundError for a missing folder; ValueError for no classes, a folder beside the classes that is named
        like a part of the data, a class without images, a test class that training does not have, or damaged shards.
    """
    if not data_dir.is_dir():
        raise FileNotFoundError(f"image folder {data_dir} does not exist or is no folder")
    train_dir = data_dir / "train" if (data_dir / "train").is_dir() else data_dir
    test_dir = test_folder(data_dir)
    divided = test_portion > 0 and test_dir is None
    folder = train_dir if split == "train" or divided else test_dir
    if folder is None:
        raise FileNotFoundError(
            f"{data_dir} has no test images: put them into {data_dir}/test/<class>/ and the others "
            f"into {data_dir}/train/<class>/, or set a part of the images aside with test_portion"
        )
    found = _in_shards(folder, train_dir) if shards.shards_in(train_dir) else _in_folders(folder, train_dir, data_dir)
    return _part(found, test_portion, split) if divided else found


def _in_folders(folder: Path, train_dir: Path, data_dir: Path) -> Listing:
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
    files = PathFiles([path for paths in members.values() for path in paths])
    counts = torch.tensor([len(paths) for paths in members.values()])
    targets = torch.tensor([classes.index(name) for name in members]).repeat_interleave(counts)
    return Listing(files, targets, classes, walk.printable(str(folder)), passed.words())


def _images_in(folder: Path, passed: walk.Passed) -> list[Path]:
    files = walk.image_files(folder, passed)
    if not files:
        raise ValueError(f"class folder {folder} holds no image ({' '.join(sorted(suffixes()))})")
    return files


def _in_shards(folder: Path, train_dir: Path) -> Listing:
    found = shards.shards_in(folder)
    if not found:
        raise ValueError(f"{folder} holds no tar file, and {train_dir} does; both parts are kept in one form")
    files, targets = shards.read_index(found)
    classes = shards.class_names(train_dir, int(targets.max()) + 1)
    return Listing(files, targets, classes, f"{walk.printable(str(folder))}, {len(found):,} tar files")


def _part(found: Listing, test_portion: float, split: str) -> Listing:
    """Return the images that are in one part of a data set that is not divided."""
    labels = found.targets.numpy()
    test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise ValueError(
                f"class {found.classes[label]} has one image; a test portion needs one or more in each part"
            )
        order = np.random.default_rng(0).permutation(len(members))
        test[members[order[: min(max(round(test_portion * len(members)), 1), len(members) - 1)]]] = True
    chosen = np.flatnonzero(test == (split == "test"))
    return found._replace(
        files=found.files.subset(chosen),
        targets=found.targets[torch.from_numpy(chosen)],
        aside=f" ({test_portion:.0%} of each class, drawn with a fixed seed, are the test part)",
    )
