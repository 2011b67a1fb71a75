"""(image, target) pairs out of anything with a length and indices: pairs, dict rows, data frames, columns by name."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from fastdarts.data.formats import formats, open_image
from fastdarts.data.pixels import turned

_IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "pixel_values", "image_path", "path", "file", "filename")
_LABEL_NAMES = ("label", "labels", "target", "targets", "class", "category", "fine_label", "class_name", "species", "y")


class Rows(Protocol):
    """A map-style Dataset, a data frame, a list: anything with a length and indices."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


class Pairs:
    """The (image, target) pairs of a data set.

    Args:
        dataset: its items are pairs, or rows with named columns: mappings (as Hugging Face's data sets give them), or
            the rows of a pandas or polars data frame.
        image_column, label_column: names of the columns; left out, they are found by usual names.

    Raises: TypeError where the items are neither, or the columns are not found.
    """

    def __init__(self, dataset: Any, image_column: str | None, label_column: str | None) -> None:
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise TypeError(f"a map-style Dataset with __len__ and __getitem__ is needed; got {type(dataset).__name__}")
        if isinstance(dataset, Mapping):
            raise TypeError(
                f"a data set is needed, not a table of them; give one of its parts: {', '.join(map(repr, dataset))}"
            )
        self.dataset = dataset
        self.columns = image_column, label_column
        self.found: tuple[str, str] | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        item = self._item(index)
        if not isinstance(item, Mapping):
            if not isinstance(item, tuple | list) or len(item) != 2:
                raise TypeError(f"wanted a pair (image, target), got {type(item).__name__}")
            return item[0], item[1]
        if self.found is None:
            image, label = self.columns
            self.found = (
                _column(item, image, _IMAGE_NAMES, "image_column"),
                _column(item, label, _LABEL_NAMES, "label_column"),
            )
        for name in self.found:
            if name not in item:
                raise TypeError(f"it has no column {name!r}; it has {', '.join(map(str, item))}")
        return _cell_image(item[self.found[0]]), item[self.found[1]]

    def class_names(self) -> tuple[str, ...]:
        """Return the class names that the data set gives in `classes` or `features`; empty without any."""
        names = getattr(self.dataset, "classes", None)
        features = getattr(self.dataset, "features", None)
        if names is None and self.found is not None and isinstance(features, Mapping):
            names = getattr(features.get(self.found[1]), "names", None)
        return tuple(map(str, names)) if names is not None and len(names) else ()

    def _item(self, index: int) -> Any:
        if hasattr(self.dataset, "iloc") and hasattr(self.dataset, "columns"):
            return dict(zip(map(str, self.dataset.columns), self.dataset.iloc[index], strict=True))
        if hasattr(self.dataset, "row") and hasattr(self.dataset, "columns"):
            return self.dataset.row(index, named=True)
        return self.dataset[index]


def _column(row: Mapping[Any, Any], given: str | None, usual: tuple[str, ...], argument: str) -> str:
    names = list(map(str, row))
    if given is not None:
        return given
    for name in usual:
        for column in names:
            if column.casefold() == name:
                return column
    raise TypeError(f"which column is it? Give {argument}, one of {', '.join(names)}")


def _cell_image(value: Any) -> Any:
    """Return an image that is kept as a file's path or bytes; others as they are."""
    if isinstance(value, Mapping) and ("bytes" in value or "path" in value):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        with Image.open(io.BytesIO(value), formats=formats()) as image:
            return turned(image).copy()
    if isinstance(value, str | Path):
        return open_image(Path(value), lambda image: turned(image).copy())
    return value
