"""Image folders as people have them: links, hidden files, odd names, turned photos, 16 bits, bombs."""

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastdarts.data import formats, load, memory, open_images
from fastdarts.data.images import fraction_of
from fastdarts.data.memory import Budget

RNG = np.random.default_rng(0)


def write(path: Path, array: np.ndarray | None = None, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (4, 6), np.uint8) if array is None else array).save(path, **how)
    return path


def test_hidden_and_tools_files_are_passed_over_at_any_depth_and_counted(tmp_path: Path, capsys: Any) -> None:
    for name in ("a/0.png", "a/deep/.thumbs/1.png", "a/@eaDir/2.png", "a/x/__MACOSX/3.png", "b/0.png", "b/._0.png"):
        write(tmp_path / name)
    for name in (".ipynb_checkpoints/x.png", "@eaDir/x.png"):
        write(tmp_path / name)
    (tmp_path / "b" / "notes.txt").write_text("")
    (tmp_path / "b" / "Thumbs.db").write_text("")
    (tmp_path / "b" / "gone.png").symlink_to("nowhere")
    data = load("imagefolder", tmp_path)
    assert (len(data), data.classes) == (2, ("a", "b"))
    line = capsys.readouterr().out.strip()
    assert line.startswith(f"{tmp_path}: 2 files in 2 classes; 9 passed over (")
    for words in ("4 of a tool", "3 hidden", "1 not an image", "1 a broken link"):
        assert words in line


def test_links_are_followed_once(tmp_path: Path, capsys: Any) -> None:
    write(tmp_path / "store" / "0.png")
    write(tmp_path / "store" / "1.png")
    train = tmp_path / "train"
    write(train / "b" / "0.png")
    (train / "a").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "again").symlink_to(tmp_path / "store")
    (train / "b" / "circle").symlink_to(train / "b")
    (train / "up").symlink_to(train)
    (train / "b" / "file.png").symlink_to(tmp_path / "linked.png")
    write(tmp_path / "linked.png")
    data = load("imagefolder", tmp_path)
    assert data.classes == ("a", "b")
    assert data.targets.tolist() == [0, 0, 1, 1]
    assert "linked to a folder above" in capsys.readouterr().out


def test_one_image_is_not_of_two_classes(tmp_path: Path) -> None:
    image = write(tmp_path / "a" / "0.png")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(ValueError, match=r"class folders a and b of .* are one folder"):
        load("imagefolder", tmp_path)
    (tmp_path / "b").unlink()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.png").symlink_to(image)
    with pytest.raises(ValueError, match=r"is the same file as .*one image cannot be of two classes"):
        load("imagefolder", tmp_path)


