"""Comparisons on a pool: workers of this machine, any executor, a Dask cluster whose worker is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_search import write_classes

from fastdarts import compare as module
from fastdarts.compare import CompareConfig, compare, run_one
from fastdarts.runs.jobs import Job, local_executor, run_all, run_job
from fastdarts.runs.runs_progress import RunsProgress


def job(tmp_path: Path, name: str, code: str, sharing: int = 1) -> Job:
    return Job(("-c", code), tmp_path / name, tmp_path / "stop", tmp_path, sharing)


def test_local_workers_share_threads_and_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four jobs on two workers: two at a time, a thread and a GPU each, in turn; memory is halved."""
    torch.set_num_threads(2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setenv("WORLD_SIZE", "4")
    names = "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "FASTDARTS_PROCESSES", "WORLD_SIZE"
    code = f"import os, time; print([os.environ.get(name) for name in {names}]); time.sleep(0.3)"
    todo = [job(tmp_path, str(index), code, sharing=2) for index in range(4)]
    ended: list[tuple[Job, BaseException | None]] = []
    with local_executor(2, "auto") as executor:
        run_all(todo, executor, lambda *job: ended.append(job), lambda: None)
    assert set(ended) == {(one, None) for one in todo}
    said = [one.log.read_text().strip() for one in todo]
    assert set(said) == {f"['1', '{gpu}', '2', None]" for gpu in (5, 7)}


def test_memory_is_divided_among_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastdarts.data import memory
    from fastdarts.runs.resources import free_bytes

    monkeypatch.setattr(memory, "_meminfo", lambda: 800.0)
    monkeypatch.setattr(memory, "_cgroup_left", lambda: float("inf"))
    alone = free_bytes(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.available_bytes() == 200
    assert free_bytes(torch.device("cpu")) < 0.5 * alone
    monkeypatch.setenv(memory.PROCESSES, "8")
    assert memory.available_bytes() == 100


def test_a_program_that_a_signal_kills_is_started_again(tmp_path: Path) -> None:
    code = "import os; print('once', flush=True); os.kill(os.getpid(), 9 if os.path.getsize(1) < 9 else 0)"
    run_job(job(tmp_path, "log", code.replace("getsize(1)", f"getsize({str(tmp_path / 'log')!r})")))
    assert (tmp_path / "log").read_text() == "once\nonce\n"
    run_job(job(tmp_path, "failing", "print('once'); raise SystemExit(3)"))
    assert (tmp_path / "failing").read_text() == "once\n"


def test_a_program_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """As a run does whose worker is killed: it gets SIGTERM, which saves its state."""
    child = (
        "import os, time; from fastdarts.runs.jobs import ends_with_parent; ends_with_parent(); "
        "print(os.getpid(), 'up', flush=True); time.sleep(60)"
    )
    parent = (
        "import sys; from pathlib import Path; from fastdarts.runs.jobs import Job, run_job; here = Path(sys.argv[1]); "
        "run_job(Job(('-c', sys.argv[2]), here / 'log', here / 'stop', here))"
    )
    with subprocess.Popen([sys.executable, "-c", parent, str(tmp_path), child]) as one:
        wait_for(lambda: (tmp_path / "log").is_file() and "up" in (tmp_path / "log").read_text())
        one.kill()
    pid = int((tmp_path / "log").read_text().split()[0])
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), seconds=10)


def test_a_program_that_ends_before_its_parent_is_not_started_again(tmp_path: Path) -> None:
    run_job(job(tmp_path, "log", "from fastdarts.runs.jobs import ends_with_parent; ends_with_parent(); print('once')"))
    assert (tmp_path / "log").read_text() == "once\n"


