"""Data sets whose items are rows with names: mappings, data frames, Hugging Face's style."""

import io
from collections import UserList
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from fastdarts.data import from_dataset

PIXELS = np.arange(24, dtype=np.uint8).reshape(4, 6)
IMAGE = Image.fromarray(PIXELS)


def png() -> bytes:
    buffer = io.BytesIO()
    IMAGE.save(buffer, "png")
    return buffer.getvalue()


class HuggingFace(UserList[Any]):
    features: ClassVar = {"image": None, "label": SimpleNamespace(names=["cat", "dog"])}


@pytest.mark.parametrize("image", [IMAGE, PIXELS, {"bytes": png(), "path": None}, png()], ids=type)
def test_dict_rows(image: Any) -> None:
    data = from_dataset(HuggingFace([{"image": image, "label": 1}, {"label": 0, "image": image}]))
    assert data.targets.tolist() == [1, 0]
    assert data.classes == ("cat", "dog")
    assert data.images[1, 0].tolist() == PIXELS.tolist()


def test_files_texts_and_columns_by_name(tmp_path: Path) -> None:
    IMAGE.save(tmp_path / "a.png")
    rows = [{"where": str(tmp_path / "a.png"), "what": name, "split": 0} for name in ("oak", "birch", "oak")]
    with pytest.raises(TypeError, match=r"dataset\[0\]: which column is it\? Give image_column, one of where, what"):
        from_dataset(rows)
    data = from_dataset(rows, image_column="where", label_column="what")
    assert (data.classes, data.targets.tolist()) == (("birch", "oak"), [1, 0, 1])
    again = from_dataset(rows[:1], train=data, image_column="where", label_column="what")
    assert (again.classes, again.targets.tolist()) == (data.classes, [1])
    strange = [{"where": PIXELS, "what": "elm"}]
    with pytest.raises(ValueError, match=r"dataset\[0\]: class 'elm' is none of the training images'; birch, oak"):
        from_dataset(strange, train=data, image_column="where", label_column="what")
    with pytest.raises(TypeError, match=r"dataset\[0\]: it has no column 'which'; it has where, what, split"):
        from_dataset(rows, image_column="where", label_column="which")


def test_texts_in_pairs_and_mixed_with_numbers() -> None:
    data = from_dataset([(IMAGE, "b"), (IMAGE, "a")])
    assert (data.classes, data.targets.tolist()) == (("a", "b"), [1, 0])
    with pytest.raises(TypeError, match=r"dataset\[1\]: target must be a text as that of dataset\[0\]; got int"):
        from_dataset([(IMAGE, "b"), (IMAGE, 1)])


def test_data_frames(tmp_path: Path) -> None:
    """The part of pandas' and polars' interfaces that is used."""
    IMAGE.save(tmp_path / "a.png")
    table = [[str(tmp_path / "a.png"), "oak"], [str(tmp_path / "a.png"), "elm"]]

    class Pandas:
        columns: ClassVar = ["path", "label"]
        iloc = table

        def __len__(self) -> int:
            return 2

        def __getitem__(self, name: str) -> Any:
            raise KeyError(name)

    class Polars(Pandas):
        iloc: Any = property(lambda self: self.missing)

        def row(self, index: int, named: bool) -> dict[str, Any]:
            return dict(zip(self.columns, table[index], strict=True))

    for frame in (Pandas(), Polars()):
        data = from_dataset(frame)
        assert (data.classes, data.targets.tolist()) == (("elm", "oak"), [1, 0])
        assert torch.equal(data.images[0, 0], torch.from_numpy(PIXELS))


def test_a_table_of_data_sets_is_told_apart() -> None:
    with pytest.raises(TypeError, match="give one of its parts: 'train', 'test'"):
        from_dataset({"train": [], "test": []})  # type: ignore[arg-type]
