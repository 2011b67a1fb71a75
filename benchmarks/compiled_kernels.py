"""Compile the Triton kernels ahead of time, without a GPU, and read registers and spills from the machine code.

    python -m benchmarks.compiled_kernels benchmarks/compiled_kernels.md [--targets sm_90 gfx942] [--shapes 16/1 64/2]

writes the table benchmarks/compiled_kernels.md.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.kernel_launches import SHAPES, Launch, launches
from fastdarts.config.files import write_atomically
from fastdarts.kernels.launch import OPTIONS, warps

TARGETS = {f"sm_{cc}": GPUTarget("cuda", cc, 32) for cc in (80, 90, 100)} | {"gfx942": GPUTarget("hip", "gfx942", 64)}
TYPES = {torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
TYPES |= {torch.int64: "*i64", torch.int32: "*i32", torch.int8: "*i8"}


def compiled(launch: Launch, target: GPUTarget) -> Any:
    """Compile the kernel of `launch` for `target`."""
    source, options = source_of(launch, target)
    return triton.compile(source, target=target, options=options)


def source_of(launch: Launch, target: GPUTarget) -> tuple[ASTSource, dict[str, Any]]:
    """Return the source that Triton compiles for `launch`, and its options.

    Pointers are assumed to be aligned to 16 bytes, as torch's allocator aligns them.
    """
    kernel, args, constants = launch
    names = kernel.arg_names
    special = {param.name for param, arg in zip(kernel.params, args, strict=False) if isinstance(arg, int)} - {
        param.name for param in kernel.params if param.do_not_specialize
    }
    if special:  # 1 would become a constant, which not all operations take; kinds of numbers would get own kernels
        raise ValueError(f"{kernel.fn.__name__}: do_not_specialize must have {', '.join(sorted(special))}")
    options = {"num_warps": warps(constants["num_warps"], target.backend == "hip"), "num_stages": OPTIONS["num_stages"]}
    if target.backend == "cuda":
        options["maxnreg"] = OPTIONS["maxnreg"]
    fixed = {name: value for name, value in constants.items() if name != "num_warps"}
    signature: dict[str, Any] = {name: _type(arg) for name, arg in zip(names, args, strict=False)}
    signature |= dict.fromkeys(fixed, "constexpr")
    aligned: dict[tuple[int, ...], Any] = {
        (i,): [["tt.divisibility", 16]] for i, arg in enumerate(args) if isinstance(arg, Tensor)
    }
    for i, arg in enumerate(args):
        if isinstance(arg, tuple):
            aligned |= {(i, j): [["tt.divisibility", 16]] for j in range(len(arg))}
    return ASTSource(kernel, signature=signature, constexprs=fixed, attrs=aligned), options


def _type(arg: Any) -> Any:
    if isinstance(arg, Tensor):
        return TYPES[arg.dtype]
    return tuple(map(_type, arg)) if isinstance(arg, tuple) else "i32"


@dataclass(frozen=True)
class MachineCode:
    """Hold the resources that a kernel's machine code uses."""

    registers: int  # per thread
    spilled: int  # bytes per thread
    shared: int  # bytes per program
    wide: int  # number of 128-bit loads
    matrix: int  # number of matrix instructions
    occupancy: float  # share of a multiprocessor's warps that are in use


def machine_code(kernel: Any, target: GPUTarget, warps: int) -> MachineCode:
    """Read the resources from a compiled kernel."""
    if target.backend == "hip":
        text = kernel.asm["amdgcn"]
        names = "vgpr_count", "vgpr_spill_count"
        registers, spilled = (int(re.search(rf"\.{name}:\s*(\d+)", text)[1]) for name in names)  # type: ignore[index]
        spilled *= 4
        wide, matrix = r"global_load_dwordx4|buffer_load_dwordx4", "v_mfma"
    else:
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            Path(file.name).write_bytes(kernel.asm["cubin"])
            usage, text = (
                subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
                for option in ("--dump-resource-usage", "--dump-sass")
            )
        registers, stack, local = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL"))  # type: ignore[index]
        spilled = stack + local
        wide, matrix = r"LDG(?:STS)?\.E\.(?:\w+\.)*128", r"\bHMMA|\bHGMMA|UTC\w*MMA"
    shared = kernel.metadata.shared
    loads, products = (len(re.findall(pattern, text)) for pattern in (wide, matrix))
    return MachineCode(registers, spilled, shared, loads, products, occupancy(target, registers, shared, warps))


def occupancy(target: GPUTarget, registers: int, shared: int, warps: int) -> float:
    """Return the share of a multiprocessor's warps that programs with these registers and shared memory can occupy."""
    if target.backend == "hip":  # a compute unit: 4 SIMDs of 8 waves and 512 registers per lane, 64 KiB shared
        most, by_registers = 32, 4 * min(8, 512 // (-(-max(registers, 1) // 8) * 8)) // warps
        by_shared = 65536 // max(shared, 1)
    else:  # 64 warps, 65536 registers, allocated by 256 per warp; the system uses 1 KiB of shared memory per program
        most, by_registers = 64, 65536 // (-(-registers * 32 // 256) * 256 * warps)
        by_shared = {80: 164, 90: 228, 100: 228}[target.arch] * 1024 // (shared + 1024)
    return min(most // warps, by_registers, by_shared) * warps / most


def inspected(target: str, C: int, stride: int) -> Iterator[tuple[str, dict[str, Any], MachineCode]]:
    """Yield name, constants and machine code of every kernel that `launches` starts."""
    seen: set[str] = set()
    for launch in launches(C, stride):
        kernel, _, constants = launch
        name = kernel.fn.__name__
        if repr((name, constants)) not in seen:
            seen.add(repr((name, constants)))
            yield (
                name,
                constants,
                machine_code(
                    compiled(launch, TARGETS[target]),
                    TARGETS[target],
                    warps(constants["num_warps"], TARGETS[target].backend == "hip"),
                ),
            )


def rows(targets: list[str], shapes: list[str]) -> Iterator[str]:
    yield (
        "| target | kernel | C | stride | tile | warps | registers | spilled bytes | shared bytes | 128-bit loads "
        "| MMA | occupancy |"
    )
    yield "| --- " * 12 + "|"
    for target, (C, stride) in product(targets, [tuple(map(int, shape.split("/"))) for shape in shapes]):
        for name, constants, code in inspected(target, C, stride):
            tile = f"{constants.get('BLOCK_P', '')} x {constants.get('BLOCK_C') or constants.get('BLOCK_O', '')}"
            numbers = [constants["num_warps"], code.registers, code.spilled, code.shared, code.wide, code.matrix]
            cells = [target, name, C, stride, tile.strip(" x"), *numbers, f"{code.occupancy:.0%}"]
            yield "| " + " | ".join(map(str, cells)) + " |"
            print(*cells, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES, metavar="C/STRIDE")
    args = parser.parse_args()
    command = " ".join(["python -m benchmarks.compiled_kernels", *sys.argv[1:]])
    head = f"Made by `{command}` with Triton {triton.__version__}; bfloat16. No GPU was used.\n\n"
    write_atomically(args.out, (head + "\n".join(rows(args.targets, args.shapes)) + "\n"))


if __name__ == "__main__":
    main()