def wait_for(holds: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def small(tmp_path: Path) -> dict[str, Any]:
    """Fields of a comparison whose runs take a second: 30 images of 8x8, three classes of different brightness."""
    write_classes(tmp_path / "images")
    return {
        "dataset": "imagefolder",
        "data": tmp_path / "images",
        "epochs": 1,
        "init_channels": 2,
        "layers": 3,
        "batch_size": 5,
        "order": 1,
        "search": {"crop_padding": 1},
        "select_epochs": 1,
        "select": {"init_channels": 2, "layers": 3, "batch_size": 5, "crop_padding": 1, "cutout": 0},
        "device": "cpu",
        "deterministic": True,
    }


def test_any_executor_runs_a_comparison_and_the_table_fills(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs leave results in their order; the report has each as soon as it ends."""
    rows: list[int] = []
    monkeypatch.setattr(
        "fastdarts.report.comparison.write_comparison", lambda out, runs, failures: rows.append(len(runs))
    )
    record = (
        "{'method': sys.argv[3], 'seed': int(sys.argv[4]), 'accuracy': 0.5, 'parameters': 1, 'multiply_adds': 1, "
        "'numbers': {}, 'tabulated': {}, 'search_seconds': 1, 'peak_bytes': 1, 'search_epochs': 1, 'stopped': None, "
        "'select_seconds': 1, 'folder': f'{sys.argv[3]}-{sys.argv[4]}'}"
    )
    child = (
        f"import json, pathlib, sys; record = {record}; folder = pathlib.Path(sys.argv[1]) / record['folder']; "
        "(folder / 'result.json').write_text(json.dumps(record))"
    )
    monkeypatch.setattr(module, "_CHILD", child)
    with ThreadPoolExecutor(1) as executor:
        found = compare(CompareConfig(**small, methods="darts,gdas", seeds=2, out=tmp_path / "out"), executor)
    assert [(run["method"], run["seed"]) for run in found.runs] == [
        ("darts", 0),
        ("gdas", 0),
        ("darts", 1),
        ("gdas", 1),
    ]
    assert found.failures == {}
    assert rows[-1] == 4
    assert rows == sorted(rows)
    assert rows[0] < 4


def test_compare_under_torchrun_is_refused(small: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(ValueError, match="run it without torchrun, with --workers or --scheduler"):
        compare(CompareConfig(**small, methods="darts"))


def test_progress_of_several_runs(tmp_path: Path) -> None:
    for run, part, epochs in (("a", "search", 0), ("b", "search", 2), ("b", "select", 1)):
        folder = tmp_path / run / part
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"epochs": 3}))
        (folder / "metrics.jsonl").write_text("{}\n" * epochs)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "result.json").write_text("{}")
    progress = RunsProgress({name: tmp_path / name for name in ("a", "b", "c", "d")})
    assert progress.state() == (1, "a: search, epoch 1/3; b: training, epoch 2/3")


def test_a_scheduler_that_is_not_there(small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match="pip install 'fastdarts\\[dask\\]'"):
        compare(CompareConfig(**small, methods="darts", out=tmp_path / "out", scheduler="tcp://127.0.0.1:1"))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list["subprocess.Popen[bytes]"]]]:
    """A Dask scheduler and two workers of a thread each, on 127.0.0.1 and ports that the system chooses."""
    pytest.importorskip("distributed", reason="needs Dask's distributed, which is not installed")
    file = tmp_path / "scheduler.json"
    start = [sys.executable, "-m"]
    common = ["--host", "127.0.0.1", "--no-dashboard"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "dask.txt").open("w") as said:

        def started(program: str, *arguments: str) -> "subprocess.Popen[bytes]":
            command = [*start, f"distributed.cli.{program}", *common, "--scheduler-file", str(file), *arguments]
            return subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=said, stderr=said)

        scheduler = started("dask_scheduler", "--port", "0")
        wait_for(file.is_file)
        workers = [started("dask_worker", "--nthreads", "1", "--no-nanny") for _ in range(2)]
        try:
            yield json.loads(file.read_text())["address"], workers
        finally:
            for process in (*workers, scheduler):
                process.kill()
                process.wait()


@pytest.mark.slow
def test_a_dask_cluster_loses_a_worker(
    small: dict[str, Any],
    tmp_path: Path,
    cluster: tuple[str, list["subprocess.Popen[bytes]"]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """3 methods x 2 seeds; a worker is killed while it runs one. The table is that of runs one after the other."""
    import threading

    import psutil
    from distributed import Client

    address, workers = cluster
    with Client(address) as client:
        client.wait_for_workers(2)

    def kill_one() -> None:
        wait_for(lambda: psutil.Process(workers[0].pid).children())
        time.sleep(3)
        os.kill(workers[0].pid, signal.SIGKILL)

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    fields = small | {"methods": "darts,gdas,random", "seeds": 2}
    found = compare(CompareConfig(**fields, out=tmp_path / "dask", scheduler=address))
    thread.join()
    assert workers[0].wait() == -signal.SIGKILL
    assert found.failures == {}
    monkeypatch.setattr("fastdarts.report.alphas.draw_alphas", lambda path: None)
    monkeypatch.setattr("fastdarts.report.run_report.write_report", lambda out: None)
    torch.set_num_threads(1)
    config = CompareConfig(**fields, out=tmp_path / "serial")
    serial = [run_one(config, method, seed) for seed in range(2) for method in ("darts", "gdas", "random")]
    assert [lasting(run) for run in found.runs] == [lasting(run) for run in serial]
    assert len(json.loads((tmp_path / "dask" / "results.json").read_text())["runs"]) == 6


def lasting(record: dict[str, Any]) -> dict[str, Any]:
    """Leave out what depends on the machine's load."""
    return {
        name: value for name, value in record.items() if name not in ("search_seconds", "select_seconds", "peak_bytes")
    }
