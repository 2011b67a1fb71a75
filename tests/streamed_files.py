"""Small image folders and tar shards for tests of streams."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int, height: int = 20, width: int = 26) -> Image.Image:
    """Make a coloured picture of its own for each number: smooth, with noise."""
    rng = np.random.default_rng(number)
    smooth = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    noisy = np.asarray(smooth).astype(int) + rng.integers(-9, 10, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def write_folder(folder: Path, count: int, classes: int = 3, test: int = 0) -> Path:
    """Write train/<class>/<number>.jpg, and `test` images more into test/."""
    for number in range(count + test):
        part = folder / ("train" if number < count else "test") / f"class{number % classes}"
        part.mkdir(parents=True, exist_ok=True)
        picture(number).save(part / f"{number:06d}.jpg", quality=88)
    return folder


def write_shards(folder: Path, count: int, shards: int = 2, classes: int = 3) -> Path:
    """Write train/<shard>.tar with samples <number>.jpg and <number>.cls, as webdataset does."""
    (folder / "train").mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with tarfile.open(folder / "train" / f"{shard:04d}.tar", "w") as archive:
            for number in range(shard, count, shards):
                encoded = io.BytesIO()
                picture(number).save(encoded, "JPEG", quality=88)
                for name, content in (("jpg", encoded.getvalue()), ("cls", str(number % classes).encode())):
                    info = tarfile.TarInfo(f"{number:06d}.{name}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return folder
