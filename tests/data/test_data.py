"""Data sets, folders and Datasets as tensors; the split; the stream of batches."""

import io
import pickle
import tarfile
from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdarts.data import BatchStream, ImageData, from_dataset, load, split

RNG = np.random.default_rng(0)


def make_data(count: int = 10, classes: int = 2, published_order: bool = False) -> ImageData:
    """Images that hold their own index, class-sorted targets."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 1, 2, 3).contiguous()
    targets = torch.arange(count) * classes // count
    return ImageData(images, targets, tuple(map(str, range(classes))), (0.5,), (0.25,), published_order)


def random_image(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, np.uint8)


def write_image(path: Path, array: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


# --- ImageData


def test_image_data_moves_and_takes_subsets() -> None:
    data = make_data()
    part = data.subset(torch.tensor([7, 2]))
    assert part.images[:, 0, 0, 0].tolist() == [7, 2]
    assert part.targets.tolist() == [1, 0]
    assert (part.classes, part.mean, part.std) == (data.classes, data.mean, data.std)
    assert len(data.to("meta")) == 10
    assert data.to("meta").images.device.type == "meta"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": torch.zeros(10, 1, 2, 3, dtype=torch.int32)}, TypeError, "uint8 or float32; got torch.int32"),
        ({"images": torch.zeros(10, 2, 3)}, ValueError, r"\[N, C, H, W\].*got \[10, 2, 3\]"),
        ({"images": torch.zeros(0, 1, 2, 3)}, ValueError, "not empty"),
        ({"targets": torch.zeros(9)}, ValueError, r"\[10, ...\].*got \[9\]"),
        ({"mean": (0.1, 0.2)}, ValueError, "hold 1 numbers"),
        ({"std": (0.0,)}, ValueError, "std positive"),
    ],
)
def test_image_data_refuses_parts_that_do_not_fit(change: dict[str, Any], error: type, message: str) -> None:
    parts = vars(make_data()) | change
    with pytest.raises(error, match=message):
        ImageData(**parts)


# --- named data sets


def test_digits_parts_are_all_the_images_once() -> None:
    train, test = load("digits"), load("digits", split="test")
    source = load_digits()
    both = torch.cat([train.images, test.images])[:, 0].double() / 15
    assert sorted(map(tuple, both.flatten(1).tolist())) == sorted(map(tuple, source.data.tolist()))
    assert (len(train), len(test)) == (1442, 355)
    assert train.classes == tuple("0123456789")
    share = torch.bincount(test.targets) / torch.bincount(torch.cat([train.targets, test.targets]))
    assert ((share - 0.2).abs() < 1 / 170).all()  # every fifth of at least 174: off by less than one image
    assert torch.equal(load("digits").images, train.images)


def test_mean_and_std_are_those_of_the_training_images() -> None:
    train, test = load("digits"), load("digits", split="test")
    scaled = train.images.double() / 255
    assert train.mean == pytest.approx([scaled.mean().item()], rel=1e-12)
    assert train.std == pytest.approx([scaled.std(correction=0).item()], rel=1e-12)
    assert (test.mean, test.std) == (train.mean, train.std)
    other = ImageData(train.images, train.targets, train.classes, (0.1,), (0.2,))
    assert load("digits", split="test", train=other).mean == (0.1,)


def test_image_size_resizes_as_pillow_does() -> None:
    resized = load("digits", image_size=(12, 20)).images
    plain = load("digits").images
    for index in (0, 700):
        wanted = Image.fromarray(plain[index, 0].numpy()).resize((20, 12), Image.Resampling.BILINEAR)
        difference = resized[index, 0].int() - torch.tensor(np.asarray(wanted)).int()
        assert difference.abs().max() <= 1  # two passes, each rounded to an integer


def idx_file(path: Path, array: np.ndarray) -> None:
    """The format of MNIST: magic with type 8 (uint8) and the number of dimensions, big-endian sizes, values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(header + array.tobytes())


