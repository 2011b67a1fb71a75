"""The operators of csrc/cuda/planes.cu on CPU tensors: their kernels' PTX, executed by the machine."""

import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from ptx_machine import BUILD, Machine, Program
from torch import Tensor

from fastdarts.kernels import planes

ROOT = Path(__file__).resolve().parents[2]


def source(kernel: str, channels: int) -> Path:
    """Write a file that instantiates one kernel of csrc/cuda/planes_*.cuh, and return it."""
    parameters = kernel.capitalize()
    text = (
        f'#include "cuda/planes_{kernel}.cuh"\n'
        f"template __global__ void fastdarts::planes::{kernel}_kernel<{channels}, {planes.WIDTHS[channels]}>"
        f"(const fastdarts::planes::{parameters});\n"
    )
    path = BUILD / f"planes_{kernel}_{channels}.cu"
    if not path.is_file() or path.read_text() != text:
        BUILD.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return path


def compiled(compiler: str, target: str, path: Path, options: list[str]) -> list[str]:
    """Return nvcc's command for a file."""
    return [compiler, "-std=c++17", f"-arch={target}", f"-I{ROOT / 'csrc'}", *options, str(path)]


@cache
def ptx(compiler: str, target: str, kernel: str, channels: int) -> str:
    """Compile a kernel, once for each state of its sources."""
    path = source(kernel, channels)
    out = path.with_suffix(f".{target}.ptx")
    newest = max(file.stat().st_mtime for file in [path, *(ROOT / "csrc" / "cuda").glob("*.cuh")])
    if not out.is_file() or out.stat().st_mtime < newest:
        options = ["-ptx", "-lineinfo", "-o", str(out)]
        subprocess.run(compiled(compiler, target, path, options), check=True, capture_output=True)
    return out.read_text()


def entry(text: str, *parts: str) -> str:
    """Return the name of the entry whose mangled name contains all parts."""
    names = [line.split()[-1].rstrip("(") for line in text.splitlines() if ".entry" in line]
    (name,) = [name for name in names if all(part in name for part in parts)]
    return name


class Planes:
    """Execute launches of the operators and collect what is wrong with them."""

    def __init__(self, text: str, seed: int = 0) -> None:
        self.text = text
        self.machine = Machine(seed)
        self.programs: dict[str, Program] = {}
        self.launches = 0
        self.images_of_program = 0

    def program(self, kernel: str, channels: int, width: int) -> Program:
        name = entry(self.text, f"{kernel}ILi{channels}ELi{width}E")
        if name not in self.programs:
            self.programs[name] = Program(self.text, name)
        return self.programs[name]

    def forward(
        self, states: list[Tensor], saved: Tensor, dw: Tensor, pw: Tensor, stats: Tensor, moments: Tensor,
        stages: Tensor, groups: Tensor, images: int, channels: int, width: int, x_pitch: int, images_of_program: int,
        eps: float,
    ) -> None:  # fmt: skip
        """Execute `planes_forward`."""
        self.launches += 1
        self.images_of_program = images_of_program
        tensors = {f"state {i}": state for i, state in enumerate(states)}
        tensors |= {"saved": saved, "dw": dw, "pw": pw, "stats": stats, "moments": moments}
        tensors |= {"stages": stages, "groups": groups}
        pointers = [t.data_ptr() if t.numel() else 0 for t in tensors.values()]
        pointers[len(states) : len(states)] = [0] * (planes.MOST_STATES - len(states))
        numbers = (images, x_pitch, images_of_program)
        self.machine.run(
            self.program("forward_kernel", channels, width),
            (-(-images // images_of_program), len(groups)),
            32 * planes.WARPS,
            [struct.pack("<9Q3if", *pointers, *numbers, eps)],
            planes.shared_bytes(channels, width, images_of_program * width),
            list(tensors.items()),
        )

    @contextmanager
    def on_the_cpu(self) -> Iterator[None]:
        """Have the operators execute here what they are given inside."""
        library = torch.library.Library("fastdarts", "IMPL")
        implementations: dict[str, Callable[..., Any]] = {"planes_forward": self.forward}
        for name, implementation in implementations.items():
            library.impl(name, implementation, "CPU")
        try:
            yield
        finally:
            library._destroy()
