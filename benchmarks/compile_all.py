"""Compiles every Triton kernel for all targets, types and shapes with the Triton at hand, in parallel, without a GPU.

    python -m benchmarks.compile_all [--targets sm_90] [--types bfloat16] [--shapes 16/1 64/2] [--brief | --front-end]

prints a line for each kernel: target, type, shape, name, registers, spilled bytes. It ends with an error if one does
not compile, or if Triton 3.6 would take two of its functions for one.
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
from benchmarks.kernel_launches import SHAPES, Launch, launches, more_launches
from fastdarts.primitives.table import PRIMITIVES

TYPES = ("bfloat16", "float32", "float16")


@dataclass(frozen=True)
class Case:
    """What one process compiles."""

    target: str
    dtype: str
    shape: str  # channels/stride
    ops: tuple[str, ...]
    brief: bool  # only what a weight step needs for edges from a cell's inputs
    front_end: bool  # no machine code: a tenth of the time

    def compile(self) -> list[str]:
        """Compile each kernel and return its line."""
        lines: dict[str, str] = {}
        for launch in self.launches():
            if identity(launch) not in lines:
                name = f"{self.target} {self.dtype} {self.shape} {launch[0].fn.__name__}"
                with errors_named(name), functions_told_apart():
                    lines[identity(launch)] = f"{name} {self.compile_one(launch)}"
        return list(lines.values())

    def launches(self) -> list[Launch]:
        C, stride = map(int, self.shape.split("/"))
        args = C, stride, getattr(torch, self.dtype), self.ops
        return launches(*args) + ([] if self.brief else more_launches(*args))

    def compile_one(self, launch: Launch) -> str:
        """Return registers and spilled bytes, where machine code is made."""
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
    """Return what tells a launch's kernel from others that are compiled."""
    kernel, args, constants = launch
    kinds = [[a.dtype for a in arg] if isinstance(arg, tuple) else getattr(arg, "dtype", None) for arg in args]
    return repr((kernel.fn.__name__, kinds, constants))


@contextmanager
def errors_named(what: str) -> Iterator[None]:
    """Tell of an error which kernel it is in, and the compiler's message; what else that prints fills many screens."""
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
            why = [*str(cause).splitlines()[-1:], *said[:1]]  # before its last line stands the source
            raise RuntimeError(f"{what}: {type(cause).__name__}: {'; '.join(why)}") from None
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


@contextmanager
def functions_told_apart() -> Iterator[None]:
    """Refuse calls of a device function that differ only in which tuples their tensors stand in.

    Triton 3.6 makes one function of them, which is wrong for all but the first, and compiles where it happens to fit.
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
    """Yield an argument's tensors and constants: the place of each, its type or value, and whether it is a constant."""
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
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES, metavar="C/STRIDE")
    parser.add_argument("--ops", nargs="+", default=[*PRIMITIVES, "sep_conv_7x7"], help="of each edge")
    parser.add_argument("--brief", action="store_true", help="a weight step, edges from inputs: most kernels")
    parser.add_argument("--front-end", action="store_true", help="no machine code: a tenth of the time")
    args = parser.parse_args()
    print(f"Triton {triton.__version__}", flush=True)
    cases = [
        Case(*case, tuple(args.ops), args.brief, args.front_end)
        for case in product(args.targets, args.types, args.shapes)
    ]
    failed = False
    # Not forked: torch's threads would not come along.
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
