"""Compile every Triton kernel for all targets, types and shapes with the installed Triton, in parallel, without a GPU.

    python -m benchmarks.compile_all [--targets sm_90] [--types bfloat16] [--shapes 16/1 64/2] [--brief | --front-end]

prints a line for each kernel: target, type, shape, name, registers, spilled bytes. It fails if a kernel does not
compile, or if Triton 3.6 would confuse two functions of a kernel.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from itertools import product
from multiprocessing import get_context
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from triton._C.libtriton import ir
from triton.compiler.code_generator import CodeGenerator
from triton.compiler.compiler import make_backend
from triton.language import core

from benchmarks.compiled_kernels import TARGETS, compiled, machine_code, source_of
from benchmarks.kernel_launches import SHAPES, Launch, cell_launches, launches, more_launches
from fastdarts.primitives.table import PRIMITIVES

TYPES = ("bfloat16", "float32", "float16")
RECURRENT = "recurrent"
"""In place of a shape: the recurrent cell and its loss."""


@dataclass(frozen=True)
class Case:
    """Describe the kernels that one process compiles."""

    target: str
    dtype: str
    shape: str  # channels/stride, or RECURRENT
    ops: tuple[str, ...]
    brief: bool  # compile only the kernels that a weight step needs for edges from a cell's inputs
    front_end: bool  # stop before machine code, for a tenth of the time
    found: bool  # as in found networks, whose batch norms learn and whose edges have factors; brief

    def compile(self) -> list[str]:
        """Compile each kernel and return a line for each."""
        lines: dict[str, str] = {}
        for launch in self.launches():
            if identity(launch) not in lines:
                name = f"{self.target} {self.dtype} {self.shape} {launch[0].fn.__name__}"
                with errors_named(name), functions_told_apart():
                    lines[identity(launch)] = f"{name} {self.compile_one(launch)}"
        return list(lines.values())

    def launches(self) -> list[Launch]:
        if self.shape == RECURRENT:
            return cell_launches(getattr(torch, self.dtype))
        C, stride = map(int, self.shape.split("/"))
        args = C, stride, getattr(torch, self.dtype), self.ops
        return launches(*args, self.found) + ([] if self.brief or self.found else more_launches(*args))

    def compile_one(self, launch: Launch) -> str:
        """Compile the kernel of `launch`; return registers and spilled bytes, or "- -" without machine code."""
        target = TARGETS[self.target]
        if not self.front_end:
            code = machine_code(compiled(launch, target), target, launch[2]["num_warps"])
            return f"{code.registers} {code.spilled}"
        source, options = source_of(launch, target)
        backend, context = make_backend(target), ir.context()
        parsed = backend.parse_options(options)
        ir.load_dialects(context)
        backend.load_dialects(context)
        source.make_ir(
            target, parsed, backend.get_codegen_implementation(parsed), backend.get_module_map(), context
        )  # verifies it
        return "- -"


def identity(launch: Launch) -> str:
    """Return a string that is equal for two launches if they compile to the same kernel."""
    kernel, args, constants = launch
    kinds = [[a.dtype for a in arg] if isinstance(arg, tuple) else getattr(arg, "dtype", None) for arg in args]
    return repr((kernel.fn.__name__, kinds, constants))


@contextmanager
def errors_named(what: str) -> Iterator[None]:
    """Raise errors as a RuntimeError with the kernel `what` and the compiler's message; hide its other, long output."""
    with tempfile.TemporaryFile() as printed:
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(printed.fileno(), 2)
        try:
            yield
        except Exception as error:
            cause: BaseException = error
            while cause.__cause__:  # Triton wraps an error once for each call that led to it
                cause = cause.__cause__
            printed.seek(0)
            said = [line for line in printed.read().decode(errors="replace").splitlines() if "error:" in line]
            why = [*str(cause).splitlines()[-1:], *said[:1]]  # the lines before the last show the source
            raise RuntimeError(f"{what}: {type(cause).__name__}: {'; '.join(why)}") from None
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


@contextmanager
def functions_told_apart() -> Iterator[None]:
    """Refuse calls of a device function that differ only in how their tensors are grouped into tuples.

    Triton 3.6 compiles one function for all of them, which is wrong for all calls but the first and may still compile.
    """
    real = CodeGenerator.call_JitFunction
    known: dict[Any, Any] = {}

    def call(self: Any, fn: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        bound = signature(fn.fn).bind(*args, **kwargs)
        bound.apply_defaults()
        leaves = list(walk(list(bound.arguments.values())))
        types = tuple(kind for _, kind, constant in leaves if not constant)
        name = fn.fn.__module__, fn.fn.__qualname__, types, tuple(leaf for leaf in leaves if leaf[2])
        if known.setdefault(name, leaves) != leaves:
            raise TypeError(f"calls of {fn.fn.__name__} differ only in the lengths of tuples: pass these as constexprs")
        return real(self, fn, args, kwargs, *rest, **more)

    CodeGenerator.call_JitFunction = call
    try:
        yield
    finally:
        CodeGenerator.call_JitFunction = real


def walk(value: Any, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], str, bool]]:
    """Yield (path, type or value, True for a constant) for each tensor and constant in an argument."""
    if isinstance(value, list | tuple | core.tuple):
        for i, item in enumerate(value):
            yield from walk(item, (*path, i))
    elif isinstance(value, core.tensor):
        yield path, str(value.type), False
    else:
        yield path, repr(getattr(value, "value", value)), True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=["sm_80", "sm_90"])
    parser.add_argument("--types", nargs="+", choices=TYPES, default=TYPES)
    shapes = [*SHAPES, RECURRENT]
    parser.add_argument("--shapes", nargs="+", choices=shapes, default=shapes, metavar="C/STRIDE")
    parser.add_argument("--ops", nargs="+", default=[*PRIMITIVES, "sep_conv_7x7"], help="ops of each edge")
    parser.add_argument("--brief", action="store_true", help="only a weight step's edges from inputs: most kernels")
    parser.add_argument("--front-end", action="store_true", help="generate no machine code: a tenth of the time")
    parser.add_argument("--found", action="store_true", help="kernels of found networks; as brief")
    args = parser.parse_args()
    print(f"Triton {triton.__version__}", flush=True)
    cases = [
        Case(*case, tuple(args.ops), args.brief, args.front_end, args.found)
        for case in product(args.targets, args.types, args.shapes)
    ]
    failed = False
    # Spawned, because forked processes would lack torch's threads.
    with ProcessPoolExecutor(min(len(os.sched_getaffinity(0)), len(cases)), get_context("spawn")) as pool:
        for done in as_completed([pool.submit(case.compile) for case in cases]):
            try:
                print("\n".join(done.result()), flush=True)
            except RuntimeError as error:
                failed = True
                print(error, file=sys.stderr, flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
