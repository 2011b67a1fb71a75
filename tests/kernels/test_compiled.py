"""The Triton kernels' machine code, compiled ahead of time: spills, occupancy, wide loads, matrix instructions."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="the kernels need Triton")

READS_STATES = ("stage_forward_kernel", "stage_backward_kernel", "reduction_backward_kernel", "pool_backward_kernel")
READS_STATES += ("mix_forward_kernel", "term_sums_kernel")
MULTIPLIES = ("stage_forward_kernel", "stage_backward_kernel", "reduction_backward_kernel")
# Bytes a thread that may spill, by target: what a kernel keeps while it calls a pass that takes nearly all registers.
# Compilers older than the one that tiles were chosen with keep more.
if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8):
    SPILLED = {"sm_80": 8, "sm_90": 0, "sm_100": 16, "gfx942": 0}
else:
    SPILLED = {"sm_80": 256, "sm_90": 256, "sm_100": 272, "gfx942": 0}
NARROW = [("gfx942", "reduction_backward_kernel", "32 x 16")]  # of preprocessing: an element for each of 512 threads


def report(tmp_path: Path, target: str, shape: str) -> list[dict[str, str]]:
    """The rows that `benchmarks.compiled_kernels` writes; in a process of its own, since here Triton interprets."""
    out = tmp_path / f"{shape.replace('/', '-')}.md"
    command = [sys.executable, "-m", "benchmarks.compiled_kernels", str(out), "--targets", target, "--shapes", shape]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parents[2], capture_output=True)
    names, _, *rows = [line.strip("| ").split(" | ") for line in out.read_text().splitlines() if line.startswith("|")]
    return [dict(zip(names, row, strict=True)) for row in rows]


def check(rows: list[dict[str, str]]) -> None:
    assert {"stage_forward_kernel", "pool_backward_kernel", "join_gradients_kernel", "sum_parts_kernel"} < {
        row["kernel"] for row in rows
    }
    for row in rows:
        assert int(row["spilled bytes"]) <= SPILLED[row["target"]], row
        assert int(row["occupancy"].removesuffix("%")) >= 25, row
        if row["kernel"] in READS_STATES and (row["target"], row["kernel"], row["tile"]) not in NARROW:
            assert int(row["128-bit loads"]) > 0, row
        if row["kernel"] in MULTIPLIES:
            assert int(row["MMA"]) > 0, row


AHEAD = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

class Driver:
    "Of a GPU that is not there: nothing can be started on it."
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)
    get_current_device = get_current_stream = lambda self, *args: 0

driver.set_active(Driver())
triton.knobs.runtime.jit_post_compile_hook = lambda *, fn, **_: print(fn.name)

from fastdarts.kernels.launch import compiling_ahead
from fastdarts.kernels.project import project, project_backward

x, weights = torch.randn(2, 16, 8, 8), [torch.randn(16, 16, 1, 1)]
with compiling_ahead():
    for _ in range(2):
        out, saved, stats = project(x, weights, None, 1e-5)
        project_backward(out, x, weights, saved, stats, True, 1e-5, True, True)
try:
    project(x, weights, None, 1e-5)
except Exception as error:
    print("outside, launches start")
"""


def test_compiling_ahead_compiles_what_would_be_launched_and_starts_nothing() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", AHEAD], check=True, env=environment, capture_output=True, text=True)
    *compiled, last = done.stdout.split("\n")[:-1]
    assert last == "outside, launches start"
    kernels = ["stage_forward", "join_moments", "mix_forward", "term_sums", "finish_sums", "reduction_backward"]
    assert sorted(compiled) == sorted(f"{kernel}_kernel" for kernel in [*kernels, "sum_parts"])


def test_machine_code_for_the_first_cells(tmp_path: Path) -> None:
    check(report(tmp_path, "sm_90", "16/1"))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_machine_code_for_the_smallest_and_the_largest_cells(target: str, tmp_path: Path) -> None:
    with ThreadPoolExecutor() as both:  # a core each: a minute of compiling
        for rows in both.map(lambda shape: report(tmp_path, target, shape), ("16/1", "64/2")):
            check(rows)
