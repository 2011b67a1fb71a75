"""Execute compiled Triton kernels, or other PTX, on CPU tensors: builds tests/ptx/machine and calls it."""

import ctypes
import hashlib
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

FOLDER = Path(__file__).parent / "machine"
BUILD = Path(__file__).parents[2] / "build" / "ptx"
Grid = tuple[int, ...]


@dataclass(frozen=True)
class Finding:
    """Hold something wrong: its kind, file:line of the source, how often it happened, and the first case."""

    kind: str
    place: str
    count: int
    detail: str


@cache
def library() -> ctypes.CDLL:
    """Build the machine, once for each state of its sources, and load it.

    Raises: RuntimeError with the compiler's words.
    """
    sources = sorted(FOLDER.glob("*.cpp"))
    text = b"".join(path.read_bytes() for path in sorted(FOLDER.iterdir()))
    path = BUILD / f"machine-{hashlib.sha256(text).hexdigest()[:16]}.so"
    if not path.is_file():
        BUILD.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(f".{os.getpid()}")
        compiler = os.environ.get("CXX", "g++").split()
        command = [*compiler, "-O2", "-std=c++20", "-shared", "-fPIC", *map(str, sources), "-o", str(new)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        new.rename(path)
    machine = ctypes.CDLL(str(path))
    u64, pointer, text_of, integer = ctypes.c_uint64, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    u64s = ctypes.POINTER(u64)
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "ptx_text": (text_of, []),
        "ptx_load": (pointer, [text_of, text_of]),
        "ptx_free": (None, [pointer]),
        "ptx_parameters": (integer, [pointer, ctypes.POINTER(integer), integer]),
        "ptx_barriers": (None, [pointer]),
        "ptx_remove_barriers": (None, [pointer, text_of]),
        "ptx_forget": (None, []),
        "ptx_allow": (None, [text_of, u64, u64, integer]),
        "ptx_launch": (integer, [pointer, u64s, u64, text_of, integer, u64, u64, u64s]),
        "ptx_report": (None, []),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(machine, name)
        function.restype, function.argtypes = result, arguments
    return machine


def said() -> str:
    return library().ptx_text().decode()


class Program:
    """Hold a kernel of a PTX module.

    Args:
        text: the module.
        kernel: name of the entry; "" for the only one.

    Raises: ValueError for PTX that the machine does not know.
    """

    def __init__(self, text: str, kernel: str = "") -> None:
        self.handle = library().ptx_load(text.encode(), kernel.encode())
        if not self.handle:
            raise ValueError(said())
        places = (ctypes.c_int * 512)()
        count = library().ptx_parameters(self.handle, places, 256)
        self.parameters = [(places[2 * k], places[2 * k + 1]) for k in range(count)]

    def barriers(self) -> list[str]:
        """Return file:line of each barrier."""
        library().ptx_barriers(self.handle)
        return said().splitlines()

    def without_barriers_at(self, place: str) -> None:
        """Take out the barriers of this place; "" puts all back."""
        library().ptx_remove_barriers(self.handle, place.encode())


@dataclass
class Machine:
    """Execute launches and collect what is wrong with them.

    Args:
        seed: of the order of programs and warps.
        most_instructions: that warps may execute in a launch.
        watched: look for races in global memory too; without, launches take less memory and time.
    """

    seed: int = 0
    watched: bool = True
    most_instructions: int = 2 * 10**9
    executed: int = 0  # instructions of warps
    findings: list[Finding] = field(default_factory=list)

    def run(
        self,
        program: Program,
        grid: Grid,
        threads: int,
        arguments: Sequence[Tensor | bytes],
        shared: int = 0,
        memory: Sequence[tuple[str, Tensor]] = (),
    ) -> None:
        """Execute a launch.

        Args:
            program: what to execute.
            grid: programs (CTAs) along each axis.
            threads: of a program.
            arguments: for each parameter a tensor, whose address is passed, or the bytes of the value.
            shared: bytes of shared memory that the launch adds.
            memory: tensors that the kernel may read and write, by name, besides those among `arguments`.

        Raises: RuntimeError if it cannot go on, as at a trap.
        """
        machine = library()
        machine.ptx_forget()
        named = [*memory, *((f"argument {k}", a) for k, a in enumerate(arguments) if isinstance(a, Tensor))]
        for base, (name, storage) in {t.untyped_storage().data_ptr(): (n, t) for n, t in named}.items():
            if base:
                machine.ptx_allow(name.encode(), base, storage.untyped_storage().nbytes(), int(self.watched))
        packed = bytearray(max((offset + size for offset, size in program.parameters), default=0))
        for (offset, size), argument in zip(program.parameters, arguments, strict=False):
            given = argument.data_ptr().to_bytes(8, "little") if isinstance(argument, Tensor) else argument
            packed[offset : offset + size] = given[:size].ljust(size, b"\0")
        numbers = (ctypes.c_uint64 * 6)(*(*grid, 1, 1)[:3], threads, 1, 1)
        executed = ctypes.c_uint64()
        self.seed += 1
        failed = machine.ptx_launch(
            program.handle, numbers, shared, bytes(packed), len(packed), self.seed, self.most_instructions, executed
        )
        reason = said() if failed else ""
        self.executed += executed.value
        machine.ptx_report()
        for line in said().splitlines():
            kind, place, count, detail = line.split("\t", 3)
            self.findings.append(Finding(kind, place, int(count), detail))
        if failed:
            raise RuntimeError(reason)


class TritonMachine(Machine):
    """Compile Triton kernels for a GPU and execute them here; `launch` takes what a launch of a kernel takes.

    Args:
        target: of `benchmarks.compiled_kernels.TARGETS`, such as "sm_90".
        seed: of the order of programs and warps.
        reached: tensors, by name, that kernels read and write by addresses in their tables.
    """

    def __init__(self, target: str, seed: int = 0, reached: Sequence[tuple[str, Tensor]] = ()) -> None:
        super().__init__(seed)
        self.target = target
        self.reached = reached
        self.programs: dict[str, tuple[Program, Any]] = {}

    def launch(self, kernel: Any, grid: Grid, *args: Any, **constants: Any) -> None:
        """Compile the kernel unless that is done, and execute grid programs of it."""
        if not all(grid):
            return
        program, compiled = self.program((kernel, args, constants))
        arguments: list[Tensor | bytes] = []
        memory = list(self.reached)
        for name, given in zip(kernel.arg_names, args, strict=False):
            for value in given if isinstance(given, tuple) else (given,):
                if isinstance(value, Tensor):
                    arguments.append(value)
                    memory.append((name, value))
                else:
                    arguments.append(int(value).to_bytes(8, "little", signed=True))
        shared, threads = compiled.metadata.shared, 32 * compiled.metadata.num_warps
        try:
            self.run(program, grid, threads, arguments, shared, memory)
        except RuntimeError as error:
            raise RuntimeError(f"{kernel.fn.__name__}: {error}") from error

    def program(self, launch: tuple[Any, tuple[Any, ...], dict[str, Any]]) -> tuple[Program, Any]:
        from benchmarks.compile_all import identity
        from benchmarks.compiled_kernels import TARGETS, compiled

        for t in (t for arg in launch[1] for t in (arg if isinstance(arg, tuple) else (arg,)) if isinstance(t, Tensor)):
            if t.data_ptr() % 16:
                raise ValueError(f"{launch[0].fn.__name__} is compiled for tensors at multiples of 16 bytes")
        key = identity(launch)
        if key not in self.programs:
            made = compiled(launch, TARGETS[self.target])
            self.programs[key] = Program(str(made.asm["ptx"])), made
        return self.programs[key]
