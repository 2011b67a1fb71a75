"""Search on images listed in a table: a row has an image file and two numbers to predict from it.

    python examples/own_data_frame.py

With pandas, `rows = pandas.read_csv(table).to_dict("records")` gives the same list of dicts.
"""

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.utils.data import Dataset

from fastdarts.search import SearchConfig, search


class Table(Dataset[tuple[Image.Image, Tensor]]):
    """Read the image of a row when it is asked for; `search` asks once for each."""

    def __init__(self, path: Path) -> None:
        self.folder = path.parent
        with path.open(newline="") as file:
            self.rows = list(csv.DictReader(file))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Image.Image, Tensor]:
        row = self.rows[index]
        return Image.open(self.folder / row["file"]), torch.tensor([float(row["x"]), float(row["y"])])


def write_table(folder: Path, count: int) -> Path:
    """Write grey images of a bright spot and a table of the spots' places in 0..1."""
    rng, path = np.random.default_rng(0), folder / "spots.csv"
    rows, columns = np.mgrid[:12, :16]
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "x", "y"])
        for index, (x, y) in enumerate(rng.random((count, 2))):
            spot = 255 * np.exp(-((columns - 15 * x) ** 2 + (rows - 11 * y) ** 2) / 4)
            Image.fromarray(spot.astype(np.uint8)).save(folder / f"{index}.png")
            table.writerow([f"{index}.png", x, y])
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    small = {"init_channels": 4, "layers": 3, "batch_size": 32, "order": 1, "crop_padding": 0, "flip": False}
    with tempfile.TemporaryDirectory() as folder:
        images = Table(write_table(Path(folder), given.images))
        config = SearchConfig(dataset="custom", epochs=given.epochs, out=given.out, lr=0.05, **small)
        result = search(config, train=images, loss=mse_loss)
    print(result.genotype)
    print("validation loss by epoch:", ", ".join(f"{metrics['valid_loss']:.4f}" for metrics in result.metrics))
