"""A search of a second or two: 48 images of 6x6 whose brightness tells their class."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fastdarts.data import ImageData
from fastdarts.runs.search_config import SearchConfig


def tiny_images() -> ImageData:
    labels = torch.arange(48) % 3
    noise = torch.randint(0, 80, (48, 1, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageData(
        noise + (80 * labels[:, None, None, None]).byte(), labels, ("dark", "grey", "light"), (0.5,), (0.3,)
    )


def tiny_config(out: Path, **fields: Any) -> SearchConfig:
    """Three steps an epoch."""
    small = {"epochs": 2, "batch_size": 9, "init_channels": 2, "layers": 1, "order": 1, "lr": 0.05, "arch_lr": 0.03}
    return SearchConfig(**({"dataset": "custom", "out": out, "device": "cpu", "crop_padding": 1} | small | fields))


def write_classes(folder: Path) -> None:
    """Write 30 images of 8x8, in a folder for each of three classes of different brightness."""
    rng = np.random.default_rng(0)
    for label in range(3):
        (folder / f"c{label}").mkdir(parents=True)
        for index in range(10):
            pixels = rng.integers(80 * label, 80 * label + 80, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"c{label}" / f"{index}.png")
