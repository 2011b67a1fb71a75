"""The CUDA C++ passes (csrc/cuda/planes.cu), an alternative to the Triton kernels that a GPU has to judge."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

NAME = "CUDA C++ passes"


@contextmanager
def planes_asked_for() -> Iterator[None]:
    """Have stages made by csrc/cuda inside, where it knows them."""
    before = os.environ.get("FASTDARTS_GPU")
    os.environ["FASTDARTS_GPU"] = "cuda"
    try:
        yield
    finally:
        if before is None:
            del os.environ["FASTDARTS_GPU"]
        else:
            os.environ["FASTDARTS_GPU"] = before