def test_a_limit_decodes_no_other_images(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(10):
            write(tmp_path / name / f"{number}.png", np.full((2, 2), 20 * number, np.uint8))
    everything = load("imagefolder", tmp_path)
    expected = fraction_of(everything, 4 / 20)
    kept = {int(value) // 20 for value in expected.images[expected.targets == 0].flatten()}
    for number in set(range(10)) - kept:
        (tmp_path / "a" / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    images = open_images("imagefolder", tmp_path, limit=4)
    assert torch.equal(images.targets, expected.targets)
    assert torch.equal(images.images, expected.images)
    assert len(open_images("digits", limit=100)) == 100


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
def test_exif_orientation(tmp_path: Path, number: int, kind: str) -> None:
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24] = (255, 0, 0)  # the upper left corner
    upright[16:, 24:] = (0, 0, 255)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[number]
    exif = Image.Exif()
    exif[0x0112] = number
    write(tmp_path / "a" / f"0.{kind}", np.ascontiguousarray(stored), exif=exif)
    write(tmp_path / "b" / f"0.{kind}", upright)
    data = load("imagefolder", tmp_path)  # without image_size: upright, they have one size
    assert data.images.shape[2:] == (32, 48)
    assert (data.images[0].int() - data.images[1].int()).abs().max() <= 30  # JPEG
    small = load("imagefolder", tmp_path, image_size=(8, 12))
    assert small.images[0, 0, 1, 1] > 200
    assert small.images[0, 2, 6, 10] > 200


def test_16_bits_keep_their_range(tmp_path: Path) -> None:
    values = RNG.integers(1000, 5096, (2, 40, 50)).astype(np.uint16)  # as of a camera with 12 bits
    for part, array in zip(("train", "test"), values, strict=True):
        for name in ("a", "b"):
            write(tmp_path / part / name / "0.png", array)
    train = load("imagefolder", tmp_path)
    assert train.grey_range is not None
    low, high = train.grey_range
    assert (low, high) == pytest.approx((1000, 5095), abs=60)
    for data, array in ((train, values[0]), (load("imagefolder", tmp_path, "test", train=train), values[1])):
        wanted = ((array.astype(float) - low) * 255 / (high - low)).round().clip(0, 255)
        assert np.abs(data.images[0, 0].numpy() - wanted).max() <= 1
    assert load("imagefolder", tmp_path, "test").grey_range == train.grey_range


def test_a_16_bit_pgm(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 24).astype(">u2").reshape(4, 6)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.pgm").write_bytes(b"P5 6 4 65535 " + values.tobytes())
    assert load("imagefolder", tmp_path).images[0, 0].tolist() == (values >> 8).tolist()


@pytest.mark.parametrize(
    "suffix", ["bmp", "gif", "tga", "pcx", "ico", "ppm", "sgi", "tif", "webp", "jp2", "dds", "qoi"]
)
def test_raster_formats(tmp_path: Path, suffix: str) -> None:
    if f".{suffix}" not in formats.suffixes():
        pytest.skip("this Pillow has it not")
    colour = np.full((16, 16, 3), 77, np.uint8)
    try:
        write(tmp_path / "a" / f"0.{suffix}", colour)
    except (KeyError, OSError, ValueError):
        pytest.skip("this Pillow does not write it")
    assert (load("imagefolder", tmp_path).images.float().mean() - 77).abs() < 3


def test_contents_pick_the_decoder_and_postscript_none(tmp_path: Path) -> None:
    assert not {".eps", ".ps", ".wmf", ".pdf", ".mpg"} & formats.suffixes()
    write(tmp_path / "a" / "0.png", format="JPEG")
    assert len(load("imagefolder", tmp_path)) == 1
    bad = tmp_path / "a" / "1.png"
    bad.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EndComments\n(x) run\n")
    with pytest.raises(ValueError, match=f"cannot read image {bad}: cannot identify"):
        load("imagefolder", tmp_path)


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 13000, 13000, 8, 2, 0, 0, 0)
    (tmp_path / "a").mkdir()
    bomb = tmp_path / "a" / "0.png"
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")))
    with pytest.raises(ValueError, match=f"{bomb}: it has 13000x13000 pixels, 169 million; at most 84 million"):
        load("imagefolder", tmp_path)


def test_memory_is_checked_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(3):
        write(tmp_path / "a" / f"{index}.png")
    with pytest.raises(MemoryError, match=r"3 images of 1x200000x200000 take 111.8 GiB of memory.*smaller image_size"):
        load("imagefolder", tmp_path, image_size=(200_000, 200_000))
    monkeypatch.setattr(memory, "available_bytes", lambda: 50.0)
    with pytest.raises(MemoryError, match="3 images of 1x4x6"):
        load("imagefolder", tmp_path)


def test_a_budget_is_shared_and_never_stuck() -> None:
    budget = Budget(10)
    with budget.part(4), budget.part(6):
        assert budget._used == 10
    with budget.part(1000):
        assert budget._used == 10
    assert budget._used == 0


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    try:
        write(folder / os.fsdecode(b"\xff.png"))
    except OSError:
        pytest.skip("this file system has no such names")
    write(tmp_path / "tea" / "0.png")
    data = load("imagefolder", tmp_path)
    assert data.classes == ("caf\\xe9", "tea")
    "".join(data.classes).encode()


def test_a_part_called_val_is_the_test_part(tmp_path: Path) -> None:
    """Take `val` where there is no `test`, if it holds the classes: ImageNet's images may be in one folder."""
    for name in ("train/a/0.png", "train/a/1.png", "train/b/0.png", "train/b/1.png", "val/a/0.png", "val/b/0.png"):
        write(tmp_path / name)
    assert [len(load("imagefolder", tmp_path, part, test_portion=0.5)) for part in ("train", "test")] == [4, 2]  # type: ignore[arg-type]
    write(tmp_path / "test" / "b" / "0.png")
    assert len(load("imagefolder", tmp_path, "test", test_portion=0.5)) == 1
    flat = tmp_path / "flat"
    for name in ("train/a/0.png", "train/a/1.png", "train/b/0.png", "train/b/1.png", "val/0.png"):
        write(flat / name)
    assert len(load("imagefolder", flat, "test", test_portion=0.5)) == 2


def test_a_portion_of_classes_without_a_test_part(tmp_path: Path) -> None:
    for name, count in (("a", 10), ("b", 20), ("c", 2)):
        for index in range(count):
            write(tmp_path / name / f"{index:02}.png")
    train, test = (load("imagefolder", tmp_path, split, test_portion=0.2) for split in ("train", "test"))  # type: ignore[arg-type]
    assert train.targets.bincount().tolist() == [8, 16, 1]
    assert test.targets.bincount().tolist() == [2, 4, 1]
    both = torch.cat([train.images, test.images]).flatten(1)
    assert len(both.unique(dim=0)) == 32
    assert torch.equal(load("imagefolder", tmp_path, "test", test_portion=0.2).images, test.images)
    assert len(load("imagefolder", tmp_path)) == 32
    write(tmp_path / "train" / "a" / "0.png")
    write(tmp_path / "test" / "a" / "0.png")
    assert len(load("imagefolder", tmp_path, test_portion=0.2)) == 1  # there is a test part
