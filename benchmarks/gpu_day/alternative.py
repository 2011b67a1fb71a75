"""Alternatives that a GPU has to judge: the CUDA C++ passes (csrc/cuda/planes.cu) and a second stream."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

NAME = "CUDA C++ passes"
TWO_STREAMS = "two streams"


@contextmanager
def planes_asked_for() -> Iterator[None]:
    """Have stages made by csrc/cuda inside, where it knows them."""
    with _set("FASTDARTS_GPU", "cuda"):
        yield


@contextmanager
def streams(count: str) -> Iterator[None]:
    """Have operators use so many streams inside."""
    with _set("FASTDARTS_STREAMS", count):
        yield


@contextmanager
def _set(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
