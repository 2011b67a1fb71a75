"""Images streamed from files: the batches of memory, in a seeded order that goes on anywhere, in bounded memory."""

import io
import itertools
import multiprocessing
import os
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from streamed_files import picture, write_folder, write_shards
from torch import Tensor

from fastdarts.data import BatchStream, ImageData, StreamedImages, Streaming, memory, open_images, split
from fastdarts.data.images import first_images, fraction_of, in_order

ALWAYS = Streaming("always", workers=2)
SIZE = 12, 16


def assert_same(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


def test_batches_are_those_of_memory(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, 41)
    streamed = open_images("imagefolder", folder, image_size=SIZE, streaming=ALWAYS)
    kept = open_images("imagefolder", folder, image_size=SIZE)
    assert isinstance(streamed, StreamedImages)
    assert isinstance(kept, ImageData)
    assert (streamed.shape, streamed.classes, len(streamed)) == (kept.shape, kept.classes, len(kept))
    assert (streamed.mean, streamed.std) == (kept.mean, kept.std)
    ours, theirs = BatchStream(streamed, 8, seed=3), BatchStream(kept, 8, seed=3)
    for _ in range(2 * ours.batches_per_epoch + 1):
        assert_same(ours.next(), theirs.next())
    for ours_part, theirs_part in zip(split(streamed, 0.5, 1), split(kept, 0.5, 1), strict=True):
        assert_same(first_images(ours_part, 100), first_images(theirs_part, 100))


def test_deep_grey_images_have_the_range_of_memory(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"class{number % 2}").mkdir(exist_ok=True)
        values = np.random.default_rng(number).integers(1000, 5000, (20, 26), np.uint16)
        Image.fromarray(values).save(tmp_path / f"class{number % 2}" / f"{number}.png")
    streamed, kept = (open_images("imagefolder", tmp_path, streaming=how) for how in (ALWAYS, Streaming("never")))
    assert (streamed.grey_range, streamed.mean, streamed.shape) == (kept.grey_range, kept.mean, (1, 20, 26))
    assert_same(first_images(streamed, 6), first_images(kept, 6))


def test_given_statistics_spare_the_first_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StreamedImages, "fetch", None)
    given = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    folder = write_folder(tmp_path, 6)
    for how in (ALWAYS, Streaming("never")):
        images = open_images("imagefolder", folder, image_size=SIZE, streaming=how, statistics=given)
        assert (images.mean, images.std) == given


def test_a_stream_goes_on_anywhere(tmp_path: Path) -> None:
    """The state counts batches that were returned, not those that processes have ready."""
    images = open_images("imagefolder", write_folder(tmp_path, 20), image_size=SIZE, streaming=ALWAYS)
    whole = BatchStream(images, 6, seed=5, drop_last=True)
    batches, states = [], [whole.state_dict()]
    for _ in range(8):
        batches.append(whole.next())
        states.append(whole.state_dict())
    for place in (0, 2, 3, 5):  # at the start, in an epoch, between two
        again = BatchStream(images, 6, seed=0, drop_last=True)
        again.load_state_dict(states[place])
        for wanted in batches[place : place + 3]:
            assert_same(again.next(), wanted)


def test_ranks_share_out_streamed_batches(tmp_path: Path) -> None:
    """The rows of two ranks are those of one process; the last batch of a pass, of one image, leaves the first none."""
    images = open_images("imagefolder", write_folder(tmp_path, 13), image_size=SIZE, streaming=ALWAYS)
    whole = BatchStream(images, 6, seed=5)
    parts = [BatchStream(images, 6, seed=5, rank=rank, ranks=2) for rank in (0, 1)]
    for _ in range(4):
        pixels, targets = whole.next()
        ours = [part.next() for part in parts]
        assert_same(
            (torch.cat([batch for batch, _ in ours]), torch.cat([labels for _, labels in ours])), (pixels, targets)
        )
        assert sum(part.share.weight for part in parts) == pytest.approx(2)
        assert [part.state_dict() for part in parts] == 2 * [whole.state_dict()]


