"""Search on images listed in a table: each row has an image file and the name of its class.

    python examples/own_data_frame.py

`from_dataset` takes a list of rows, as here, and data frames of pandas and polars.
"""

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from fastdarts.data import from_dataset
from fastdarts.search import SearchConfig, search


def write_table(folder: Path, count: int) -> Path:
    """Write noisy images of a bar and a table of their files and directions."""
    rng, table = np.random.default_rng(0), folder / "bars.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["scan", "direction"])
        for index in range(count):
            image, place = rng.integers(0, 160, (12, 16)), rng.integers(2, 10)
            if index % 2:
                image[place] += 90
            else:
                image[:, place] += 90
            Image.fromarray(image.astype(np.uint8)).save(folder / f"{index}.png")
            rows.writerow([folder / f"{index}.png", "across" if index % 2 else "down"])
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, write_table(Path(folder), given.images).open(newline="") as file:
        rows = list(csv.DictReader(file))
        images = from_dataset(rows, image_column="scan", label_column="direction")
    small = {"init_channels": 4, "layers": 3, "batch_size": 32, "order": 1, "crop_padding": 0, "flip": False}
    result = search(
        SearchConfig(dataset="custom", epochs=given.epochs, out=given.out, lr=0.05, arch_lr=0.03, **small), train=images
    )
    print(result.genotype)
    print("validation accuracy by epoch:", ", ".join(f"{m['valid_accuracy']:.3f}" for m in result.metrics))
