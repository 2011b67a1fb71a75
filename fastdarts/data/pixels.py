"""From a picture of any mode to uint8 channels."""

import numpy as np
from PIL import Image

_GREY = frozenset({"1", "L", "I;16", "I;16L", "I;16B"})
_COLOUR = frozenset({"RGB", "RGBA", "P", "PA", "LA", "CMYK", "YCbCr", "LAB", "HSV"})


def is_grey(image: Image.Image) -> bool:
    """Whether one channel holds the image. Raises: ValueError for modes without a known range (32 bits)."""
    if image.mode not in _GREY | _COLOUR:
        raise ValueError(f"pixel mode {image.mode} is not supported; save it with 8 bits a channel (16 if grey)")
    return image.mode in _GREY


def pixels(image: Image.Image, grey: bool, size: tuple[int, int] | None = None) -> np.ndarray:
    """[1 or 3, H, W] uint8, resized to `size` (H, W) if given. Transparency is laid over white, as viewers show it; of
    16-bit grey the upper 8 bits are taken."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if grey else "RGB")
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    array = np.asarray(image)
    return array[None] if grey else array.transpose(2, 0, 1)
