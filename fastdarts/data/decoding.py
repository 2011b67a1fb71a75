"""Decode one image file to uint8 channels of one kind: by Pillow, resized by torch in a third of Pillow's time."""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from fastdarts.data.pixels import FULL_RANGE, GreyRange, pixels, resized, turned, upright_size


@dataclass(frozen=True)
class Decoder:
    """Decode images to one kind.

    Attributes:
        grey: to one channel instead of three.
        size: (H, W) to resize to; None leaves images as they are.
        grey_range: of 16-bit images, see `pixels`.
    """

    grey: bool
    size: tuple[int, int] | None
    grey_range: GreyRange = FULL_RANGE

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the pixels [1 or 3, H, W], uint8, of an opened image, of which nothing is decoded yet."""
        if self.size is not None:  # a large JPEG is decoded at a fraction of its size
            sides = self.size if upright_size(image) == (image.height, image.width) else self.size[::-1]
            image.draft(None, (2 * sides[1], 2 * sides[0]))
        return resized(torch.from_numpy(pixels(turned(image), self.grey, self.grey_range)), self.size)
