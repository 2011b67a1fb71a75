"""The kernels compiled with the oldest Triton, which comes with the oldest torch that pyproject.toml allows.

Triton is installed into build/ and put before the environment's own for the compiling processes alone; torch stays.
`make oldest` has the whole environment of that time, and all shapes.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="the kernels need Triton")

ROOT = Path(__file__).parents[2]
OLDEST = "3.6"
KERNELS = {"stage_forward", "join_moments", "mix_forward", "term_sums", "finish_sums", "stage_backward"}
KERNELS |= {"reduction_backward", "pool_backward", "join_gradients", "sum_parts", "update_running"}
SPILLED = 256  # bytes a thread that this compiler keeps while a kernel calls a pass


@pytest.fixture(scope="module")
def oldest() -> dict[str, str]:
    """The environment of processes that import the oldest Triton."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if triton.__version__.startswith(f"{OLDEST}."):
        return environment
    folder = ROOT / "build" / f"triton-{OLDEST}"
    if not folder.is_dir():  # made whole or not at all, since it stays for later runs
        new = folder.with_name(f"{folder.name}.{os.getpid()}")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(new)]
        done = subprocess.run([*pip, f"triton=={OLDEST}.*"], capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            pytest.skip(f"pip could not install Triton {OLDEST}: {said[-1] if said else done.returncode}")
        if folder.is_dir():  # another process was quicker
            shutil.rmtree(new)
        else:
            new.rename(folder)
    path = os.pathsep.join(filter(None, [str(folder), environment.get("PYTHONPATH")]))
    return environment | {"PYTHONPATH": path}


def compile_all(environment: dict[str, str], *args: str) -> list[list[str]]:
    """Run `benchmarks.compile_all` and return the words of each kernel's line."""
    command = [sys.executable, "-m", "benchmarks.compile_all", "--brief", *args]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    version, *lines = done.stdout.splitlines()
    assert version.startswith(f"Triton {OLDEST}.")
    return [line.split() for line in lines]


# Every type and both targets; the other pairs take as long again, and have the same kernels.
@pytest.mark.parametrize(
    ("target", "types"),
    [
        pytest.param("sm_90", ("bfloat16", "float32"), marks=pytest.mark.slow),
        pytest.param("sm_80", ("float16",), marks=pytest.mark.slow),
        pytest.param("sm_80", ("bfloat16", "float32"), marks=pytest.mark.long),
        pytest.param("sm_90", ("float16",), marks=pytest.mark.long),
    ],
)
def test_every_kernel_becomes_machine_code(oldest: dict[str, str], target: str, types: tuple[str, ...]) -> None:
    usual = ["none", "max_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5"]  # their kernels know dilated ones
    rows = compile_all(oldest, "--targets", target, "--types", *types, "--shapes", "16/1", "--ops", *usual)
    assert {(row[1], row[3]) for row in rows} == {(dtype, f"{kernel}_kernel") for dtype in types for kernel in KERNELS}
    assert [row for row in rows if int(row[-1]) > SPILLED] == []


@pytest.mark.parametrize(
    "target", [pytest.param("sm_80", marks=pytest.mark.slow), pytest.param("sm_90", marks=pytest.mark.long)]
)
def test_kernels_of_found_networks_become_machine_code(oldest: dict[str, str], target: str) -> None:
    usual = ["max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_3x3"]
    of_search = ["--targets", target, "--types", "bfloat16", "--shapes", "32/1", "--ops", *usual]
    rows = compile_all(oldest, "--found", *of_search)
    assert {row[3] for row in rows} == {f"{kernel}_kernel" for kernel in {*KERNELS, "learned_norms"}}
    assert [row for row in rows if int(row[-1]) > SPILLED] == []


def test_windows_of_every_size_keep_functions_of_their_own(oldest: dict[str, str]) -> None:
    """A cell with sep_conv_3x3, 5x5 and 7x7, through the part of the compiler that names functions."""
    rows = compile_all(oldest, "--front-end", "--targets", "sm_90", "--types", "bfloat16", "--shapes", "16/1", "64/2")
    of_stages = [row for row in rows if row[3] == "stage_backward_kernel"]
    assert (
        len(of_stages) == 6
    )  # for each shape: first and second stages of all windows, and pointwise convolutions alone
