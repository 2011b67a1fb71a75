"""An extension that is there but cannot be loaded is told loudly, one that is not there is not."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import fastdarts

USE = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in finder.__module__]  # it finds the checkout
sys.path.insert(0, sys.argv[1])
import torch
from fastdarts import MixedOp, SearchNetwork
x, weights = torch.randn(2, 4, 5, 5), torch.ones(8)
MixedOp(4, 1)(x, weights)
SearchNetwork(C=2, layers=3, steps=1, multiplier=1)(torch.randn(2, 3, 8, 8))
MixedOp(4, 1, backend="fused")(x, weights)
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with the package as it is, but without its extension."""
    copy = tmp_path / "fastdarts"
    copy.mkdir()
    for part in Path(fastdarts.__file__).parent.iterdir():
        if not part.name.startswith("_C."):
            (copy / part.name).symlink_to(part)
    return copy


def use(package: Path) -> str:
    """Return the stderr of a program with that package; it ends with the error of backend "fused"."""
    command = [sys.executable, "-P", "-c", USE, str(package.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "RuntimeError: backend 'fused' cannot serve here: fastdarts._C is" in done.stderr
    return done.stderr


def test_missing(package: Path) -> None:
    text = use(package)
    assert "cannot serve here: fastdarts._C is not built in this installation; use 'auto' or 'reference'" in text
    assert "Warning" not in text


def test_broken(package: Path) -> None:
    (package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(b"\x7fELF of another world")
    text = use(package)
    before, _, _ = text.partition("Traceback")
    assert "RuntimeWarning: plain modules serve, many times slower, since fastdarts._C is built but cannot be" in before
    assert "file too short" in before or "invalid ELF header" in before
    assert "Build it again in the checkout: pip install --no-build-isolation --force-reinstall" in before
    assert "cannot serve here: fastdarts._C is built but cannot be loaded: " in text
