"""Image files: which are opened, and by which decoders. The contents decide, not the name."""

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

from PIL import Image, UnidentifiedImageError

Result = TypeVar("Result")

PIXEL_LIMIT = 2**26 + 2**24
"""Largest width times height of an image file, 84 million: decoded it takes 0.3 to 1 GB."""

# Raster formats that Pillow decodes itself. EPS (which it hands to Ghostscript), WMF (to Windows), and those for which
# it has no decoder of its own (BUFR, GRIB, HDF5, MPEG, FPX, MIC) are not among them.
_FORMATS = (
    *("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "MPO", "JPEG2000", "AVIF", "TGA", "DIB"),
    *("PCX", "DCX", "SGI", "SUN", "ICO", "ICNS", "CUR", "DDS", "PSD", "IM", "MSP", "XBM", "XPM", "QOI", "BLP"),
    *("FTEX", "FLI", "SPIDER", "XVTHUMB", "PIXAR", "GBR", "FITS", "MCIDAS", "IMT"),
)


@cache
def formats() -> tuple[str, ...]:
    """Return the allowed formats of the installed Pillow."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@cache
def suffixes() -> frozenset[str]:
    """Return the suffixes of files that are taken for images, in lower case."""
    allowed = formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in allowed)


def open_image(path: Path, use: Callable[[Image.Image], Result], content: bytes | None = None) -> Result:
    """Open an image file, look at its size and give it to `use`.

    Args:
        path: the file, or its name where `content` is given.
        use: called with the image, of which only the header is read.
        content: the file's bytes.

    Raises: ValueError that names the file, for anything that is wrong with it; MemoryError.
    """
    try:
        with Image.open(path if content is None else io.BytesIO(content), formats=formats()) as image:
            if image.width * image.height > PIXEL_LIMIT:
                raise ValueError(
                    f"it has {image.width}x{image.height} pixels, {image.width * image.height / 1e6:,.0f} million; "
                    f"at most {PIXEL_LIMIT / 1e6:.0f} million are decoded"
                )
            return use(image)
    except UnidentifiedImageError:
        raise ValueError(f"cannot read image {path}: cannot identify image file, it holds no known format") from None
    except MemoryError as error:
        raise MemoryError(f"memory ran out while {path} was decoded; give a smaller image_size") from error
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise ValueError(f"cannot read image {path}: {error}") from error
