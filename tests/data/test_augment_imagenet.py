"""The ImageNet transforms of a batch equal torchvision's of each image."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as tv

from fastdarts.data.augment_imagenet import Draw, ImageNetAugment

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images_of(count: int, height: int = 32, width: int = 40) -> Tensor:
    images = torch.randint(256, (count, 3, height, width), dtype=torch.uint8)
    images[0] = 200  # grey: the hue of no colour
    images[1, 1] = images[1, 0]  # two channels share the largest value
    return images


def by_torchvision(image: Tensor, draw: Draw, size: tuple[int, int]) -> Tensor:
    top, left, height, width = (int(value) for value in draw[:4])
    flip, brightness, contrast, saturation, hue = (value.item() for value in draw[4:])
    # float64, so that only the rounding of the tested one is seen
    out = tv.resized_crop(image.double() / 255, top, left, height, width, list(size), antialias=False)
    out = tv.hflip(out) if flip else out
    out = tv.adjust_contrast(tv.adjust_brightness(out, brightness), contrast)
    out = tv.adjust_hue(tv.adjust_saturation(out, saturation), hue)
    return tv.normalize(out, list(MEAN), list(STD))


def test_equals_torchvision() -> None:
    augment, images = ImageNetAugment(MEAN, STD, (32, 40)), images_of(24)
    draw = augment.draw(images)
    ours = augment.apply(images, draw)
    assert ours.shape == (24, 3, 28, 35)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    theirs = torch.stack(
        [by_torchvision(image, Draw(*(c[index] for c in draw)), augment.size) for index, image in enumerate(images)]
    )
    # float32: positions are good to 40 * 2^-24 pixels, so samples to 40 * 2^-24 of the range 1, which the jitters
    # (at most 1.4 ** 3) and the hue's six sectors stretch by less than 30 and the normalisation by 1 / 0.224
    assert (ours - theirs).abs().max() < 40 * 2**-24 * 30 / 0.224


def test_choices_stay_within_their_limits_and_reach_them() -> None:
    draw = ImageNetAugment(MEAN, STD, (256, 256)).draw(torch.empty(1).expand(20_000, 3, 256, 256))
    area = draw.height * draw.width / 256**2
    ratio = draw.width / draw.height
    assert 0.07 < area.min() < 0.1
    assert 0.9 < area.max() <= 1
    assert 0.7 < ratio.min() < 0.76
    assert 1.32 < ratio.max() < 1.4
    assert draw.top.min() == draw.left.min() == 0
    assert (draw.top + draw.height).max() == (draw.left + draw.width).max() == 256
    for factor, low, high in ((draw.brightness, 0.6, 1.4), (draw.saturation, 0.6, 1.4), (draw.hue, -0.2, 0.2)):
        assert low <= factor.min() < low + 0.01 * (high - low)
        assert high >= factor.max() > high - 0.01 * (high - low)
    assert abs(draw.flip.float().mean() - 0.5) < 3 * 0.5 / 20_000**0.5
    assert not ImageNetAugment(MEAN, STD, (8, 8), flip=False).draw(torch.empty(50, 3, 8, 8)).flip.any()


def test_the_images_stay_as_they_are() -> None:
    augment, images = ImageNetAugment(MEAN, STD, (24, 24)), images_of(4).float()
    before = images.clone()
    augment(images)
    augment.normalise(images)
    assert torch.equal(images, before)


def test_evaluation_takes_the_centre() -> None:
    augment, images = ImageNetAugment(MEAN, STD, (256, 64)), images_of(3, 256, 64)
    theirs = tv.normalize(tv.center_crop(images, [224, 56]).float() / 255, list(MEAN), list(STD))
    assert torch.equal(augment.normalise(images), theirs)


def test_state_continues_the_choices() -> None:
    augment, images = ImageNetAugment(MEAN, STD, (16, 16), generator_seed=3), images_of(4, 16, 16)
    first = augment(images)
    state = augment.state_dict()
    second = augment(images)
    assert not torch.equal(first, second)
    other = ImageNetAugment(MEAN, STD, (16, 16))
    other.load_state_dict(state)
    assert torch.equal(other(images), second)


@pytest.mark.parametrize(
    ("channels", "size", "message"), [(1, (32, 32), "3 channels; got 1"), (3, (7, 9), r"8 pixels a side; got \(7, 9\)")]
)
def test_bad_images(channels: int, size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageNetAugment((0.5,) * channels, (0.5,) * channels, size)
