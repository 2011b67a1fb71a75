"""The Triton kernels' compiled code, executed on CPU tensors: right results, no race, no access out of bounds."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="the kernels need Triton")
if shutil.which(os.environ.get("CXX", "g++").split()[0]) is None:
    pytest.skip("needs a C++ compiler", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("skip_connect", "max_pool_3x3", "avg_pool_3x3", "nor_conv_1x1", "nor_conv_1x1")  # four saved tensors a node
EVERY = ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5")
EVERY += ("dil_conv_3x3", "dil_conv_5x5")
SIZES = {16: "2,32,32", 32: "2,16,16", 64: "4,8,8"}
ALWAYS = {"stage_forward", "join_moments", "mix_forward", "term_sums", "finish_sums", "stage_backward", "sum_parts"}


def cells(*args: str) -> dict[str, Any]:
    """Run ptx_cells.py and return its report."""
    return executed("ptx_cells.py", *args)


def executed(program: str, *args: str) -> dict[str, Any]:
    """Run a program of this folder without Triton's interpreter, and return its report."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), environment.get("PYTHONPATH", "")])
    command = [sys.executable, str(Path(__file__).with_name(program)), *args]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def check(report: dict[str, Any], *kernels: str) -> None:
    assert report["wrong"] == []
    assert report["findings"] == []
    assert {f"{name}_kernel" for name in (*ALWAYS, *kernels)} <= set(report["executed"])


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_pools_and_pixels(target: str) -> None:
    check(cells(target, "bfloat16", "16", "1", "2,8,8", ",".join(QUICK), "--exact"), "pool_backward")


def test_windows() -> None:
    check(cells("sm_90", "bfloat16", "16", "1", "2,8,8", "sep_conv_3x3", "--exact"), "join_gradients")


def test_reductions_with_products_of_warp_groups() -> None:
    check(cells("sm_90", "bfloat16", "64", "2", "4,8,8", "skip_connect,nor_conv_1x1", "--exact"), "reduction_backward")


@pytest.mark.parametrize(("target", "dtype"), [("sm_80", "bfloat16"), ("sm_90", "float32")])
def test_running_statistics(target: str, dtype: str) -> None:
    report = executed("ptx_running.py", target, dtype)
    assert report["findings"] == []
    assert report["counters"] == [1, 2**40 + 1]
    assert report["roundings"] < 4 * 8  # three of sums and one of storage; nothing exceeds 8


@pytest.mark.long
@pytest.mark.parametrize("stride", ["1", "2"])
@pytest.mark.parametrize("C", [16, 32, 64])
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_every_shape_of_a_search(target: str, C: int, stride: str) -> None:
    ops = ",".join(EVERY)
    check(cells(target, "bfloat16", str(C), stride, SIZES[C], ops, "--nodes", "2"), "pool_backward")


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_types(dtype: str) -> None:
    check(cells("sm_90", dtype, "16", "1", "2,8,8", ",".join(EVERY)), "pool_backward")


@pytest.mark.long
def test_any_order_of_programs_and_warps_gives_the_same_bits() -> None:
    check(cells("sm_90", "bfloat16", "16", "1", "4,8,8", ",".join(QUICK), "--exact", "--seeds", "0", "1", "2", "3"))


# Barriers that Triton's own around the same products and sums cover, for what goes through shared memory; by the
# comments beside them. Nothing promises that Triton will put one there, so they stay.
COVERED = ("y overwrites d, which all threads have read by now", "the next stage overwrites dd and adds to dx")


@pytest.mark.long
def test_every_barrier_that_the_kernels_ask_for_is_needed() -> None:
    ops = "sep_conv_3x3,sep_conv_3x3,max_pool_3x3,avg_pool_3x3"  # two stages and two pools to a program
    report = cells("sm_90", "bfloat16", "16", "1", "4,8,8", ops, "--exact", "--barriers")
    assert report["findings"] == []
    asked = {place: asked_for(place) for place in report["barriers"] if asked_for(place)}
    assert asked
    needless = {place: line for place, line in asked.items() if not report["barriers"][place]}
    assert [place for place, line in needless.items() if not any(reason in line for reason in COVERED)] == []


def asked_for(place: str) -> str:
    """The line of the source with the debug_barrier at this place; "" for barriers that Triton adds."""
    file, line = re.findall(r"(\w+\.py):(\d+)", place)[0]
    source = ROOT / "kernels" / file
    text = source.read_text().splitlines()[int(line) - 1] if source.is_file() else ""
    return text if "debug_barrier" in text else ""
