"""Maps kernels/ to fastdarts.kernels and builds csrc/ into fastdarts._C; pyproject.toml has everything else.

Environment variables:
    FASTDARTS_BUILD=0       build nothing: the pure-Python package
    FASTDARTS_CUDA=1        build csrc/cuda also where there is no GPU; 0: nowhere. By default where torch sees a GPU
    FASTDARTS_SANITIZE=...  sanitizers to build with, e.g. address,undefined
    TORCH_CUDA_ARCH_LIST    as torch has it; default: the machine's own GPUs, or DEFAULT_CUDA_ARCHS where there are none
    MAX_JOBS                compilers at a time; by default one per core as far as memory allows
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup

# -g0 undoes the -g that Python brings. No -march: the sources choose the instruction set at run time.
CXX_FLAGS = ["-O3", "-g0", "-ffp-contract=fast", "-fno-math-errno"]
OPENMP = "-fopenmp"  # Apple's clang has none
GCC_FLAGS = ["-fno-predictive-commoning"]
NVCC_FLAGS = ["-O3"]
DEFAULT_CUDA_ARCHS = "8.0;9.0;10.0+PTX"
BYTES_PER_COMPILER = 3 << 29  # a file with torch's headers takes up to 1 GB, one of the tile kernels half of that


def sources(pattern: str) -> list[str]:
    return sorted(str(path) for path in Path("csrc").glob(pattern))


def find_cuda_home(torch_cuda: str) -> tuple[str | None, str]:
    """A toolkit folder that holds nvcc and headers of torch's major version, or None; and the reason, for the log.

    torch itself takes the folder above the nvcc on PATH, which is wrong where that nvcc is a wrapper script.
    """
    major = torch_cuda.split(".")[0]
    rejected = ""
    for home in cuda_candidates(torch_cuda):
        nvcc = home / "bin" / "nvcc"
        if not (nvcc.is_file() and (home / "include" / "cuda_runtime.h").is_file()):
            continue
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
        release = re.search(r"release (\d+)\.(\d+)", text)
        if release and release[1] == major:
            return str(home), f"nvcc {release[1]}.{release[2]} in {home}"
        rejected = f"; {nvcc} is release {release[0] if release else 'unknown'}"
    return None, f"no nvcc {major}.x found for a torch built with CUDA {torch_cuda}{rejected}"


def cuda_candidates(torch_cuda: str) -> Iterator[Path]:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            yield Path(os.environ[variable])
    on_path = shutil.which("nvcc")
    if on_path:
        yield Path(on_path).resolve().parents[1]
    yield Path(f"/usr/local/cuda-{torch_cuda}")
    yield Path("/usr/local/cuda")


def compiler_takes(flag: str) -> bool:
    compiler = shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")
    command = [*compiler, flag, "-fsyntax-only", "-x", "c++", os.devnull]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:  # no such compiler: building tells
        return True


def compilers_at_a_time() -> int:
    linux = sys.platform == "linux"
    cores = len(os.sched_getaffinity(0)) if linux else os.cpu_count() or 1
    available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text()) if linux else None
    memory = int(available[1]) << 10 if available else BYTES_PER_COMPILER
    return max(1, min(cores, memory // BYTES_PER_COMPILER))


def extension() -> dict[str, Any]:
    """setup()'s arguments that build fastdarts._C, as far as this machine can; says what it builds and why."""

    def say(text: str) -> None:
        print(f"fastdarts: {text}", file=sys.stderr, flush=True)

    if os.environ.get("FASTDARTS_BUILD", "1") == "0":
        say("FASTDARTS_BUILD=0, fastdarts._C is not built")
        return {}
    cpp = sources("**/*.cpp")
    if not cpp:
        say("csrc/ has no sources, fastdarts._C is not built")
        return {}
    try:
        import torch
    except ImportError:
        say("torch is not installed here, fastdarts._C is not built (an isolated build? use --no-build-isolation)")
        return {}

    cuda_home = None
    wish = os.environ.get("FASTDARTS_CUDA", "")
    if wish not in ("", "0", "1"):
        raise SystemExit(f"FASTDARTS_CUDA must be 0 or 1; got {wish!r}")
    if wish == "0":
        reason = "FASTDARTS_CUDA=0"
    elif wish == "" and not torch.cuda.is_available():
        reason = "torch sees no GPU here; FASTDARTS_CUDA=1 builds it all the same"
    else:
        if torch.version.cuda is None:
            reason = "torch was built without CUDA"
        elif not sources("cuda/*.cu"):
            reason = "csrc/cuda has no sources"
        else:
            cuda_home, reason = find_cuda_home(torch.version.cuda)
    if cuda_home:
        os.environ["CUDA_HOME"] = cuda_home  # read when torch.utils.cpp_extension is imported
        if not torch.cuda.is_available():
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_CUDA_ARCHS)
        reason += f", architectures {os.environ.get('TORCH_CUDA_ARCH_LIST', 'of the GPUs here')}"
    os.environ.setdefault("MAX_JOBS", str(compilers_at_a_time()))

    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    openmp = [OPENMP] if compiler_takes(OPENMP) else []
    if not openmp:
        say(f"the C++ compiler has no {OPENMP}: kernels run on one thread")
    cxx, nvcc, link = [*CXX_FLAGS, *openmp, *filter(compiler_takes, GCC_FLAGS)], list(NVCC_FLAGS), [*openmp]
    sanitizers = os.environ.get("FASTDARTS_SANITIZE", "")
    if sanitizers:
        # Without -fwrapv, which Python brings and which would define signed overflow away. vptr needs type information
        # that torch does not export. What the others would find, AddressSanitizer does when an address is used;
        # with them, or with checks that are no calls, compiling takes several times as long.
        left_out = "vptr,null,object-size,pointer-overflow,alignment"
        checks = [f"-fsanitize={sanitizers}", f"-fno-sanitize={left_out}", "-fno-sanitize-recover=all"]
        checks.append("--param=asan-instrumentation-with-call-threshold=0")
        cxx += ["-O1", "-g1", "-fno-omit-frame-pointer", "-fno-wrapv", *checks]
        link += checks
    options: dict[str, Any] = {
        "extra_compile_args": {"cxx": cxx, "nvcc": nvcc},
        "extra_link_args": link,
        "include_dirs": [str(Path("csrc").resolve())],
        "depends": sources("**/*.h") + sources("**/*.cuh"),
    }
    say(f"building fastdarts._C: C++ ({len(cpp)} files{', sanitizers ' + sanitizers if sanitizers else ''})")
    if cuda_home:
        # cublas and others are no part of a bare toolkit; torch's own wheels bring them
        for wheels in sorted((Path(torch.__file__).parents[1] / "nvidia").glob("cu*/include")):
            cxx += ["-idirafter", str(wheels)]
            nvcc += ["-Xcompiler", f"-idirafter,{wheels}"]
        say(f"building fastdarts._C: CUDA ({len(sources('cuda/*.cu'))} files, {reason})")
        module = CUDAExtension("fastdarts._C", cpp + sources("cuda/*.cu"), **options)
    else:
        say(f"building fastdarts._C: no CUDA part ({reason})")
        module = CppExtension("fastdarts._C", cpp, **options)
    return {"ext_modules": [module], "cmdclass": {"build_ext": BuildExtension}}


setup(
    packages=[*find_packages(include=["fastdarts", "fastdarts.*"]), "fastdarts.kernels"],
    package_dir={"fastdarts.kernels": "kernels"},
    package_data={"fastdarts": ["py.typed", "*.pyi"], "fastdarts.report": ["*.html"]},
    **extension(),
)
