"""Apply the original's ImageNet transforms to whole batches on the device: resized crop, flip, jitter, normalise."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from fastdarts.data.drawn import DrawnAugment

_SCALE = (0.08, 1.0)  # area of a crop as a share of the image's area
_RATIO = (3 / 4, 4 / 3)  # width of a crop divided by its height
_JITTER = (0.6, 1.4)  # factors of brightness, contrast and saturation
_HUE = (-0.2, 0.2)  # shift of the hue in turns around the colour circle
_GREY = (0.2989, 0.587, 0.114)  # weights of red, green and blue (ITU-R BT.601)


class Draw(NamedTuple):
    """Hold the random choices for one batch, each [N]; the crop is in whole pixels."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor


class ImageNetAugment(DrawnAugment):
    """Apply RandomResizedCrop, RandomHorizontalFlip, ColorJitter(0.4, 0.4, 0.4, 0.2) and Normalize to uint8 RGB images.

    Input images [N, 3, H, W] are a seventh larger than the network's, [N, 3, H * 7 // 8, W * 7 // 8]: 256 pixels a side
    for 224. A crop that would cross the border
    is cut there (torchvision samples again), and the jitters are applied in the order of the fields of `Draw`
    (torchvision: in random order). A call does not synchronise with the device and computes nothing whose shape depends
    on values.

    Args:
        mean, std: per channel, of images scaled to 0..1.
        image_size: (H, W) of the input images.
        flip: mirror every second image on average.
        generator_seed: seed of `generator`, which makes all random choices.
        device: device of the images.

    Raises: ValueError for images that are not RGB or smaller than 8 pixels.
    """

    def __init__(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        image_size: Sequence[int],
        flip: bool = True,
        generator_seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if len(mean) != 3 or len(std) != 3:
            raise ValueError(f"the ImageNet transforms need images with 3 channels; got {len(mean)}")
        if min(image_size) < 8:
            raise ValueError(
                f"the ImageNet transforms need images of at least 8 pixels a side; got {tuple(image_size)}"
            )
        height, width = image_size
        self.size = height * 7 // 8, width * 7 // 8
        self.flip = flip
        super().__init__(generator_seed, device)
        self._mean = torch.tensor(mean, device=device)[:, None, None]
        self._std = torch.tensor(std, device=device)[:, None, None]

    def draw(self, images: Tensor) -> Draw:
        """Sample the random choices for `images`, of which only shape and device are used."""
        count, _, rows, columns = images.shape
        area, ratio, top, left, flip, brightness, contrast, saturation, hue = torch.rand(
            9, count, generator=self.generator, device=images.device
        )
        pixels = rows * columns * _between(area, _SCALE)
        ratio = _between(ratio, (math.log(_RATIO[0]), math.log(_RATIO[1]))).exp()
        height = (pixels / ratio).sqrt().round().clamp(1, rows)
        width = (pixels * ratio).sqrt().round().clamp(1, columns)
        return Draw(
            (top * (rows - height + 1)).floor(),
            (left * (columns - width + 1)).floor(),
            height,
            width,
            (flip < 0.5) & self.flip,
            _between(brightness, _JITTER),
            _between(contrast, _JITTER),
            _between(saturation, _JITTER),
            _between(hue, _HUE),
        )

    def apply(self, images: Tensor, draw: Draw) -> Tensor:
        """Augment `images` with the random choices `draw`, as a call does."""
        rows = _positions(draw.top, draw.height, self.size[0], images.shape[2])
        columns = _positions(draw.left, draw.width, self.size[1], images.shape[3])
        columns = torch.where(draw.flip[:, None], columns.flip(1), columns)
        grid = torch.stack(torch.broadcast_tensors(columns[:, None, :], rows[:, :, None]), dim=-1)
        # the images are hardly larger than the output, so plain bilinear interpolation does not alias
        cropped = grid_sample(images.float() / 255, grid, align_corners=False)
        out = _jitter(cropped, draw).sub_(self._mean).div_(self._std)
        return out.contiguous(memory_format=torch.channels_last)

    def normalise(self, images: Tensor) -> Tensor:
        """Apply the evaluation transform: crop the centre and normalise it; shapes as for a call."""
        top, left = (round((whole - part) / 2) for whole, part in zip(images.shape[2:], self.size, strict=True))
        centre = images[:, :, top : top + self.size[0], left : left + self.size[1]]
        out = (centre.float() / 255).sub_(self._mean).div_(self._std)
        return out.contiguous(memory_format=torch.channels_last)


def _between(uniform: Tensor, limits: tuple[float, float]) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * uniform


def _positions(first: Tensor, length: Tensor, size: int, whole: int) -> Tensor:
    """Return the positions [N, size] at which to sample crops, in -1..1 along an axis of `whole` pixels.

    Crop n begins at pixel first[n] and is length[n] pixels long; positions beyond its outer pixels' centres are clamped
    to these.
    """
    steps = (torch.arange(size, device=first.device) + 0.5) / size
    pixel = (steps * length[:, None]).clamp(min=0.5).minimum(length[:, None] - 0.5) + first[:, None]
    return 2 * pixel / whole - 1


def _jitter(images: Tensor, draw: Draw) -> Tensor:
    """Jitter brightness, contrast, saturation and hue of RGB images in 0..1."""
    brightness, contrast, saturation, hue = (factor[:, None, None, None] for factor in draw[5:])
    images = (images * brightness).clamp(0, 1)
    images = torch.lerp(_grey(images).mean((2, 3), keepdim=True), images, contrast).clamp(0, 1)
    images = torch.lerp(_grey(images), images, saturation).clamp(0, 1)
    return _turn_hue(images, hue[:, 0])


def _grey(images: Tensor) -> Tensor:
    """Return the luma of RGB images: [N, 3, H, W] -> [N, 1, H, W]."""
    red, green, blue = images.unbind(1)
    return (_GREY[0] * red + _GREY[1] * green + _GREY[2] * blue)[:, None]


def _turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Add `turn` [N, 1, 1] to the hue of RGB images, via hue, saturation and value; 1 is the whole colour circle."""
    red, green, blue = images.unbind(1)
    value, least = images.amax(1), images.amin(1)
    chroma = value - least
    divisor = torch.where(chroma > 0, chroma, 1.0)
    sixths = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixths = sixths + 6 * turn
    # each channel is the value minus a piecewise linear function of the hue's distance from its own (Smith 1978)
    distances = [torch.remainder(offset + sixths, 6) for offset in (5, 3, 1)]
    return torch.stack([value - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in distances], dim=1)