def test_a_stream_leaves_global_random_numbers_alone(tmp_path: Path) -> None:
    images = open_images("imagefolder", write_folder(tmp_path, 6), image_size=SIZE, streaming=ALWAYS)
    before = torch.get_rng_state()
    BatchStream(images, 3, seed=0).next()
    assert torch.equal(torch.get_rng_state(), before)


def test_only_so_many_batches_wait(tmp_path: Path) -> None:
    images = open_images("imagefolder", write_folder(tmp_path, 30), image_size=SIZE, streaming=ALWAYS)
    assert isinstance(images, StreamedImages)
    asked = 0

    def endless():
        nonlocal asked
        for number in itertools.count():
            asked += 1
            yield torch.tensor([number % 30, (number + 1) % 30])

    batches = images.fetch(endless())
    for taken in range(1, 10):
        next(batches)
        assert asked <= taken + images.workers * 2
    assert images.bytes_ahead(2) == 2 * 2 * 2 * 3 * 12 * 16


def test_chosen_by_room_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path, 6, test=3)
    needed = 6 * 3 * 12 * 16
    kept = open_images("imagefolder", folder, image_size=SIZE, streaming=Streaming(room=needed))
    streamed = open_images("imagefolder", folder, image_size=SIZE, streaming=Streaming(room=needed - 1, workers=1))
    test = open_images("imagefolder", folder, "test", SIZE, train=streamed, streaming=Streaming(room=0, workers=1))
    assert (type(kept), type(streamed), type(test)) == (ImageData, StreamedImages, StreamedImages)
    assert test.mean == streamed.mean
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{folder / 'train'}: 6 files in 3 classes; in memory, 0.00 GiB"
    assert lines[1].startswith(f"{folder / 'train'}: 6 files in 3 classes; streamed by 1 processes (0.00 GiB decoded; ")
    assert open_images("imagefolder", folder, streaming=Streaming("never", room=0)).shape == (3, 20, 26)


def test_shards_hold_the_same_images(tmp_path: Path) -> None:
    folder = open_images("imagefolder", write_folder(tmp_path / "folder", 12), image_size=SIZE)
    shards = open_images("imagefolder", write_shards(tmp_path / "tar", 12), image_size=SIZE, streaming=ALWAYS)
    kept = open_images("imagefolder", tmp_path / "tar", image_size=SIZE)
    assert shards.classes == ("0", "1", "2")
    assert_same(first_images(shards, 12), first_images(kept, 12))
    by_content = {image.numpy().tobytes(): int(label) for image, label in zip(*first_images(folder, 12), strict=True)}
    assert {i.numpy().tobytes(): int(label) for i, label in zip(*first_images(shards, 12), strict=True)} == by_content
    (tmp_path / "tar" / "train" / "classes.txt").write_text("cat\ndog\nowl\n")
    assert open_images("imagefolder", tmp_path / "tar", image_size=SIZE).classes == ("cat", "dog", "owl")


def test_shards_of_webdataset_are_read(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="needs webdataset, which writes such shards")
    (tmp_path / "train").mkdir()
    with webdataset.ShardWriter(str(tmp_path / "train" / "%04d.tar"), maxcount=4, verbose=0) as writer:
        for number in range(10):
            writer.write({"__key__": f"sample{number:03d}", "png": picture(number), "cls": number % 2})
    found = open_images("imagefolder", tmp_path, test_portion=0.0)
    assert found.targets.tolist() == [number % 2 for number in range(10)]
    assert np.array_equal(first_images(found, 10)[0][7].permute(1, 2, 0), np.asarray(picture(7)))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, 9)
    images = open_images("imagefolder", folder, image_size=SIZE, streaming=ALWAYS)
    bad = folder / "train" / "class1" / "000004.jpg"
    bad.write_bytes(bad.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"^cannot read image .*class1/000004.jpg: .*(?i:truncated)") as caught:
        list(in_order(images, 2))
    assert "Traceback" not in str(caught.value)


