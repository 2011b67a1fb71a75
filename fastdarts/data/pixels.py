"""Convert pictures of any mode to uint8 channels."""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_DEEP = frozenset({"I;16", "I;16L", "I;16B", "I"})
_GREY = frozenset({"1", "L"}) | _DEEP
_COLOUR = frozenset({"RGB", "RGBA", "P", "PA", "LA", "La", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})
_ORIENTATION = 0x0112  # EXIF's tag
_TURNS = {  # transposition that makes an image with this EXIF orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class GreyRange(NamedTuple):
    """Hold the values of 16-bit images that are mapped to 0 and 255."""

    low: int
    high: int


FULL_RANGE = GreyRange(0, 2**16 - 1)


def is_grey(image: Image.Image) -> bool:
    """Return True if the image is grey, with one channel. Raises: ValueError for modes of unknown range (32 bits)."""
    if image.mode not in _GREY | _COLOUR:
        raise ValueError(f"pixel mode {image.mode} is not supported; save it with 8 bits a channel (16 if grey)")
    return image.mode in _GREY


def is_deep(image: Image.Image) -> bool:
    """Return True for grey images with 16 bits."""
    return image.mode in _DEEP


def range_of(samples: list[np.ndarray]) -> GreyRange:
    """Return the range of 16-bit values: from the 0.1st to the 99.9th percentile, or the full range if they span half.

    Args:
        samples: some values of each image.
    """
    low, high = (int(value) for value in np.percentile(np.concatenate(samples), [0.1, 99.9]))
    return FULL_RANGE if high - low >= 2**15 or high <= low else GreyRange(low, high)


def deep_sample(image: Image.Image) -> np.ndarray:
    """Return at most about 10,000 values of a 16-bit image, evenly spread over it."""
    values = deep_values(image).ravel()
    return values[:: len(values) // 10_000 + 1]


def deep_values(image: Image.Image) -> np.ndarray:
    """Return the values [H, W] of a 16-bit image. Raises: ValueError for values of more than 16 bits."""
    values = np.asarray(image)
    if image.mode == "I" and (values.min() < 0 or values.max() > FULL_RANGE.high):
        raise ValueError("its values have more than 16 bits; save it with 8 or 16")
    return values


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if there is no readable one, or if Pillow turns the image itself."""
    if image.format == "TIFF":
        return 1
    try:  # the base class's method: PNG's own would decode the whole image to look for EXIF after the pixels
        value = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except Exception:  # an image with damaged EXIF is still usable
        return 1
    return value if value in _TURNS else 1


def turned(image: Image.Image) -> Image.Image:
    """Return the image turned upright according to its EXIF orientation."""
    turn = _TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return (height, width) of the upright image."""
    sides = image.height, image.width
    return sides if orientation(image) < 5 else sides[::-1]


def pixels(image: Image.Image, grey: bool, grey_range: GreyRange = FULL_RANGE) -> np.ndarray:
    """Return the pixels of `image` as uint8 [1 or 3, H, W], grey or RGB.

    Transparent images are composed over white, as viewers show them. For 16-bit grey images `grey_range` is mapped to
    0..255 (for the full range, by taking the upper 8 bits).
    """
    if is_deep(image):
        values = deep_values(image)
        if grey_range == FULL_RANGE:
            image = Image.fromarray((values >> 8).astype(np.uint8))
        else:
            low, high = grey_range
            scaled = (values.astype(np.float32) - low) * (255 / (high - low))
            image = Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "L" if grey else "RGB"
    array = np.array(image if image.mode == mode else image.convert(mode))  # convert copies even to the same mode
    return array[None] if grey else array.transpose(2, 0, 1)


def resized(image: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Return uint8 channels [C, H, W] resized to `size` (H, W) if given: bilinear, antialiased, within 1 of Pillow."""
    if size is None or image.shape[1:] == size:
        return image
    return torch.nn.functional.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
