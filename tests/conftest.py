"""Fix seed and threads, and fill uninitialised memory with NaN, in every test; fixtures that tests may ask for."""

import os
import random
import signal
import sys
import tarfile
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():  # before Triton is imported: its interpreter serves
    os.environ.setdefault("TRITON_INTERPRET", "1")

import torch._dynamo  # torch.compile looks functions up by identity: it must see torch.empty before it is replaced
from hypothesis import settings

with torch.device("cpu"):  # as a context it looks functions up by identity too, from its first use on
    torch.empty(0)

# A shell starts background jobs with these ignored, and their children would ignore them, too.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# Timings decide no test, and every run draws the same examples.
settings.register_profile("fastdarts", deadline=None, derandomize=True)
settings.load_profile("fastdarts")

# Sums may differ in the last bit between thread counts, so the count does not depend on the machine.
THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, torch sees none")
    for item in items:
        if item.get_closest_marker("gpu"):  # not its keywords: a checkout's folder may be called so
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def seed_and_threads() -> Iterator[None]:
    """Same numbers in every run and in any order of tests; nothing global leaks from one test into the next."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - for code under test that uses numpy's global state
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_default_dtype(torch.float32)


def _nan_filled(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @wraps(allocate)
    def wrapper(*args: object, **kwargs: object) -> torch.Tensor:
        tensor = allocate(*args, **kwargs)
        # is_compiling() first: torch.compile cannot trace the look at the caller's frame
        if torch.compiler.is_compiling() or not _called_from_package():
            return tensor
        if tensor.is_floating_point() or tensor.is_complex():
            with torch.no_grad():
                tensor.fill_(float("nan"))
        return tensor

    return wrapper


def _called_from_package() -> bool:
    name = sys._getframe(2).f_globals.get("__name__", "")
    return name == "fastdarts" or name.startswith("fastdarts.")


ALLOCATORS = [
    (owner, name, _nan_filled(getattr(owner, name)))
    for owner, names in (
        (torch, ("empty", "empty_like", "empty_strided")),
        (torch.Tensor, ("new_empty", "new_empty_strided")),
    )
    for name in names
]


@pytest.fixture(autouse=True)
def nan_in_uninitialised_memory() -> Iterator[None]:
    """torch.empty and its family, called from fastdarts, return NaN: output that was never written cannot pass."""
    with pytest.MonkeyPatch.context() as patch:
        for owner, name, wrapper in ALLOCATORS:
            patch.setattr(owner, name, wrapper)
        yield


@pytest.fixture
def registrations_undone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Remove the ops, spaces and modules that plugins leave in this process."""
    from fastdarts.config import plugins
    from fastdarts.primitives.table import CANDIDATES
    from fastdarts.spaces.registry import _FACTORIES

    tables: list[dict[str, Any]] = [CANDIDATES, _FACTORIES]
    before = [set(table) for table in tables]
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(plugins, "_loaded", [])
    yield
    for name in plugins._loaded:
        sys.modules.pop(name, None)
    for table, names in zip(tables, before, strict=True):
        for name in set(table) - names:
            del table[name]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(params=[torch.float64, torch.float32, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real data beside the checkout; see the README for what it holds."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs real data in {SHARED_DATA}, which is absent")
    return SHARED_DATA


@pytest.fixture(scope="session")
def cifar10_images(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of CIFAR-10 as an image folder: train/<class>/*.jpg and test/<class>/*.jpg. Read it, never write."""
    archive = shared_data / "cifar10_images.tar.xz"
    if not archive.is_file():
        pytest.skip(f"needs {archive}, which is absent")
    folder = tmp_path_factory.mktemp("cifar10_images")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder
