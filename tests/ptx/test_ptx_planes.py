"""The passes of csrc/cuda/planes.cu in cells: their PTX by the machine, all else by Triton's interpreter, together
against float64.
"""

import os
import re
import shutil
import subprocess
from dataclasses import replace
from typing import Any

import pytest
import torch
from kernel_cases import EPS, Case, Results, fused, make_case, plain

pytest.importorskip("triton", reason="the kernels need Triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs Triton's interpreter", allow_module_level=True)
if shutil.which(os.environ.get("CXX", "g++").split()[0]) is None:
    pytest.skip("needs a C++ compiler", allow_module_level=True)

from planes_machine import Planes, compiled, ptx, source
from toolkit import nvcc

from benchmarks.gpu_day.recording import nan_in_new_memory
from benchmarks.gpu_day.smoke import too_far
from fastdarts.kernels import planes, tiles
from fastdarts.kernels.mixed_sum import mixed_sum

EVERY = ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5")
EVERY += ("dil_conv_3x3", "dil_conv_5x5")
SHAPES = list(planes.WIDTHS.items())


@pytest.fixture(scope="module")
def compiler() -> str:
    found = nvcc()
    if found is None:
        pytest.skip("needs nvcc with its headers")
    return found


@pytest.fixture(autouse=True)
def asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDARTS_GPU", "cuda")


def forward(case: Case) -> Results:
    out, _, stats = mixed_sum(case.states, case.weights, case.params, case.running, case.plan.encoded, EPS)
    return {"out": out, "stats": stats}


def check(machine: Planes, case: Case, *, launches: int) -> Results:
    """Execute a case's forward from memory full of NaN and compare it with float64."""
    case = case.to(torch.bfloat16)
    with machine.on_the_cpu(), nan_in_new_memory():
        ours = forward(case)
    assert machine.launches == launches
    assert machine.machine.findings == []
    assert too_far(plain(case, torch.float64) | {"out": ours["out"]}, case) == {}
    return ours


@pytest.mark.parametrize(("C", "width"), SHAPES)
def test_windows_of_each_kind(compiler: str, C: int, width: int) -> None:
    machine = Planes(ptx(compiler, "sm_90", "forward", C))
    check(machine, make_case(EVERY[4:], C=C, size=(1, width, width)), launches=2)


def test_two_inputs_and_edges_between_nodes(compiler: str) -> None:
    """Two edges of an input to a program, and other ops beside the convolutions."""
    ops = ("max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_3x3")
    machine = Planes(ptx(compiler, "sm_80", "forward", 32))
    check(machine, make_case(ops, inputs=2, nodes=2, C=32, size=(1, 16, 16)), launches=4)


def test_several_images_to_a_program_the_last_with_fewer(compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "multiprocessors", lambda: 1)
    machine = Planes(ptx(compiler, "sm_90", "forward", 32))
    case = make_case(("sep_conv_5x5", "dil_conv_5x5"), C=32, size=(5, 16, 16))
    check(machine, case, launches=2)
    assert machine.images_of_program == 2


def test_statistics_that_are_given(compiler: str) -> None:
    machine = Planes(ptx(compiler, "sm_90", "forward", 32))
    check(machine, make_case(("sep_conv_3x3",), C=32, size=(1, 16, 16), training=False), launches=2)


def test_any_order_of_programs_and_warps_gives_the_same_bits(compiler: str) -> None:
    case = make_case(("sep_conv_3x3",), nodes=2, C=32, size=(2, 16, 16))
    results = [check(Planes(ptx(compiler, "sm_90", "forward", 32), seed), case, launches=4) for seed in (0, 1000)]
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_nan_stays_where_windows_see_it(compiler: str) -> None:
    case = make_case(("dil_conv_3x3",), C=32, size=(2, 16, 16)).to(torch.bfloat16)
    case.states[0][1, 3] = float("nan")
    machine = Planes(ptx(compiler, "sm_90", "forward", 32))
    running = torch.stack([torch.zeros(1, 32), torch.ones(1, 32)], dim=1)
    with machine.on_the_cpu(), nan_in_new_memory():
        out = forward(replace(case, running=running))["out"]
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


def test_every_barrier_is_needed(compiler: str) -> None:
    case = make_case(("sep_conv_3x3", "sep_conv_3x3"), C=32, size=(1, 16, 16)).to(torch.bfloat16)
    machine = Planes(ptx(compiler, "sm_90", "forward", 32))
    with machine.on_the_cpu(), nan_in_new_memory():
        right = forward(case)["out"]
        (program,) = machine.programs.values()
        places = sorted(set(program.barriers()))
        assert places
        for place in places:
            program.without_barriers_at(place)
            machine.machine.findings = []
            ours = forward(case)["out"]
            assert machine.machine.findings or not torch.equal(ours, right), place


@pytest.mark.parametrize("C", planes.WIDTHS)
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_no_register_is_spilled(compiler: str, target: str, C: int) -> None:
    options = ["-cubin", "-O3", "-Xptxas", "-v", "-o", os.devnull]
    said = subprocess.run(
        compiled(compiler, target, source("forward", C), options), check=True, capture_output=True, text=True
    ).stderr
    assert re.findall(r"(\d+) bytes (\w+ \w+)", said) == [
        ("0", "stack frame"), ("0", "spill stores"), ("0", "spill loads")
    ]  # fmt: skip


def test_shared_memory_fits_two_programs_of_an_h100() -> None:
    for C, width in SHAPES:
        assert planes.shared_bytes(C, width, width) <= (227 - 2) * 1024 // 2


def test_what_is_asked_for_must_be_known_and_there(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(("sep_conv_3x3",), C=32, size=(1, 16, 16)).to(torch.bfloat16)
    with pytest.raises(RuntimeError, match="FASTDARTS_GPU=cuda needs the CUDA part"):
        fused(case)
    monkeypatch.setenv("FASTDARTS_GPU", "opencl")
    with pytest.raises(ValueError, match="FASTDARTS_GPU must be triton or cuda; got opencl"):
        fused(case)


@pytest.mark.parametrize(
    ("dtype", "geometry"),
    [
        (torch.bfloat16, {"C": 32, "size": (1, 2, 4)}),
        (torch.float32, {"C": 32, "size": (1, 16, 16)}),
        (torch.bfloat16, {"C": 32, "size": (1, 32, 32), "stride": 2}),
        (torch.bfloat16, {"C": 32, "size": (1, 16, 16), "found": True}),
    ],
    ids=["size", "type", "stride", "norms that learn"],
)
def test_what_the_passes_do_not_know_goes_to_triton(dtype: torch.dtype, geometry: dict[str, Any]) -> None:
    """No operator of csrc/cuda exists here."""
    case = make_case(("dil_conv_3x3",), **geometry).to(dtype)
    mixed_sum(case.states, case.weights, case.params, case.running, case.plan.encoded, EPS, case.affine, case.factors)
