"""Make the kit: what a machine with a GPU would otherwise spend its first minutes on. Needs no GPU.

    python -m benchmarks.gpu_day.kit compile FOLDER      # with Python 3.12, torch 2.11, Triton 3.6: Triton's cache
    python -m benchmarks.gpu_day.kit references FOLDER   # with any: numbers of each launch of the smoke test
    python -m benchmarks.gpu_day.kit check FOLDER        # fails if a kernel of a search would be compiled anew
    python -m benchmarks.gpu_day.kit pack FOLDER [IMAGES]

`make gpu-kit` runs all of them. FOLDER/lib holds the extension.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, patch

COMMANDS = ("compile", "references", "check", "pack")
LARGEST = 45_000_000  # bytes of a packed kit
KEPT = (".cubin", ".json", ".so")  # of Triton's cache


class NoGPU:
    """Stand for Triton's driver of an H100, as far as compiling needs one."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_search(folder: Path, small: bool, may_compile_c: bool) -> tuple[list[str], list[str]]:
    """Compile all kernels of a search and of the smoke test into FOLDER/triton, with the code that starts them.

    small: only those of the stand-in's smoke test. may_compile_c: False raises RuntimeError if that code is not there.

    Returns: names of the kernels that were compiled, and of those that were there.
    """
    os.environ |= {"TRITON_CACHE_DIR": str(folder / "triton"), "TRITON_STORE_BINARY_ONLY": "1"}
    import torch
    import triton
    from kernel_cases import fused
    from triton.runtime import build

    from benchmarks.gpu_day import smoke
    from benchmarks.gpu_day.alternative import streams
    from benchmarks.gpu_day.day import PAPER, SMALL
    from benchmarks.traffic import Planning, Search, fused_steps
    from fastdarts.kernels.launch import compiling_ahead, launch

    compiled: list[str] = []
    found: list[str] = []
    sources: dict[str, Any] = {}

    def listen(src: Any, metadata: dict[str, Any], cache_hit: bool, **_: Any) -> None:
        (found if cache_hit else compiled).append(src.name)
        sources[repr((src.signature, src.constants))] = (src, metadata)

    triton.runtime.driver.set_active(NoGPU())
    triton.knobs.compilation.listener = listen
    with compiling_ahead():
        for case in smoke.cases(SMALL if small else PAPER).values():
            fused(case)
        if not small:
            search = Search(batch=8)  # kernels are the same for any number of images that leaves a GPU room
            network = search.network("auto").eval()
            with Planning(launch):
                for count in ("1", "2"):
                    with streams(count):
                        for step in fused_steps(search).values():
                            step()
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                    network(search.data(search.batch)[0])
    with_starters(sources, build._build if may_compile_c else None)
    return compiled, found


def with_starters(sources: dict[str, Any], compiler: Callable[..., str] | None) -> None:
    """Compile the C code by which Triton 3.6 starts kernels, and what reads a GPU's properties, into the cache as well.

    It is linked to the driver's library, in whose place an empty one serves. compiler: None refuses to compile.
    """
    import triton
    from triton.backends.nvidia import driver
    from triton.runtime import build

    with (
        tempfile.TemporaryDirectory() as stub,
        patch.object(build, "_load_module_from_path", _never_loaded),
        patch.object(build, "_build", compiler or _refused),
    ):
        if compiler:
            empty = ["gcc", "-shared", "-x", "c", os.devnull, "-Wl,-soname,libcuda.so.1", "-o", f"{stub}/libcuda.so.1"]
            subprocess.run(empty, check=True)
        triton.knobs.nvidia.libcuda_path = stub
        driver.CudaUtils()
        for source, metadata in sources.values():
            driver.CudaLauncher(source, SimpleNamespace(**metadata))


def _refused(name: str, *_: Any) -> str:
    raise RuntimeError(f"{name} is not in the cache")


def _never_loaded(name: str, path: str) -> Any:
    return MagicMock()


def pack(folder: Path, images: Path | None) -> Path:
    """Pack what a GPU machine needs of FOLDER, and images, into FOLDER.tar.gz; return its path.

    Raises: ValueError if that is larger than a kit may be.
    """
    archive = folder.with_name(f"{folder.name}.tar.gz")
    kept = [path for path in folder.rglob("*") if path.suffix in (*KEPT, ".pt") and "temp" not in path.parts]
    with tarfile.open(archive, "w:gz", compresslevel=6) as tar:
        for path in sorted(kept):
            tar.add(path, Path("gpu-kit") / path.relative_to(folder))
        if images:
            tar.add(images, Path("gpu-kit") / images.name)
    size = archive.stat().st_size
    if size > LARGEST:
        raise ValueError(f"{archive} has {size:,} bytes; a kit may have {LARGEST:,}")
    return archive


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.gpu_day.kit")
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("images", type=Path, nargs="?", help="archive of images to pack as well")
    parser.add_argument("--small", action="store_true", help="only a small cell's kernels, to try the kit itself")
    args = parser.parse_args()
    if args.command == "compile":
        compiled, found = compile_search(args.folder, args.small, True)
        print(f"{len(compiled)} kernels compiled, {len(found)} were there")
    elif args.command == "references":
        from benchmarks.gpu_day import smoke
        from benchmarks.gpu_day.day import PAPER, SMALL

        smoke.save(SMALL if args.small else PAPER, args.folder / "launches.pt")
    elif args.command == "check":
        compiled, found = compile_search(args.folder, args.small, False)
        print(f"{len(found)} kernels in the cache, {len(compiled)} compiled anew: {sorted(set(compiled))}")
        sys.exit(bool(compiled))
    else:
        archive = pack(args.folder, args.images)
        print(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
