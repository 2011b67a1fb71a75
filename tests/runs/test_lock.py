"""One process in a run's folder: living ones keep others out, dead ones do not."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_search import tiny_config, tiny_images

from fastdarts.runs import lock
from fastdarts.runs.lock import FolderInUseError, check_free, locked
from fastdarts.search import search


@contextmanager
def changed_lock(folder: Path, **changes: Any):
    """The folder's lock file as another process would have written it."""
    path = folder / lock.NAME
    path.write_text(json.dumps(lock.this_process() | changes))
    yield path
    path.unlink(missing_ok=True)


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_living_process_keeps_others_out(tmp_path: Path) -> None:
    with locked(tmp_path):
        sentence = rf"{tmp_path} is in use by process {os.getpid()} on .* since .*; choose another folder or wait"
        with pytest.raises(FolderInUseError, match=sentence), locked(tmp_path):
            pass
        with pytest.raises(FolderInUseError, match=sentence):
            check_free(tmp_path)
    check_free(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("changes", ["dead", {"started": "1"}, {"boot": "another", "pid": 1}])
def test_locks_of_dead_processes_are_taken_over(tmp_path: Path, changes: Any) -> None:
    changes = {"pid": dead_pid()} if changes == "dead" else changes
    with changed_lock(tmp_path, **changes) as path:
        check_free(tmp_path)
        assert path.exists()
        with locked(tmp_path):
            assert json.loads(path.read_text())["pid"] == os.getpid()
        assert not path.exists()


@pytest.mark.parametrize("changes", [{"host": "another"}, {"namespace": "pid:[1]"}])
def test_what_cannot_be_seen_from_here_is_not_taken(tmp_path: Path, changes: Any) -> None:
    with changed_lock(tmp_path, **changes) as path:
        with pytest.raises(FolderInUseError, match=f"or if that process is gone, remove {path}"), locked(tmp_path):
            pass
        assert path.exists()


def test_a_folder_in_which_nothing_was_written_goes_again(tmp_path: Path) -> None:
    for content in (None, "kept"):
        with locked(tmp_path / "run"):
            if content:
                (tmp_path / "run" / content).touch()
    assert (tmp_path / "run" / "kept").exists()
    with locked(tmp_path / "empty"):
        pass
    assert not (tmp_path / "empty").exists()
    (tmp_path / "mine").mkdir()
    with locked(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").exists()


def test_a_lock_that_was_never_written_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / lock.NAME
    path.write_text("")
    os.utime(path, (1, 1))
    with locked(tmp_path):
        assert path.read_text()


def test_only_one_of_many_takes_a_dead_lock_over(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from fastdarts.runs.lock import FolderInUseError, locked
try:
    with locked(Path(sys.argv[1])):
        print("mine", flush=True)
        time.sleep(3)
except FolderInUseError:
    print("in use")
"""
    with changed_lock(tmp_path, pid=dead_pid()):
        processes = [
            subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
            for _ in range(4)
        ]
        said = [process.communicate()[0].strip() for process in processes]
    # One that starts after another's end gets the folder, too; with a loaded machine that is no mistake.
    assert "mine" in said
    assert set(said) <= {"mine", "in use"}


def test_a_search_holds_its_folder_from_first_to_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = []

    def second(metrics: Any, network: Any) -> None:
        for resume in (False, True):
            with pytest.raises(FolderInUseError, match="in use by process"):
                search(tiny_config(tmp_path, resume=resume, epochs=1), train=tiny_images())
            refused.append(resume)

    def write(*arguments: Any) -> None:
        assert (arguments[-1] / lock.NAME).exists()

    monkeypatch.setattr("fastdarts.search._write_results", write)
    search(tiny_config(tmp_path, epochs=1), train=tiny_images(), callbacks=[second])
    assert refused == [False, True]
    assert not (tmp_path / lock.NAME).exists()
