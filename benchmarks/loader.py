"""Images a second of streams against torchvision's ImageFolder with DataLoader: `python -m benchmarks.loader`.

Both read the same 500x375 JPEGs with as many worker processes. torchvision decodes, crops to 224x224, flips, converts
to float and normalises in the workers, as its ImageNet examples do; with `jitter` it also changes colours, as DARTS'
training does. Our workers decode and resize to 256x256 bytes; `augmented` adds crop, flip, colours and normalisation of
whole batches in the parent, which a GPU does in a real training. The runs take turns, so that a busy machine slows all
alike; medians are printed.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms

from benchmarks.machine import environment
from fastdarts.data import BatchStream, Streaming, open_images
from fastdarts.data.augment_imagenet import ImageNetAugment

Batches = Iterator[Any]
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def write_jpegs(folder: Path, count: int) -> None:
    """Write pictures of smooth colours and noise, of about the 70 kB that such photographs take at quality 90."""
    for number in range(count):
        rng = np.random.default_rng(number)
        corners = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
        smooth = np.asarray(corners.resize((500, 375), Image.Resampling.BICUBIC)).astype(int)
        path = folder / "train" / f"class{number % 10}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noisy = smooth + rng.integers(-12, 13, smooth.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def torchvisions(folder: Path, batch: int, workers: int, jitter: bool) -> Batches:
    steps = [
        transforms.RandomResizedCrop(224),
        transforms.RandomHorizontalFlip(),
        *([transforms.ColorJitter(0.4, 0.4, 0.4, 0.2)] if jitter else []),
        transforms.ToTensor(),
        transforms.Normalize(_MEAN, _STD),
    ]
    images = torchvision.datasets.ImageFolder(str(folder / "train"), transforms.Compose(steps))
    loader: DataLoader[Any] = DataLoader(
        images, batch, shuffle=True, num_workers=workers, persistent_workers=True, drop_last=True
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))


def ours(folder: Path, batch: int, workers: int, augment: Callable[[Tensor], Tensor]) -> Batches:
    images = open_images("imagefolder", folder, image_size=(256, 256), streaming=Streaming("always", workers))
    stream = BatchStream(images, batch, seed=0, drop_last=True)
    while True:
        pixels, targets = stream.next()
        yield augment(pixels), targets


def images_a_second(batches: Batches, batch: int, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        next(batches)
    return batch * count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    augment = ImageNetAugment(_MEAN, _STD, (256, 256))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_jpegs(folder, given.images)
        runs = {
            "torchvision": torchvisions(folder, given.batch, given.workers, jitter=False),
            "torchvision, jitter": torchvisions(folder, given.batch, given.workers, jitter=True),
            "streamed": ours(folder, given.batch, given.workers, lambda images: images),
            "streamed, augmented": ours(folder, given.batch, given.workers, augment),
        }
        found: dict[str, list[float]] = {what: [] for what in runs}
        for _ in range(given.rounds):
            for what, batches in runs.items():
                images_a_second(batches, given.batch, 5)  # what waited while the others ran
                found[what].append(images_a_second(batches, given.batch, 8))
    rates = {what: round(statistics.median(values[1:]), 1) for what, values in found.items()}
    print(
        json.dumps({**environment(torch.device("cpu")), "workers": given.workers, "images_a_second": rates}, indent=2)
    )


if __name__ == "__main__":
    main()