def write_standard_files(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, list[int]]:
    """Five images a file in torchvision's layout (with its checksums switched off); returns the training part."""
    labels = [3, 1, 4, 1, 5]
    if name in ("mnist", "fashionmnist"):
        folder = root / {"mnist": "MNIST", "fashionmnist": "FashionMNIST"}[name] / "raw"
        images = random_image(2, 5, 28, 28)
        for part, array in zip(("train", "t10k"), images, strict=True):
            idx_file(folder / f"{part}-images-idx3-ubyte", array)
            idx_file(folder / f"{part}-labels-idx1-ubyte", np.array(labels, np.uint8))
        return images[0][:, None], labels
    if name == "svhn":
        from scipy.io import savemat

        images = random_image(5, 3, 32, 32)
        for part in ("train", "test"):
            savemat(root / f"{part}_32x32.mat", {"X": images.transpose(2, 3, 1, 0), "y": np.array(labels)[:, None]})
        lists = {part: ["", f"{part}_32x32.mat", None] for part in ("train", "test")}
        monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", lists)
        return images, labels
    maker = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    folder = root / maker.base_folder
    folder.mkdir()
    train_names, test_names = ([file for file, _ in part] for part in (maker.train_list, maker.test_list))
    images = random_image(len(train_names) * 5, 3, 32, 32)
    key = "labels" if name == "cifar10" else "fine_labels"
    for index, file in enumerate(train_names + test_names):
        part = images[5 * index : 5 * index + 5] if file in train_names else random_image(5, 3, 32, 32)
        (folder / file).write_bytes(pickle.dumps({"data": part.reshape(5, -1), key: labels}))
    meta = {maker.meta["key"]: [f"class {index}" for index in range(10)]}
    (folder / maker.meta["filename"]).write_bytes(pickle.dumps(meta))
    monkeypatch.setattr(maker, "train_list", [[file, None] for file in train_names])
    monkeypatch.setattr(maker, "test_list", [[file, None] for file in test_names])
    monkeypatch.setattr(maker, "meta", {**maker.meta, "md5": None})
    return images, labels * len(train_names)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every download fails as it does without a network; returns the list of what was asked for."""
    asked: list[str] = []

    def fail(url: str, *args: object, **kwargs: object) -> None:
        asked.append(url)
        raise URLError("no network")

    for module in ("cifar", "mnist"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", fail)
    monkeypatch.setattr("torchvision.datasets.svhn.download_url", fail)
    return asked


@pytest.mark.parametrize("name", ["mnist", "fashionmnist", "cifar10", "cifar100", "svhn"])
def test_torchvision_sets_are_read_from_their_standard_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[str]
) -> None:
    images, labels = write_standard_files(name, tmp_path, monkeypatch)
    data = load(name, tmp_path)
    assert torch.equal(data.images, torch.from_numpy(images))
    assert data.images.is_contiguous()
    assert data.targets.tolist() == labels
    assert len(data.classes) == 10
    assert data.published_order
    if name == "cifar10":
        assert data.mean == (0.49139968, 0.48215827, 0.44653124)
        assert data.std == (0.24703233, 0.24348505, 0.26158768)
    else:
        channels = torch.from_numpy(images).double().transpose(0, 1).flatten(1) / 255
        assert data.mean == pytest.approx(channels.mean(1).tolist())
        assert data.std == pytest.approx(channels.std(1, correction=0).tolist())
    test = load(name, tmp_path, "test")
    assert len(test) == 5
    assert test.mean == data.mean
    assert no_network == []


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("mnist", "MNIST/raw/"),
        ("fashionmnist", "FashionMNIST/raw/"),
        ("cifar10", "cifar-10-batches-py/"),
        ("cifar100", "cifar-100-python/"),
        ("svhn", "_32x32.mat"),
    ],
)
def test_missing_data_set_says_where_the_files_go(name: str, files: str, tmp_path: Path, no_network: list[str]) -> None:
    with pytest.raises(FileNotFoundError, match=f"{name} is missing or damaged in {tmp_path}: put .*{files}.* there"):
        load(name, tmp_path)
    assert no_network  # a download was tried


@pytest.mark.parametrize("length", [0, 2, 7, 16, 500])
def test_truncated_data_set_is_told(
    length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[str]
) -> None:
    write_standard_files("mnist", tmp_path, monkeypatch)
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(FileNotFoundError, match="mnist is missing or damaged in"):
        load("mnist", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "cifar"}, "one of digits, .*imagefolder; got 'cifar'"),
        ({"dataset": "digits", "split": "valid"}, "'train' or 'test'; got 'valid'"),
        ({"dataset": "digits", "image_size": (0, 8)}, r"at least 1; got \(0, 8\)"),
        ({"dataset": "digits", "image_size": (8,)}, r"\(height, width\)"),
        ({"dataset": "cifar10"}, "cifar10 needs data_dir"),
    ],
)
def test_load_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(**arguments)


# --- image folders


@pytest.fixture(scope="module")
def some_cifar(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 300 images in the archive of CIFAR-10 as training part and 50 more as test part."""
    archive = shared_data / "cifar10_images.tar.xz"
    if not archive.is_file():
        pytest.skip(f"needs {archive}, which is absent")
    root = tmp_path_factory.mktemp("some_cifar")
    with tarfile.open(archive, "r|xz") as tar:  # as a stream, which need not be read to its end
        for index, member in enumerate(islice((member for member in tar if member.isfile()), 350)):
            _, name, file = member.name.split("/")
            member.name = f"{'train' if index < 300 else 'test'}/{name}/{file}"
            tar.extract(member, root, filter="data")
    return root


