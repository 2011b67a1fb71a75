"""Batched augmentation against torchvision and against loops over single images."""

import io
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms import functional as vision

from fastdarts.data.augment import Augment, Draw

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@pytest.fixture(scope="module")
def photos(shared_data: Path) -> Tensor:
    """64 images of CIFAR-10, [64, 3, 32, 32] uint8."""
    archive = shared_data / "cifar10_images.tar.xz"
    if not archive.is_file():
        pytest.skip(f"needs {archive}, which is absent")
    images = []
    with tarfile.open(archive, "r|xz") as tar:
        for member in islice((member for member in tar if member.isfile()), 64):
            file = tar.extractfile(member)
            assert file is not None
            images.append(np.asarray(Image.open(io.BytesIO(file.read()))))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def random_images(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def one_by_one(images: Tensor, draw: Draw, augment: Augment, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """The original's chain of transforms, a PIL image at a time, with the choices of `draw`."""
    height, width = images.shape[2:]
    results = []
    for image, top, left, flip, row, column in zip(images, *(choice.tolist() for choice in draw), strict=True):
        picture = vision.to_pil_image(image)
        picture = vision.crop(vision.pad(picture, augment.crop_padding), top, left, height, width)
        picture = vision.hflip(picture) if flip else picture
        tensor = vision.normalize(vision.to_tensor(picture), mean, std)
        # Cutout of the original: a mask of ones with a clipped square of zeros
        half = augment.cutout // 2
        mask = np.ones((height, width), np.float32)
        rows = np.clip([row - half, row + half], 0, height)
        columns = np.clip([column - half, column + half], 0, width)
        mask[rows[0] : rows[1], columns[0] : columns[1]] = 0
        results.append(tensor * torch.from_numpy(mask))
    return torch.stack(results)


@pytest.mark.parametrize(("padding", "flip", "cutout"), [(4, True, 16), (4, True, 0), (0, False, 7), (2, False, 0)])
def test_equals_torchvision_on_real_images(photos: Tensor, padding: int, flip: bool, cutout: int) -> None:
    augment = Augment(MEAN, STD, padding, flip, cutout)
    draw = augment.draw(photos)
    assert torch.equal(augment.apply(photos, draw), one_by_one(photos, draw, augment, MEAN, STD))


@pytest.mark.parametrize("shape", [(5, 1, 8, 8), (9, 3, 12, 31), (3, 1, 7, 1), (1, 3, 1, 1)])
def test_equals_torchvision_on_any_shape(shape: tuple[int, ...]) -> None:
    images = random_images(*shape)
    mean, std = MEAN[: shape[1]], STD[: shape[1]]
    augment = Augment(mean, std, crop_padding=3, cutout=4)
    draw = augment.draw(images)
    assert torch.equal(augment.apply(images, draw), one_by_one(images, draw, augment, mean, std))


def test_equals_the_exact_formula() -> None:
    """Every pixel in float64 from its definition; float32 rounds mean, std and three results, each by at most 2^-24 of
    itself (2^-25 for those below 1, which are the first four), together less than 4 * 2^-24 / std."""
    images = random_images(4, 2, 5, 6)
    mean, std = (0.3, 0.6), (0.2, 0.1)
    augment = Augment(mean, std, crop_padding=2, cutout=2)
    draw = augment.draw(images)
    ours = augment.apply(images, draw)
    for n, c, y, x in np.ndindex(*images.shape):
        row = draw.top[n] + y - 2
        column = draw.left[n] + (5 - x if draw.flip[n] else x) - 2
        inside = 0 <= row < 5 and 0 <= column < 6
        value = (float(images[n, c, row, column]) / 255 if inside else 0.0) - mean[c]
        if -1 <= y - draw.cutout_row[n] < 1 and -1 <= x - draw.cutout_column[n] < 1:
            value = 0.0
        assert ours[n, c, y, x] == pytest.approx(value / std[c], abs=4 * 2**-24 / std[c])


def test_evaluation_only_normalises(photos: Tensor) -> None:
    augment = Augment(MEAN, STD)
    before = augment.generator.get_state()
    wanted = vision.normalize(photos.float() / 255, MEAN, STD)
    ours = augment.normalise(photos)
    assert torch.equal(ours, wanted)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(augment.generator.get_state(), before)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_output_is_float32_channels_last(channels: int, layout: torch.memory_format) -> None:
    images = random_images(6, channels, 9, 11).contiguous(memory_format=layout)
    before = images.clone()
    augment = Augment((0.5,) * channels, (0.5,) * channels, cutout=4)
    for out in (augment(images), augment.normalise(images)):
        assert (out.shape, out.dtype) == (images.shape, torch.float32)
        assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


def test_float_images_are_not_normalised() -> None:
    images = torch.randn(7, 2, 6, 5)
    augment = Augment((0.0, 0.0), (1.0, 1.0), crop_padding=2, cutout=4)
    draw = augment.draw(images)._replace(cutout_row=torch.full((7,), 1), cutout_column=torch.full((7,), 3))
    padded = torch.nn.functional.pad(images, [2] * 4)
    corners = zip(padded, draw.top, draw.left, strict=True)
    wanted = torch.stack([image[:, y : y + 6, x : x + 5] for image, y, x in corners])
    wanted[draw.flip == 1] = wanted[draw.flip == 1].flip(3)
    wanted[:, :, 0:3, 1:5] = 0
    assert torch.equal(augment.apply(images, draw), wanted)
    assert torch.equal(augment.normalise(images), images)


def test_choices_are_uniform_and_independent() -> None:
    count = 90_000
    augment = Augment((0.5,), (0.5,), crop_padding=4, cutout=4)
    draw = augment.draw(torch.empty(1, 1, 6, 10).expand(count, 1, 6, 10))
    for choice, limit in zip(draw, (9, 9, 2, 6, 10), strict=True):
        counts = torch.bincount(choice, minlength=limit)
        assert len(counts) == limit
        share = 1 / limit
        # 5 standard deviations of a binomial count; the seed is fixed
        assert ((counts - count * share).abs() < 5 * (count * share * (1 - share)) ** 0.5).all()
    correlation = torch.corrcoef(torch.stack(list(draw)).double()) - torch.eye(5)
    assert correlation.abs().max() < 5 / count**0.5


def test_cut_out_area_is_that_of_clipped_squares() -> None:
    """Mean and spread of the area by going through all centres; 5 standard errors around the mean."""
    ones = torch.ones(4000, 1, 32, 32)
    augment = Augment((0.0,), (1.0,), crop_padding=0, flip=False, cutout=16)
    side = np.array([min(c + 8, 32) - max(c - 8, 0) for c in range(32)])
    areas = np.outer(side, side) / 32**2
    cut = (augment(ones) == 0).double().mean().item()
    assert cut == pytest.approx(areas.mean(), abs=5 * areas.std() / 4000**0.5)


def test_cutout_of_a_share_of_the_images() -> None:
    augment = Augment((0.0,), (1.0,), crop_padding=0, flip=False, cutout=4)
    augment.cutout_share = 0.3
    cut = (augment(torch.ones(2000, 1, 8, 8)) == 0).flatten(1).any(1)
    assert abs(cut.double().mean().item() - 0.3) <= 5 * (0.21 / 2000) ** 0.5
    augment.cutout_share = 0.0
    assert augment(torch.ones(50, 1, 8, 8)).all()


def test_without_flip_nothing_is_mirrored() -> None:
    images = torch.arange(8, dtype=torch.uint8).expand(500, 1, 8, 8)
    out = Augment((0.5,), (0.5,), crop_padding=0, flip=False)(images)
    assert torch.equal(out, out[:1].expand_as(out))
    out = Augment((0.5,), (0.5,), crop_padding=0, flip=True)(images)
    mirrored = (out[:, 0, 0, 0] > out[:, 0, 0, 7]).sum().item()
    assert abs(mirrored - 250) < 5 * 125**0.5


def test_same_seed_same_choices_and_state_continues(tmp_path: Path) -> None:
    images = random_images(16, 3, 8, 8)
    augment, twin = (Augment(MEAN, STD, cutout=4, generator_seed=3) for _ in range(2))
    assert torch.equal(augment(images), twin(images))
    torch.manual_seed(99)
    assert torch.equal(augment(images), twin(images))
    torch.save(augment.state_dict(), tmp_path / "state.pt")
    wanted = [augment(images) for _ in range(3)]
    other = Augment(MEAN, STD, cutout=4, generator_seed=4)
    assert not torch.equal(other(images), wanted[0])
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert all(torch.equal(other(images), batch) for batch in wanted)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_no_host_access_on_a_gpu(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """On fake CUDA tensors any read of a value (.item(), a shape that depends on data, a copy to the host) raises."""
    real_generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device: real_generator())  # a CUDA one needs a driver
    with FakeTensorMode():
        augment = Augment(MEAN, STD, cutout=16, device="cuda")
        images = torch.empty(64, 3, 32, 32, dtype=dtype, device="cuda")
        for out in (augment(images), augment.normalise(images)):
            assert out.device.type == "cuda"
            assert (out.shape, out.dtype) == (images.shape, torch.float32)
            assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
def test_captured_in_a_cuda_graph() -> None:
    images = random_images(64, 3, 32, 32).cuda()
    augment = Augment(MEAN, STD, cutout=16, device="cuda", generator_seed=1)
    augment(images)
    state = augment.state_dict()
    wanted = [augment(images) for _ in range(3)]
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(augment.generator)
    with torch.cuda.graph(graph):
        out = augment(images)
    augment.load_state_dict(state)
    for batch in wanted:
        graph.replay()
        assert torch.equal(out, batch)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop_padding": -1}, "crop_padding must be at least 0 pixels; got -1"),
        ({"cutout": -2}, "cutout must be at least 0 pixels; got -2"),
        ({"std": (0.2, 0.2)}, "one number per channel"),
        ({"std": (0.2, 0.2, 0.0)}, "std positive"),
    ],
)
def test_augment_refuses(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augment(**{"mean": MEAN, "std": STD} | arguments)
