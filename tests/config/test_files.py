"""Atomic writes: the old file or the new one, and a full disk by its name."""

import errno
import os
from pathlib import Path

import pytest

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
