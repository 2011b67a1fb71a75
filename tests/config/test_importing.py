"""Imports that fail in the middle of a run."""

import errno

import pytest

from fastdarts.config.importing import importing


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (MemoryError(), MemoryError, "memory ran out while thing was imported"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), MemoryError, "memory ran out"),
        (ImportError("libx.so: failed to map segment from shared object"), MemoryError, r"memory ran out.*libx"),
        (ModuleNotFoundError("No module named 'thing'"), ImportError, "thing cannot be imported: No module named"),
        (AttributeError("partially initialized"), ImportError, "thing cannot be imported: partially"),
    ],
)
def test_what_is_said(error: Exception, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message), importing("thing"):
        raise error
