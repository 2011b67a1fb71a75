"""Import fastdarts._C, if this installation has it, which registers the operators' compiled kernels."""

import importlib
import importlib.util
import warnings

NOT_BUILT = "fastdarts._C is not built in this installation"


def load() -> str | None:
    """Import fastdarts._C. Return None, or the reason why there are no CPU kernels; warn if it exists but is broken."""
    if importlib.util.find_spec("fastdarts._C") is None:
        return NOT_BUILT
    try:
        importlib.import_module("fastdarts._C")
    except ImportError as error:
        reason = (
            f"fastdarts._C is built but cannot be loaded: {error}. Most likely it was built for another torch. "
            "Build it again in the checkout: pip install --no-build-isolation --force-reinstall --no-deps ."
        )
        warnings.warn(f"plain modules serve, many times slower, since {reason}", RuntimeWarning, stacklevel=2)
        return reason
    return None


UNAVAILABLE = load()
"""The reason why there are no CPU kernels, or None."""
