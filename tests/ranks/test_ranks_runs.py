"""Runs on several ranks: one writer, resuming on other numbers of ranks, signals, ranks that die."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import Starter, starter
from streamed_files import write_folder

# Three steps an epoch, the last of them on fewer images.
DIGITS = "--layers 1 --init-channels 2 --epochs 2 --batch-size 256 --device cpu --deterministic --save-every-steps 1"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    with starter(tmp_path_factory.mktemp("said")) as found:
        yield found


def search_line(out: Path, *more: str) -> list[str]:
    return ["search", *DIGITS.split(), "--out", str(out), *more]


def checkpoint_of(out: Path) -> dict[str, Any]:
    return torch.load(out / "checkpoint.pt")


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Bit for bit: alphas of all epochs, weights, running statistics of all ranks."""
    with np.load(ours / "alphas.npz") as a, np.load(theirs / "alphas.npz") as b:
        assert all(np.array_equal(a[name], b[name]) for name in ("normal", "reduce"))
    assert_same_weights(ours, theirs)


def assert_same_weights(ours: Path, theirs: Path) -> None:
    """Bit for bit: weights, their average if there is one, running statistics of all ranks."""
    a, b = checkpoint_of(ours), checkpoint_of(theirs)
    for part in ("network", "average"):
        assert all(torch.equal(tensor, b[part][name]) for name, tensor in (a.get(part) or {}).items())
    for mine, other in zip(a.get("ranks", []), b.get("ranks", []), strict=True):
        assert all(torch.equal(tensor, other["buffers"][name]) for name, tensor in mine["buffers"].items())