def test_folder_of_real_images(some_cifar: Path) -> None:
    train, test = load("imagefolder", some_cifar), load("imagefolder", some_cifar, "test")
    assert (len(train), len(test)) == (300, 50)
    reference = torchvision.datasets.ImageFolder(some_cifar / "train")
    assert train.classes == test.classes == tuple(reference.classes)
    for index, (image, target) in enumerate(reference):
        assert torch.equal(train.images[index], torch.tensor(np.asarray(image)).permute(2, 0, 1))
        assert train.targets[index] == target
    assert (test.mean, test.std) == (train.mean, train.std)
    # 300 of the published set's images: a mean varies by about 0.12 (between images) / sqrt(300)
    assert train.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=4 * 0.12 / 300**0.5)
    assert not train.published_order


def test_folder_without_train_holds_the_classes(tmp_path: Path) -> None:
    arrays = {name: random_image(5, 7) for name in ("b/x.png", "a/deeper/y.png", "a/z.PNG")}
    for name, array in arrays.items():
        write_image(tmp_path / name, array)
    (tmp_path / "a" / "notes.txt").write_text("passed over")
    (tmp_path / "a" / ".hidden.png").write_text("passed over")
    (tmp_path / ".cache").mkdir()
    data = load("imagefolder", tmp_path)
    assert data.classes == ("a", "b")
    assert data.targets.tolist() == [0, 0, 1]
    wanted = [arrays["a/deeper/y.png"], arrays["a/z.PNG"], arrays["b/x.png"]]
    assert torch.equal(data.images, torch.from_numpy(np.stack(wanted))[:, None])
    with pytest.raises(FileNotFoundError, match=f"no test images: put them into {tmp_path}/test/<class>/"):
        load("imagefolder", tmp_path, "test")


def test_folder_channels_and_modes(tmp_path: Path) -> None:
    grey, colour = random_image(4, 6), random_image(4, 6, 3)
    write_image(tmp_path / "grey" / "0.png", grey)
    deep = RNG.integers(0, 2**16, (4, 6), np.uint16)
    write_image(tmp_path / "grey" / "1.png", deep)
    write_image(tmp_path / "grey" / "2.png", grey > 127)
    data = load("imagefolder", tmp_path)
    assert data.images.shape == (3, 1, 4, 6)
    assert data.images[:, 0].tolist() == [grey.tolist(), (deep >> 8).tolist(), ((grey > 127) * 255).tolist()]

    write_image(tmp_path / "other" / "0.png", colour)
    see_through = np.concatenate([colour, np.full((4, 6, 1), 255, np.uint8)], 2)
    see_through[0, :, 3] = 0
    write_image(tmp_path / "other" / "1.png", see_through)
    Image.fromarray(colour).quantize(256).save(tmp_path / "other" / "2.png")
    data = load("imagefolder", tmp_path)
    assert data.images.shape == (6, 3, 4, 6)
    assert data.images[0].tolist() == [grey.tolist()] * 3
    assert torch.equal(data.images[3], torch.from_numpy(colour).permute(2, 0, 1))
    assert (data.images[4, :, 0] == 255).all()
    assert torch.equal(data.images[4, :, 1:], data.images[3, :, 1:])
    with Image.open(tmp_path / "other" / "2.png") as palette:
        assert torch.equal(data.images[5], torch.tensor(np.asarray(palette.convert("RGB"))).permute(2, 0, 1))


