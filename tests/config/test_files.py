"""Atomic writes: the old file or the new one, and a full disk by its name."""

import errno
import os
from pathlib import Path

import pytest

from fastdarts.config import files
from fastdarts.config.files import DiskFullError, write_atomically


@pytest.mark.parametrize("content", ["täxt", "täxt".encode(), lambda file: file.write("täxt".encode())])
def test_text_bytes_and_functions(tmp_path, content):
    path = tmp_path / "new folder" / "file"
    write_atomically(path, content)
    assert path.read_bytes() == "täxt".encode()
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_names_the_file_and_keeps_the_old_one(tmp_path, monkeypatch, code):
    path = tmp_path / "checkpoint.pt"
    write_atomically(path, "old")

    def full(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match=f"disk is full: {path} could not be written"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_device_without_room(tmp_path):
    def fill(file):
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")

    with pytest.raises(DiskFullError, match=str(tmp_path / "a")):
        write_atomically(tmp_path / "a", fill)


def test_a_failing_writer_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(file):
        file.write(b"half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_other_errors_stay_what_they_are(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        write_atomically(tmp_path / "file" / "below", "x")


def test_each_writer_has_a_temporary_file_of_its_own(tmp_path):
    """Two writers at once: the file is one of theirs, never a file of both."""
    path = tmp_path / "file"

    def outer(file):
        file.write(b"outer, ")
        write_atomically(path, b"inner")
        file.write(b"to its end")

    write_atomically(path, outer)
    assert path.read_bytes() == b"outer, to its end"
    assert os.listdir(tmp_path) == ["file"]


def test_nothing_that_lies_there_is_written_through(tmp_path, monkeypatch):
    """A link or a pipe under the temporary name is refused, not followed and not waited for."""
    monkeypatch.setattr(files, "temporary_name", lambda name: ".taken")
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".taken").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "file", "x")
    assert victim.read_text() == "mine"
    (tmp_path / ".taken").unlink()
    os.mkfifo(tmp_path / ".taken")
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "file", "x")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_the_mode_is_kept(tmp_path, mode):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(mode)
    write_atomically(path, "new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", mode)


def test_a_new_file_has_the_mode_that_the_mask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    target = tmp_path / "other" / "target"
    link = tmp_path / "link"
    link.symlink_to(Path("other") / "target")
    for text in ("first, target is made", "second"):
        target.parent.mkdir(exist_ok=True)
        write_atomically(link, text)
        assert link.is_symlink()
        assert target.read_text() == text
        assert os.listdir(target.parent) == ["target"]


def test_pipes_folders_and_circles_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for name, what in (("pipe", "a pipe"), ("folder", "a folder"), ("circle", "a link to itself")):
        with pytest.raises(OSError, match=f"it is {what}.*{name}"):
            write_atomically(tmp_path / name, "x")


def test_text_that_has_no_utf8_is_escaped(tmp_path):
    write_atomically(tmp_path / "file", os.fsdecode(b"caf\xe9"))
    assert (tmp_path / "file").read_text() == "caf\\udce9"


def test_what_killed_writers_left_is_removed(tmp_path):
    (tmp_path / files.temporary_name("checkpoint.pt")).write_text("half")
    (tmp_path / ".hidden").write_text("mine")
    files.remove_temporary_files(tmp_path)
    assert os.listdir(tmp_path) == [".hidden"]
