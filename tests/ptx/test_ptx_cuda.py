"""The CUDA kernels of the flat operators, compiled by nvcc to PTX and executed on CPU tensors."""

import struct
import subprocess
from pathlib import Path

import pytest
import torch
from ptx_machine import Machine, Program
from toolkit import nvcc
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
SIZE = 5003  # no multiple of a pack, a chunk or a block
CHUNK = 2048  # numbers that a warp adds up


@pytest.fixture(scope="module", params=["sm_80", "sm_90"])
def text(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = nvcc()
    if compiler is None:
        pytest.skip("needs nvcc with its headers")
    out = tmp_path_factory.mktemp("ptx") / "flat.ptx"
    source = Path(__file__).with_name("flat_instances.cu")
    options = ["-ptx", "-lineinfo", "-std=c++17", f"-arch={request.param}", f"-I{ROOT / 'csrc'}"]
    subprocess.run([compiler, *options, str(source), "-o", str(out)], check=True, capture_output=True)
    return out.read_text()


def kernel(text: str, *parts: str) -> Program:
    """The entry whose mangled name contains all parts."""
    names = [line.split()[-1].rstrip("(") for line in text.splitlines() if ".entry" in line]
    (name,) = [name for name in names if all(part in name for part in parts)]
    return Program(text, name)


def number(value: int) -> bytes:
    return value.to_bytes(8, "little")


def struct_of(*fields: Tensor | float | None) -> bytes:
    """A pass's struct: pointers, then doubles."""
    packed = b""
    for field in fields:
        packed += (
            struct.pack("<d", field)
            if isinstance(field, float)
            else number(field.data_ptr() if field is not None else 0)
        )
    return packed


def run(program: Program, blocks: int, threads: int, arguments: list[Tensor | bytes], memory: list[Tensor]) -> None:
    machine = Machine()
    machine.run(program, (blocks,), threads, arguments, memory=[(f"tensor {k}", t) for k, t in enumerate(memory)])
    assert not machine.findings


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_norm_has_the_bits_of_the_cpus(text: str, dtype: torch.dtype) -> None:
    v = torch.randn(SIZE, dtype=dtype)
    chunks = -(-SIZE // CHUNK)
    sums, norm = (torch.full((n,), float("nan"), dtype=torch.float64) for n in (chunks, 1))
    mangled = "chunk_kernelIfLi4" if dtype == torch.float32 else "chunk_kernelIdLi1"
    run(kernel(text, mangled), -(-chunks // 8), 256, [number(SIZE), v, sums], [])
    run(kernel(text, "norm_kernel"), 1, 32, [number(chunks), sums, norm], [])
    from fastdarts.ops import flat_ops  # noqa: F401 - defines the operator

    ours, theirs = norm[0], torch.ops.fastdarts.flat_norm(v)
    assert (ours - theirs).abs() <= 4 * torch.finfo(torch.float64).eps * theirs  # nvcc fuses products and sums


@pytest.mark.parametrize("with_buffer", [True, False])
def test_a_virtual_step(text: str, with_buffer: bool) -> None:
    w, g, b = torch.randn(3, SIZE).unbind()
    weights, saved = w.clone(), torch.full((SIZE,), float("nan"))
    xi, momentum, decay = torch.tensor(0.025, dtype=torch.float64), 0.9, 3e-4
    gradient, buffer = g.clone(), b.clone()
    fields = struct_of(weights, saved, gradient, buffer if with_buffer else None, xi, momentum, decay)
    program = kernel(text, "VirtualStepPass")
    run(program, 3, 256, [number(SIZE), fields], [weights, saved, gradient, buffer, xi])
    expected = w - xi.item() * (momentum * (b if with_buffer else 0 * b) + g + decay * w)
    assert torch.equal(saved, w)
    torch.testing.assert_close(weights, expected, rtol=1e-6, atol=1e-6)


def test_a_perturbation(text: str) -> None:
    saved, direction = torch.randn(2, SIZE).unbind()
    saved, direction = saved.clone(), direction.clone()
    weights, norm, r = torch.full((SIZE,), float("nan")), torch.tensor(3.0, dtype=torch.float64), 0.01
    program = kernel(text, "PerturbPass")
    run(
        program,
        2,
        256,
        [number(SIZE), struct_of(weights, saved, direction, norm, r)],
        [weights, saved, direction, norm],
    )
    torch.testing.assert_close(weights, saved + r / 3 * direction, rtol=1e-6, atol=1e-6)


def test_the_difference_of_two_gradients(text: str) -> None:
    direct, plus, minus = (t.clone() for t in torch.randn(3, SIZE))
    out, norm, xi, r = torch.full((SIZE,), float("nan")), torch.tensor(3.0).double(), torch.tensor(0.1).double(), 0.01
    fields = struct_of(out, direct, plus, minus, norm, xi, r)
    run(kernel(text, "CombinePass"), 2, 256, [number(SIZE), fields], [out, direct, plus, minus, norm, xi])
    expected = direct.double() - xi * (plus.double() - minus.double()) * 3 / 0.02
    torch.testing.assert_close(out, expected.float(), rtol=1e-6, atol=1e-6)


def test_a_clipped_step(text: str) -> None:
    w, b, g = (t.clone() for t in torch.randn(3, SIZE))
    weights, buffer = w.clone(), b.clone()
    norm, lr = torch.tensor(10.0).double(), torch.tensor(0.05).double()
    fields = struct_of(weights, buffer, g, norm, lr, 0.9, 3e-4, 5.0)
    run(kernel(text, "ClippedSgdPass"), 4, 256, [number(SIZE), fields], [weights, buffer, g, norm, lr])
    expected = 0.9 * b + (5 / (10 + 1e-6) * g + 3e-4 * w)
    torch.testing.assert_close(buffer, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(weights, w - 0.05 * expected, rtol=1e-6, atol=1e-6)