def test_folder_resizes(tmp_path: Path) -> None:
    small = random_image(9, 5, 3)
    write_image(tmp_path / "a" / "0.png", small)
    rows, columns = np.mgrid[0:600, 0:800]
    smooth = np.stack([rows * 255 / 599, columns * 255 / 799, (rows + columns) * 255 / 1398], 2).astype(np.uint8)
    write_image(tmp_path / "a" / "1.jpg", smooth, quality=95)
    data = load("imagefolder", tmp_path, image_size=(16, 24))
    wanted = Image.fromarray(small).resize((24, 16), Image.Resampling.BILINEAR)
    assert torch.equal(data.images[0], torch.tensor(np.asarray(wanted)).permute(2, 0, 1))
    wanted = Image.fromarray(smooth).resize((24, 16), Image.Resampling.BILINEAR)
    difference = data.images[1].int() - torch.tensor(np.asarray(wanted)).permute(2, 0, 1).int()
    assert difference.abs().max() <= 8  # JPEG, decoded at an eighth; one pixel here is 11 to 16 grey levels


@pytest.mark.parametrize("damage", ["truncated jpeg", "truncated png", "text", "empty"])
def test_unreadable_image_is_named(tmp_path: Path, damage: str) -> None:
    for index in range(3):
        write_image(tmp_path / "a" / f"{index}.png", random_image(32, 32, 3))
    kind = "jpeg" if damage == "truncated jpeg" else "png"
    buffer = io.BytesIO()
    Image.fromarray(random_image(32, 32, 3)).save(buffer, kind)
    content = {"text": b"no image", "empty": b""}.get(damage, buffer.getvalue()[: len(buffer.getvalue()) // 2])
    bad = tmp_path / "a" / f"1.{kind}"
    bad.write_bytes(content)
    with pytest.raises(ValueError, match=f"cannot read image {bad}: "):
        load("imagefolder", tmp_path)


def test_float_image_file_is_refused(tmp_path: Path) -> None:
    bad = write_image(tmp_path / "a" / "0.tif", np.zeros((4, 4), np.float32))
    with pytest.raises(ValueError, match=f"cannot read image {bad}: pixel mode F is not supported"):
        load("imagefolder", tmp_path)


def test_folder_of_several_sizes_names_the_first_that_differs(tmp_path: Path) -> None:
    for name, shape in {"a/0": (4, 6), "a/1": (4, 6), "b/0": (6, 4), "b/1": (5, 5)}.items():
        write_image(tmp_path / f"{name}.png", random_image(*shape))
    with pytest.raises(ValueError, match=f"{tmp_path}/b/0.png is 6x4, {tmp_path}/a/0.png is 4x6"):
        load("imagefolder", tmp_path)


def folder_missing(root: Path) -> Path:
    return root / "absent"


def folder_without_classes(root: Path) -> Path:
    write_image(root / "0.png", random_image(4, 4))
    return root


def folder_without_train(root: Path) -> Path:
    for part in ("Training", "test"):
        for name in ("oak", "birch"):
            write_image(root / part / name / "0.png", random_image(4, 4, 3))
    return root


def folder_with_empty_class(root: Path) -> Path:
    (root / "train" / "a").mkdir(parents=True)
    return root


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (folder_missing, FileNotFoundError, "absent does not exist"),
        (folder_without_classes, ValueError, "holds no class folders; wanted .*/<class>/<image files>"),
        (folder_without_train, ValueError, "has a folder Training but no folder train: training images belong into"),
        (folder_with_empty_class, ValueError, "class folder .*/train/a holds no image"),
    ],
)
def test_folder_refuses(make: Callable[[Path], Path], error: type, message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        load("imagefolder", make(tmp_path))


def test_test_class_must_be_known(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "test/b"):
        write_image(tmp_path / name / "0.png", random_image(4, 4))
    assert load("imagefolder", tmp_path, "test").targets.tolist() == [1]
    write_image(tmp_path / "test" / "c" / "0.png", random_image(4, 4))
    with pytest.raises(ValueError, match=r"classes that .*/train does not have: c"):
        load("imagefolder", tmp_path, "test")


def test_test_images_follow_the_training_images(tmp_path: Path) -> None:
    grey = random_image(4, 6)
    write_image(tmp_path / "train" / "a" / "0.png", random_image(4, 6, 3))
    file = write_image(tmp_path / "test" / "a" / "0.png", grey)
    test = load("imagefolder", tmp_path, "test")
    assert test.images.tolist() == [[grey.tolist()] * 3]
    assert len(test.mean) == 3
    write_image(file, random_image(5, 6, 3))
    with pytest.raises(ValueError, match=r"uint8 \[3, 5, 6\] \(C, H, W\), the training images torch.uint8 \[3, 4, 6\]"):
        load("imagefolder", tmp_path, "test")


# --- anyone's Dataset

COLOUR = random_image(4, 6, 3)


@pytest.mark.parametrize(
    ("image", "wanted"),
    [
        (Image.fromarray(COLOUR), COLOUR.transpose(2, 0, 1)),
        (Image.fromarray(COLOUR[:, :, 0]), COLOUR[None, :, :, 0]),
        (COLOUR, COLOUR.transpose(2, 0, 1)),
        (COLOUR[:, :, 0], COLOUR[None, :, :, 0]),
        (torch.tensor(COLOUR).permute(2, 0, 1), COLOUR.transpose(2, 0, 1)),
        (torch.tensor(COLOUR)[:, :, 0], COLOUR[None, :, :, 0]),
        (COLOUR / 255, (COLOUR / 255).transpose(2, 0, 1).astype(np.float32)),
        (torch.tensor(COLOUR).double() - 9, (COLOUR.astype(np.float32) - 9)),
    ],
    ids=["PIL", "PIL grey", "numpy", "numpy 2-d", "tensor", "tensor 2-d", "numpy float", "tensor float, any channels"],
)
def test_dataset_images(image: Any, wanted: np.ndarray) -> None:
    data = from_dataset([(image, 0), (image, np.int64(2)), (image, torch.tensor(1))])
    assert torch.equal(data.images, torch.from_numpy(np.stack([wanted] * 3)))
    assert data.targets.tolist() == [0, 2, 1]
    assert data.targets.dtype == torch.int64
    assert data.classes == ("0", "1", "2")
    if data.images.dtype == torch.float32:
        assert (set(data.mean), set(data.std)) == ({0.0}, {1.0})
    else:
        channels = torch.from_numpy(wanted).double().flatten(1) / 255
        assert data.mean == pytest.approx(channels.mean(1).tolist())


@pytest.mark.parametrize(
    ("target", "dtype", "shape"),
    [
        (torch.tensor([0, 1, 1]), torch.int64, (2, 3)),
        (torch.tensor([0.0, 1.0], dtype=torch.float64), torch.float32, (2, 2)),
        (1.5, torch.float32, (2,)),
        (np.ones((2, 2), np.float32), torch.float32, (2, 2, 2)),
        ([0.25, 0.75], torch.float32, (2, 2)),
    ],
)
def test_dataset_targets_for_other_losses(target: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    data = from_dataset([(COLOUR, target)] * 2)
    assert (data.targets.dtype, tuple(data.targets.shape), data.classes) == (dtype, shape, ())
    assert torch.equal(data.targets[1], torch.as_tensor(target).to(dtype))


def test_dataset_keeps_class_names_and_takes_statistics_of_training() -> None:
    class Named(list):  # a list has __len__ and __getitem__, all that a map-style Dataset needs
        classes = ("cat", "dog")

    train = from_dataset(Named([(COLOUR, 1)]))
    assert train.classes == ("cat", "dog")
    assert from_dataset(Named([(COLOUR // 2, 1)]), train).mean == train.mean
    with pytest.raises(ValueError, match=r"torch.float32 \[3, 4, 6\].*training images torch.uint8 .*must be alike"):
        from_dataset(Named([(COLOUR / 2, 1)]), train)
    with pytest.raises(ValueError, match=r"classes has 2 names, but targets go up to 2"):
        from_dataset(Named([(COLOUR, 2)]))


def test_torchvision_image_folder_as_dataset(some_cifar: Path) -> None:
    ours = load("imagefolder", some_cifar)
    data = from_dataset(torchvision.datasets.ImageFolder(some_cifar / "train"))
    assert torch.equal(data.images, ours.images)
    assert torch.equal(data.targets, ours.targets)
    assert (data.classes, data.mean, data.std) == (ours.classes, ours.mean, ours.std)


def test_constant_channel_has_standard_deviation_one() -> None:
    assert from_dataset([(np.full((4, 4), 51, np.uint8), 0)]).std == (1.0,)


GOOD = (COLOUR, 0)


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        (iter([GOOD]), TypeError, "map-style Dataset with __len__ and __getitem__ is needed"),
        ([], ValueError, "Dataset is empty"),
        ([GOOD, COLOUR], TypeError, r"dataset\[1\]: wanted a pair \(image, target\), got ndarray"),
        ([GOOD, ("a.png", 0)], TypeError, r"dataset\[1\]: image must be a PIL image.*got str"),
        ([GOOD, (COLOUR[:3], 0)], ValueError, r"dataset\[1\]: image is torch.uint8 \[3, 3, 6\].*\[3, 4, 6\]"),
        ([GOOD, (COLOUR / 255, 0)], ValueError, r"dataset\[1\]: image is torch.float32"),
        ([GOOD, (COLOUR[0, 0], 0)], ValueError, r"dataset\[1\]: image must have 2 or 3 dimensions; got \[3\]"),
        ([GOOD, (COLOUR.astype(int), 0)], TypeError, r"dataset\[1\]: image must be uint8 or floating; got torch.int64"),
        ([GOOD, (COLOUR, "cat")], TypeError, r"dataset\[1\]: target must be .*got str"),
        ([GOOD, (COLOUR, -1)], ValueError, r"dataset\[1\]: class index must be at least 0; got -1"),
        ([GOOD, (COLOUR, 1.5)], ValueError, r"dataset\[1\]: target is torch.float32 \[\].*torch.int64 \[\]"),
        ([GOOD, (Image.new("F", (6, 4)), 0)], ValueError, r"dataset\[1\]: pixel mode F"),
    ],
)
def test_dataset_refuses(dataset: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        from_dataset(dataset)


def test_error_inside_the_dataset_names_the_index() -> None:
    class Broken(list):
        def __getitem__(self, index: Any) -> Any:
            if index == 3:
                raise OSError("disk says no")
            return GOOD

    with pytest.raises(ValueError, match=r"dataset\[3\]: disk says no"):
        from_dataset(Broken([None] * 5))


# --- split


def test_published_order_is_cut_without_shuffling() -> None:
    train, valid = split(make_data(9, published_order=True), 0.5)
    assert train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]  # floor, as the original
    assert valid.images[:, 0, 0, 0].tolist() == [4, 5, 6, 7, 8]


def test_other_orders_are_split_class_by_class() -> None:
    data = make_data(120, classes=3)
    train, valid = split(data, 0.3, seed=5)
    ours, theirs = (set(half.images[:, 0, 0, 0].tolist()) for half in (train, valid))
    assert ours | theirs == set(range(120))
    assert not ours & theirs
    assert torch.bincount(train.targets).tolist() == [12, 12, 12]
    assert torch.equal(train.targets, train.images[:, 0, 0, 0].long() * 3 // 120)
    assert torch.equal(split(data, 0.3, seed=5)[0].images, train.images)
    assert not torch.equal(split(data, 0.3, seed=6)[0].images, train.images)


def test_split_of_small_classes_and_of_targets_that_are_no_classes() -> None:
    train, valid = split(make_data(4, classes=2), 0.9)
    assert train.targets.tolist() == valid.targets.tolist() == [0, 1]
    images = torch.rand(10, 1, 2, 2)
    train, valid = split(ImageData(images, torch.rand(10, 3), (), (0.0,), (1.0,)), 0.7)
    assert (len(train), len(valid)) == (7, 3)


@pytest.mark.parametrize(
    ("data", "portion", "message"),
    [
        (make_data(), 0.0, "between 0 and 1, both excluded; got 0.0"),
        (make_data(), 1.0, "between 0 and 1"),
        (make_data(3, 3), 0.5, "class '0' has 1 image"),
        (make_data(4, published_order=True), 0.2, "0.2 of 4 images leaves one half empty"),
    ],
)
def test_split_refuses(data: ImageData, portion: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split(data, portion)


# --- batches


def indices(stream: BatchStream, batches: int) -> list[list[int]]:
    return [stream.next()[0][:, 0, 0, 0].tolist() for _ in range(batches)]


def test_each_pass_is_a_fresh_permutation() -> None:
    stream = BatchStream(make_data(10), 4, seed=1)
    assert stream.batches_per_epoch == 3
    passes = [indices(stream, 3) for _ in range(20)]
    assert all([len(batch) for batch in one] == [4, 4, 2] for one in passes)
    assert all(sorted(chain(*one)) == list(range(10)) for one in passes)
    assert len({str(one) for one in passes}) == 20
    # each image is first in 1 of 10 passes: over 2000 passes 200 on average, standard deviation 13.4
    stream = BatchStream(make_data(10), 10, seed=2)
    firsts = np.bincount([batch[0] for batch in indices(stream, 2000)], minlength=10)
    assert (abs(firsts - 200) < 5 * 13.4).all()


def test_targets_go_with_their_images_and_sizes_are_those_of_the_paper() -> None:
    images, targets = BatchStream(make_data(100, 10), 64, seed=0).next()
    assert torch.equal(images[:, 0, 0, 0].long() * 10 // 100, targets)
    paper = BatchStream(make_data(1).subset(torch.zeros(25000, dtype=torch.long)), 64, seed=0)
    sizes = [len(paper.next()[1]) for _ in range(paper.batches_per_epoch)]
    assert sizes == [64] * 390 + [40]


def test_drop_last_and_batches_larger_than_the_data() -> None:
    stream = BatchStream(make_data(10), 4, seed=1, drop_last=True)
    assert stream.batches_per_epoch == 2
    assert [len(batch) for batch in indices(stream, 5)] == [4] * 5
    stream = BatchStream(make_data(3), 8, seed=1)
    assert (stream.batches_per_epoch, len(stream.next()[0])) == (1, 3)


def test_order_depends_on_the_seed_alone() -> None:
    first = indices(BatchStream(make_data(), 3, seed=7), 9)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 - what must not matter
    assert indices(BatchStream(make_data(), 3, seed=7), 9) == first
    assert indices(BatchStream(make_data(), 3, seed=8), 9) != first


@pytest.mark.parametrize("done", [0, 1, 2, 3, 4, 7])
def test_stream_continues_exactly(done: int, tmp_path: Path) -> None:
    stream = BatchStream(make_data(), 4, seed=3)
    indices(stream, done)
    torch.save(stream.state_dict(), tmp_path / "state.pt")
    wanted = indices(stream, 7)
    other = BatchStream(make_data(), 4, seed=0)
    indices(other, 2)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert indices(other, 7) == wanted


def test_stream_refuses() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        BatchStream(make_data(), 0, seed=0)
    with pytest.raises(ValueError, match="seed must be at least 0; got -1"):
        BatchStream(make_data(), 1, seed=-1)
    with pytest.raises(ValueError, match="batch_size 11 with drop_last needs as many images; the data have 10"):
        BatchStream(make_data(), 11, seed=0, drop_last=True)
    with pytest.raises(ValueError, match="a stream of 10 images; this one has 9"):
        BatchStream(make_data(9), 1, seed=0).load_state_dict(BatchStream(make_data(), 1, seed=0).state_dict())


def test_stream_reads_nothing_back_from_a_gpu() -> None:
    """On fake CUDA tensors a copy to the host or a shape that depends on data raises."""
    with FakeTensorMode():
        stream = BatchStream(make_data().to("cuda"), 4, seed=3)
        shapes = [(images.shape[0], targets.device.type) for images, targets in (stream.next() for _ in range(4))]
    assert shapes == [(4, "cuda"), (4, "cuda"), (2, "cuda"), (4, "cuda")]


@pytest.mark.gpu
def test_batches_are_the_same_on_the_gpu() -> None:
    stream = BatchStream(make_data().to("cuda"), 4, seed=3)
    images, targets = stream.next()
    assert images.is_cuda
    assert targets.is_cuda
    wanted, _ = BatchStream(make_data(), 4, seed=3).next()
    assert torch.equal(images.cpu(), wanted)