@pytest.fixture(scope="module")
def whole(started: Starter, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Uninterrupted runs by their number of ranks."""
    found = {}
    for size in (1, 2):
        found[size] = tmp_path_factory.mktemp("whole") / str(size)
        ended = started.run(size, search_line(found[size]))
        assert ended.codes == [0] * size, ended.said
        started.seconds = ended.seconds
        assert all(said == "" for said in ended.said[1:])
    return found


def test_one_rank_writes_and_prints(whole: dict[int, Path], started: Starter, tmp_path: Path) -> None:
    """A second run gives the same bits; the line of memory speaks of both processes."""
    again = started.run(2, search_line(tmp_path / "again"))
    assert again.said[1] == ""
    assert "epoch 2/2" in again.said[0]
    assert "in each of 2 processes" in again.said[0]
    assert_same_run(tmp_path / "again", whole[2])
    lines = (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1]
    assert not (tmp_path / "again" / ".lock").exists()


def test_a_batch_that_does_not_divide_is_refused(started: Starter, tmp_path: Path) -> None:
    ended = started.run(2, search_line(tmp_path / "run", "--batch-size", "9"))
    assert ended.codes == [2, 2]
    assert "batch_size is that of all 2 processes and must be a multiple of 2, such as 8 and 10; got 9" in ended.said[0]
    assert ended.said[1] == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("rank", "step"), [pytest.param(0, 1, marks=pytest.mark.slow), (1, 4)])
def test_a_signal_to_any_rank_saves_and_ends_all(
    rank: int, step: int, whole: dict[int, Path], started: Starter, tmp_path: Path
) -> None:
    ended = started.run(2, search_line(tmp_path / "run"), {"rank": rank, "step": step, "signal": signal.SIGTERM})
    assert ended.codes == [143, 143]
    assert ended.said[0].count("stopped by SIGTERM") == 1
    assert ended.said[1] == ""
    saved = checkpoint_of(tmp_path / "run")
    assert 3 * saved["epoch"] + saved["step"] == step + 1
    assert started.run(2, search_line(tmp_path / "run", "--resume")).codes == [0, 0]
    assert_same_run(tmp_path / "run", whole[2])


def test_a_rank_that_raises_is_named(started: Starter, tmp_path: Path) -> None:
    ended = started.run(2, search_line(tmp_path / "run"), {"rank": 1, "step": 1, "error": "the disk is gone"})
    assert ended.codes == [1, 2]
    assert ended.said[0].count("rank 1 failed: OSError: the disk is gone; the run can go on") == 1
    assert ended.said[1] == ""


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_rank_that_dies_is_named_and_the_run_goes_on(
    rank: int, whole: dict[int, Path], started: Starter, tmp_path: Path
) -> None:
    """With the same number of ranks bit for bit; with another one, with the numbers that it has."""
    killed = tmp_path / "2"
    ended = started.run(2, search_line(killed), {"rank": rank, "step": 2, "signal": signal.SIGKILL})
    assert ended.codes[rank] == -9
    assert ended.codes[1 - rank] == 1
    assert ended.seconds < 60
    gone = "rank 1 (process" if rank == 1 else "rank 0, or the launcher"
    assert ended.said[1 - rank].count(gone) == 1, ended.said
    shutil.copytree(killed, tmp_path / "1")
    for size in (2, 1):
        resumed = started.run(size, search_line(tmp_path / str(size), "--resume"))
        assert resumed.codes == [0] * size, resumed.said
    assert_same_run(tmp_path / "2", whole[2])
    with np.load(tmp_path / "1" / "alphas.npz") as ours, np.load(whole[2] / "alphas.npz") as theirs:
        # Only batch norm's rows differ, for four of six steps of about 0.03 each.
        assert 0 < np.abs(ours["reduce"] - theirs["reduce"]).max() < 4 * 2 * 0.03


def test_a_rank_that_dies_before_the_ranks_are_connected_is_named(started: Starter, tmp_path: Path) -> None:
    ended = started.run(2, search_line(tmp_path / "run"), {"rank": 1, "seconds": 0})
    assert ended.codes == [1, -9]
    assert re.search(r"rank 1 \(process \d+ on \S+\) died", ended.said[0]), ended.said


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 4), (4, 2)])
def test_a_run_goes_on_with_another_number_of_ranks(before: int, after: int, started: Starter, tmp_path: Path) -> None:
    line = search_line(tmp_path / "run")
    ended = started.run(before, line, {"rank": before - 1, "step": 4, "signal": signal.SIGTERM})
    assert ended.codes == [143] * before, ended.said
    resumed = started.run(after, [*line, "--resume"])
    assert resumed.codes == [0] * after, resumed.said
    assert len(checkpoint_of(tmp_path / "run")["ranks"]) == after


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_evaluation_on_two_ranks(number: signal.Signals, started: Starter, tmp_path: Path) -> None:
    """Stopped, or with a rank that dies, and resumed: bit for bit on as many ranks, to the end on one."""
    small = "--layers 1 --init-channels 2 --epochs 2 --batch-size 512 --device cpu --deterministic --genotype DARTS_V2"
    line = ["evaluate", *small.split(), "--ema-epochs", "1", "--save-every-steps", "1", "--out"]
    assert started.run(2, [*line, str(tmp_path / "whole")]).codes == [0, 0]
    ended = started.run(2, [*line, str(tmp_path / "2")], {"rank": 1, "step": 1, "signal": number})
    if number == signal.SIGTERM:
        assert ended.codes == [143, 143]
        assert ended.said[0].count("stopped by SIGTERM") == 1
    else:
        assert ended.codes == [1, -9]
        assert ended.said[0].count("rank 1 (process") == 1
        assert ended.seconds < 60
    shutil.copytree(tmp_path / "2", tmp_path / "1")
    for size in (2, 1):
        ended = started.run(size, ["evaluate", "--resume", "--out", str(tmp_path / str(size)), "--device", "cpu"])
        assert ended.codes == [0] * size, ended.said
        assert "test error" in ended.said[0]
        assert not any(ended.said[1:])
    assert_same_weights(tmp_path / "2", tmp_path / "whole")
    a, b = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "2"))
    del a["latency_seconds"], b["latency_seconds"]
    assert a == b


@pytest.mark.slow
def test_streams_on_two_ranks(started: Starter, tmp_path: Path) -> None:
    """Stopped, and with a rank that dies, and resumed: bit for bit."""
    images = write_folder(tmp_path / "images", 36)
    small = "--layers 1 --init-channels 2 --epochs 2 --batch-size 6 --order 1 --crop-padding 1 --image-size 8"
    streams = f"--dataset imagefolder --data {images} --stream always --workers 1"
    line = ["search", *small.split(), *streams.split(), "--device", "cpu", "--deterministic", "--save-every-steps", "1"]
    assert started.run(2, [*line, "--out", str(tmp_path / "whole")]).codes == [0, 0]
    for number, codes in ((signal.SIGTERM, [143, 143]), (signal.SIGKILL, [1, -9])):
        out = tmp_path / number.name
        ended = started.run(2, [*line, "--out", str(out)], {"rank": 1, "step": 4, "signal": number})
        assert ended.codes == codes, ended.said
        assert ended.seconds < 60
        resumed = started.run(2, [*line, "--out", str(out), "--resume"])
        assert resumed.codes == [0, 0], resumed.said
        assert_same_run(out, tmp_path / "whole")


@pytest.mark.slow
def test_only_the_first_rank_needs_the_folder(started: Starter, tmp_path: Path) -> None:
    """Also where DARTS-PT selects in the network of the search, is stopped there and resumed."""
    selection = "--space s3 --order 1 --select pt --select-options epochs=3 batches=1"
    line = ["search", *DIGITS.split(), *selection.split(), "--out", "run"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert started.run(2, line, apart=whole).codes == [0, 0]
    ended = started.run(2, line, {"rank": 1, "step": 7, "signal": signal.SIGTERM}, apart=parts)
    assert ended.codes == [143, 143], ended.said
    assert (parts / "0" / "run" / "selection" / "checkpoint.pt").is_file()
    resumed = started.run(2, [*line, "--resume"], apart=parts)
    assert resumed.codes == [0, 0], resumed.said
    assert_same_run(*(folder / "0" / "run" / "selection" for folder in (parts, whole)))
    assert list((parts / "1").iterdir()) == []


DYING = """
import os, signal
from fastdarts.runs.state import RunState
step = RunState.train_step
def dying(self):
    if self.steps_done == 4 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    step(self)
RunState.train_step = dying
"""


@pytest.mark.slow
@pytest.mark.parametrize("more", ["search --out run", "search", "evaluate --genotype DARTS_V2"])
def test_torchrun_restarts_a_run_that_goes_on_by_itself(more: str, whole: dict[int, Path], tmp_path: Path) -> None:
    """Also in a folder that the run has named itself; each line of the log comes from one rank."""
    (tmp_path / "dying.py").write_text(DYING)
    launcher = "-m torch.distributed.run --standalone --nproc-per-node=2 --max-restarts=1 -m"
    command = [sys.executable, *launcher.split(), *f"fastdarts.{more} --plugin dying {DIGITS}".split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"rank 1 \(process \d+ on \S+\) died", done.stderr)) == 1
    assert done.stdout.count("epoch 2/2") == 1
    (out,) = [tmp_path / "run"] if "--out" in more else (tmp_path / "runs").iterdir()
    assert (out / "report.html").is_file()
    if more.startswith("search"):
        assert_same_run(out, whole[2])


@pytest.mark.long
@pytest.mark.parametrize("moment", range(20))
def test_a_rank_killed_at_any_moment(moment: int, whole: dict[int, Path], started: Starter, tmp_path: Path) -> None:
    """Resumed on 2 ranks bit for bit, and to the end on 1."""
    draw = random.Random(moment)
    killed, other = tmp_path / "2", tmp_path / "1"
    when = {"rank": draw.randrange(2), "seconds": draw.uniform(0, 1) * started.seconds}
    ended = started.run(2, search_line(killed), when)
    assert ended.seconds < 300  # a rank that waits for one that is gone does so for half an hour
    if (killed / "config.json").is_file():
        shutil.copytree(killed, other)
    for size, out in ((2, killed), (1, other)):
        more = ["--resume"] if (out / "config.json").is_file() else []
        resumed = started.run(size, search_line(out, *more))
        assert resumed.codes == [0] * size, (ended, resumed)
    assert_same_run(killed, whole[2])
    assert len((other / "metrics.jsonl").read_text().splitlines()) == 2
