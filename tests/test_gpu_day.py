"""The day on a GPU: its runner, its kit's place, its page; and all its parts as stand-ins on a CPU."""

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "benchmarks" / "gpu_day").is_dir():
    pytest.skip("needs the benchmarks, which are not installed", allow_module_level=True)
sys.path.insert(0, str(ROOT))

pytest.importorskip("triton", reason="the kernels need Triton")

from benchmarks.gpu_day import place, report, runner  # noqa: E402
from benchmarks.gpu_day.__main__ import PARTS  # noqa: E402
from benchmarks.gpu_day.day import Day  # noqa: E402
from benchmarks.gpu_day.parts.counters import table  # noqa: E402

HANGS = """
import subprocess, sys, time
def run(day, notes):
    notes["before"] = day.results
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    notes["child"] = child.pid
    time.sleep(60)
"""
CRASHES = """
import os
def run(day, notes):
    print("about to crash", flush=True)
    os.abort()
"""


def run(module: str, text: str, tmp_path: Path, limit: float) -> runner.Outcome:
    (tmp_path / f"{module}.py").write_text(text)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    return runner.run_part(module, Day(True, "", "", str(tmp_path), 0, {"a": 1}), limit, environment, tmp_path)


def test_a_part_that_hangs_is_ended_with_all_it_started_and_keeps_its_notes(tmp_path: Path) -> None:
    outcome = run("hangs", HANGS, tmp_path, 20)
    assert outcome.status == "timed out"
    assert outcome.notes["before"] == {"a": 1}
    time.sleep(0.1)
    state = Path(f"/proc/{outcome.notes['child']}/stat")
    assert not state.is_file() or state.read_text().rpartition(") ")[2].startswith("Z")


def test_a_part_that_crashes_says_its_last_words(tmp_path: Path) -> None:
    outcome = run("crashes", CRASHES, tmp_path, 60)
    assert outcome.status == "failed"
    assert "about to crash" in outcome.output
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["crashes.py", "log.txt"]


def test_a_kits_cache_is_set_to_where_it_is_unpacked(tmp_path: Path) -> None:
    entry = tmp_path / "gpu-kit" / "triton" / "HASH"
    entry.mkdir(parents=True)
    (entry / "kernel.cubin").write_bytes(b"code")
    (entry / "__grp__kernel.json").write_text(json.dumps({"child_paths": {"kernel.cubin": "/made/elsewhere"}}))
    with tarfile.open(tmp_path / "kit.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "gpu-kit", "gpu-kit")
    kit = place.unpack(tmp_path / "kit.tar.gz", tmp_path / "new")
    (group,) = kit.glob("triton/*/__grp__*.json")
    (child,) = json.loads(group.read_text())["child_paths"].values()
    assert Path(child).read_bytes() == b"code"


def test_the_package_is_imported_from_the_checkout_with_its_kernels(tmp_path: Path) -> None:
    environment = place.environment(None, tmp_path, stand_in=True)
    code = "import fastdarts.kernels.tables as t, fastdarts; print(fastdarts.__file__, t.__file__)"
    command = [*place.python(), "-c", code]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert all(path.startswith(str(tmp_path / "path")) for path in done.stdout.split())


def test_counters_are_read_from_what_ncu_prints() -> None:
    text = '==PROF== Connected\n"ID","Kernel Name","gpu__time_duration.sum"\n"","","us"\n"0","a","12.5"\n"1","b","7"\n'
    assert table(text, ["x", "y"]) == [{"key": "x", "duration us": "12.5"}, {"key": "y", "duration us": "7"}]


def test_a_page_names_what_is_wrong() -> None:
    results: dict[str, Any] = {part.name: {"status": "left out", "seconds": 0, "notes": {}} for part in PARTS}
    results["smoke"] |= {"notes": {"16/32": {"launches": 3, "wrong": {"out": 9.0}, "first wrong launch": "launch 1"}}}
    results["replays"] |= {
        "status": "failed",
        "output": "Traceback\nan error",
        "notes": {"replays": 2, "different": [1]},
    }
    page = report.page(results)
    assert "**out 9.0 times what is allowed**; first wrong launch: launch 1" in page
    assert "**1 differ**" in page
    assert "an error" in page


@pytest.mark.slow
def test_every_part_runs_as_a_stand_in(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_day", "--stand-in", "--kit", str(tmp_path / "none")]
    subprocess.run([*command, "--minutes", "20", str(tmp_path / "first")], cwd=ROOT, check=True, capture_output=True)
    results = json.loads((tmp_path / "first" / "results.json").read_text())
    not_ended = {name: result["output"] for name, result in results.items() if result["status"] != "ended"}
    assert not not_ended
    assert {part.name for part in PARTS} == set(results)
    assert results["launches"]["notes"]["weight step"]
    assert all(case["wrong"] == {} for case in results["smoke"]["notes"].values())
    assert results["replays"]["notes"]["eager is equal"]
    assert results["search"]["notes"]["checkpoint is there"]
    assert len(list((tmp_path / "first").iterdir())) <= 8
    assert "A stand-in on a CPU" in (tmp_path / "first" / "RESULTS.md").read_text()

    results["versions"]["status"] = "failed"
    (tmp_path / "before.json").write_text(json.dumps(results))
    after = [str(tmp_path / "second"), "--after", str(tmp_path / "before.json"), "--parts", "versions", "steps"]
    done = subprocess.run([*command, *after], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.startswith("versions: ended")  # and steps, which had ended, are not run again
    assert "steps: ended" not in done.stdout.partition("# Measured")[0]