def test_sizes_that_differ_are_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, 9)
    picture(0, 21, 26).save(folder / "train" / "class2" / "other.jpg")
    with pytest.raises(ValueError, match=r"one size unless .*: .*other.jpg is 21x26, the first is 20x26"):
        open_images("imagefolder", folder, streaming=ALWAYS)


def test_too_little_shared_memory_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = open_images("imagefolder", write_folder(tmp_path, 6), image_size=SIZE, streaming=ALWAYS)
    monkeypatch.setattr("fastdarts.data.streamed.shared_bytes", lambda: 100.0)
    with pytest.raises(MemoryError, match=r"2 workers keep .* give fewer workers.*--shm-size"):
        first_images(images, 6)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.jpg": None}, "sample a has no class index"),
        ({"a.jpg": None, "a.cls": b"cat"}, "whole number from 0; got b'cat'"),
        ({"a.jpg": None, "a.png": None, "a.cls": b"1"}, "sample a has two images"),
        ({"a.cls": b"1"}, "hold no image"),
    ],
)
def test_wrong_shards(tmp_path: Path, members: dict[str, bytes | None], message: str) -> None:
    (tmp_path / "train").mkdir()
    with tarfile.open(tmp_path / "train" / "a.tar", "w") as archive:
        for name, content in members.items():
            encoded = io.BytesIO()
            picture(0).save(encoded, "JPEG")
            content = encoded.getvalue() if content is None else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    with pytest.raises(ValueError, match=message):
        open_images("imagefolder", tmp_path)


def test_a_fraction_keeps_the_shares_of_classes(tmp_path: Path) -> None:
    images = ImageData(torch.zeros(110, 1, 2, 2).byte(), torch.tensor([0] * 100 + [1] * 10), ("a", "b"), (0.0,), (1.0,))
    some = fraction_of(images, 0.25, seed=1)
    assert torch.bincount(some.targets).tolist() == [25, 2]
    assert torch.equal(some.targets, fraction_of(images, 0.25, seed=1).targets)
    weights, alphas = split(fraction_of(images, 0.125), 0.8)
    assert (len(weights), len(alphas)) == (11, 3)  # 10 % and 2.5 % of the large class, one image at least of the small
    with pytest.raises(ValueError, match=r"above 0 and at most 1; got 1\.5"):
        fraction_of(images, 1.5)


def test_signals_of_a_group_leave_the_workers(tmp_path: Path) -> None:
    """Slurm and terminals signal every process of a job: the parent saves its state, so its workers must live."""
    images = open_images("imagefolder", write_folder(tmp_path, 12), image_size=SIZE, streaming=ALWAYS)
    stream = BatchStream(images, 2, seed=0)
    for _ in range(4):  # from each process: before its first batch it may not have set its handlers yet
        stream.next()
    workers = multiprocessing.active_children()
    assert len(workers) >= 2
    for worker in workers:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            assert worker.pid is not None
            os.kill(worker.pid, number)
    for _ in range(20):
        stream.next()


def rss() -> int:
    return int(memory._lines("/proc/self/statm")[0].split()[1]) * 4096


@pytest.mark.long
def test_a_hundred_thousand_images_in_flat_memory(tmp_path: Path) -> None:
    """The parent's memory after 100,000 images is what it was after 10,000."""
    part = tmp_path / "train"
    encoded = []
    for number in range(200):
        picture(number).save(tmp_path / "x.jpg")
        encoded.append((tmp_path / "x.jpg").read_bytes())
    for number in range(100_000):
        folder = part / f"{number % 100:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:06d}.jpg").write_bytes(encoded[number % 200])
    images = open_images("imagefolder", tmp_path, image_size=SIZE, streaming=ALWAYS)
    stream = BatchStream(images, 100, seed=0)
    sizes = []
    for step in range(stream.batches_per_epoch):
        stream.next()
        if step % 100 == 99:
            sizes.append(rss())
    assert max(sizes[1:]) - sizes[0] < 8 * 2**20, [size >> 20 for size in sizes]
