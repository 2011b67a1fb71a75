"""Imports in the middle of a run, and what can go wrong with them."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing(package: str) -> Iterator[None]:
    """Inside, a package is imported for the first time; what fails is said in one sentence.

    Raises: MemoryError where memory ran out, which libraries report in many ways; ImportError for all else.
    """
    try:
        yield
    except MemoryError:
        raise MemoryError(f"memory ran out while {package} was imported; free some and start again") from None
    except (OSError, RuntimeError, SystemError, AttributeError, ImportError) as error:
        words = " ".join(str(error).split())
        if "allocate memory" in words or "failed to map" in words or getattr(error, "errno", None) == errno.ENOMEM:
            raise MemoryError(f"memory ran out while {package} was imported ({words})") from error
        raise ImportError(f"{package} cannot be imported: {words or type(error).__name__}") from error
