"""Augment whole batches on the device: pad and crop, flip, normalise, cutout."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastdarts.data.drawn import DrawnAugment


class Draw(NamedTuple):
    """Hold the random choices for one batch, each [N] int64."""

    top: Tensor
    """Row of the zero-padded image at which the crop begins, 0..2 * crop_padding."""
    left: Tensor
    """Column at which the crop begins, likewise."""
    flip: Tensor
    """1 to mirror the image left to right, else 0."""
    cutout_row: Tensor
    """Row of the centre of the cut-out square."""
    cutout_column: Tensor
    """Column of the centre of the cut-out square."""


class Augment(DrawnAugment):
    """Apply the original's training transform to a whole batch.

    It consists of RandomCrop with black padding, RandomHorizontalFlip, Normalize and Cutout (DeVries and Taylor 2017,
    arXiv:1708.04552), of uint8 or float32 images. Float images are cropped, flipped and cut out, but not normalised. A
    call does not synchronise with the device and computes nothing whose shape depends on values.

    Args:
        mean, std: per channel, of images scaled to 0..1 (as in ImageData).
        crop_padding: pixels of zeros added on each side before the random crop to the old size; 4 for 32×32 images.
        flip: mirror every second image on average (not for digits, because it changes their meaning).
        cutout: side of a square set to zero after normalisation, centred on any pixel and clipped at the border; 0 for
            none. As in the original, an odd side cuts one pixel less.
        generator_seed: seed of `generator`, which makes all random choices. Before capturing a call in a CUDA graph,
            call `graph.register_generator_state(augment.generator)`.
        device: device of the images.

    Raises: ValueError for a negative crop_padding or cutout, or std that does not fit mean.
    """

    def __init__(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        crop_padding: int = 4,
        flip: bool = True,
        cutout: int = 0,
        generator_seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, value in (("crop_padding", crop_padding), ("cutout", cutout)):
            if value < 0:
                raise ValueError(f"{name} must be at least 0 pixels; got {value}")
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(f"mean and std must be one number per channel, std positive; got {mean} and {std}")
        self.crop_padding = crop_padding
        self.flip = flip
        self.cutout = cutout
        self.cutout_share = 1.0
        """Share of the images to which cutout is applied; may be set at any time."""
        super().__init__(generator_seed, device)
        self._mean = torch.tensor(mean, device=device)
        self._std = torch.tensor(std, device=device)

    def draw(self, images: Tensor) -> Draw:
        """Sample the random choices for `images`, of which only shape and device are used."""
        count, _, height, width = images.shape
        limits = (2 * self.crop_padding + 1, 2 * self.crop_padding + 1, 2 if self.flip else 1, height, width)
        draw = Draw(*(torch.randint(n, (count,), generator=self.generator, device=images.device) for n in limits))
        if not self.cutout or self.cutout_share >= 1:
            return draw
        cut = torch.rand(count, generator=self.generator, device=images.device) < self.cutout_share
        return draw._replace(cutout_row=draw.cutout_row.masked_fill(~cut, -self.cutout))  # the square is outside

    def apply(self, images: Tensor, draw: Draw) -> Tensor:
        """Augment `images` with the random choices `draw`, as a call does."""
        count, _, height, width = images.shape
        rows = torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device)
        padded = F.pad(images, [self.crop_padding] * 4)
        source_rows = draw.top[:, None] + rows
        source_columns = draw.left[:, None] + torch.where(draw.flip[:, None] == 1, width - 1 - columns, columns)
        image = torch.arange(count, device=images.device)
        # [N, H, W, C], which is channels-last memory: index tensors separated by a slice put their dimensions first
        cropped = padded[image[:, None, None], :, source_rows[:, :, None], source_columns[:, None, :]]
        out = self._normalise_last(cropped)
        if self.cutout:
            half = self.cutout // 2
            row, column = rows - draw.cutout_row[:, None], columns - draw.cutout_column[:, None]
            hole = ((-half <= row) & (row < half))[:, :, None] & ((-half <= column) & (column < half))[:, None, :]
            out = out.masked_fill(hole[..., None], 0.0)
        return out.permute(0, 3, 1, 2)

    def normalise(self, images: Tensor) -> Tensor:
        """Apply the evaluation transform: [N, C, H, W] uint8 -> (images / 255 - mean) / std, float32 channels-last.

        Float images only change their layout.
        """
        return self._normalise_last(images.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)

    def _normalise_last(self, images: Tensor) -> Tensor:
        """Normalise [N, H, W, C] by the same three float32 operations as torchvision, for the same bits."""
        if images.dtype != torch.uint8:
            return images
        return images.float().div_(255).sub_(self._mean).div_(self._std)
