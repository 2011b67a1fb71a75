"""Describe the machine of a measurement, and measure its limits in arithmetic and memory traffic."""

import ctypes
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

# Twelve independent chains of multiply-adds in registers: more than latency times ports of any current core. Each has
# a different initial value, because a compiler would merge equal chains.
_FMA_SOURCE = """
#if defined(__AVX512F__)
typedef float vec __attribute__((vector_size(64)));
#elif defined(__AVX__)
typedef float vec __attribute__((vector_size(32)));
#else
typedef float vec __attribute__((vector_size(16)));
#endif
#define CHAINS 12
int lanes(void) { return CHAINS * sizeof(vec) / sizeof(float); }
float spin(long rounds) {
  vec a[CHAINS], b, c;
  float sum = 0;
  for (int i = 0; i < (int)(sizeof(vec) / sizeof(float)); ++i) {
    b[i] = 0.999f;
    c[i] = 0.001f * i;
    for (int k = 0; k < CHAINS; ++k) a[k][i] = i + 0.1f * k;
  }
  for (long r = 0; r < rounds; ++r)
    for (int k = 0; k < CHAINS; ++k) a[k] = a[k] * b + c;
  for (int k = 0; k < CHAINS; ++k) sum += a[k][0] + a[k][1];
  return sum;
}
"""


@dataclass(frozen=True)
class Peaks:
    """Hold measured limits: float32 multiply-adds in FLOP/s (and the method), matrix product, traffic in byte/s."""

    flops: float
    flops_by: str
    matmul_flops: float
    traffic: float


def device() -> torch.device:
    """Return the GPU if CUDA is available, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def environment(device: torch.device) -> dict[str, object]:
    """Return what a measurement depends on besides the case: device, threads, versions, commit, date, system load."""
    return {
        "device": device_name(device),
        "kind": device.type,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "load": os.getloadavg()[0],
    }


def measure_peaks(device: torch.device) -> Peaks:
    """Measure the limits in about three seconds; each is the best of several tries."""
    matmul = _matmul_flops(device)
    fma = _fma_flops(torch.get_num_threads()) if device.type == "cpu" else None
    return Peaks(
        fma or matmul,
        "multiply-adds in registers, a C loop on every thread" if fma else "float32 matrix product, n = 2048",
        matmul,
        _traffic(device),
    )


def _fma_flops(threads: int) -> float | None:
    """Return the FLOP/s of float32 multiply-adds on `threads` threads; None if there is no working C compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "fma.c", Path(folder) / "fma.so"
        source.write_text(_FMA_SOURCE)
        options = ["-O3", "-march=native", "-funroll-loops", "-ffp-contract=fast", "-shared", "-fPIC"]
        built = subprocess.run([compiler, *options, str(source), "-o", str(library)], capture_output=True)
        if built.returncode:
            return None
        loop = ctypes.CDLL(str(library))
    loop.spin.argtypes, loop.spin.restype = [ctypes.c_long], ctypes.c_float
    rounds = 20_000_000
    with ThreadPoolExecutor(threads) as pool:  # a ctypes call lets other threads run

        def spin() -> None:
            list(pool.map(loop.spin, [rounds] * threads))

        return 2 * threads * rounds * loop.lanes() / _best(spin, 4)


def _matmul_flops(device: torch.device) -> float:
    n = 2048
    a, b = torch.randn(2, n, n, device=device)
    return 2 * n**3 / _best(lambda: a @ b, 8, device)


def _traffic(device: torch.device) -> float:
    """Return the bytes read and written per second by c = a + b on vectors too large for any cache."""
    a, b, c = torch.ones(3, 2**25, device=device)
    return 3 * a.numel() * a.element_size() / _best(lambda: torch.add(a, b, out=c), 8, device)


def _best(run: Callable[[], object], tries: int, device: torch.device | None = None) -> float:
    times = []
    for _ in range(tries + 1):  # the first one is a warm-up
        start = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def in_turns(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Call the variants in turns; return the seconds of each variant's calls, one per round, after a warm-up call."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, call in variants.items():
            start = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def synchronize(device: torch.device | None) -> None:
    """Wait until a GPU has finished its work; do nothing on a CPU."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def _commit() -> str | None:
    """Return the commit of the benchmarks' checkout, with a + if tracked files were changed; None outside of one."""

    def git(*arguments: str) -> str:
        root = Path(__file__).parent
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no").strip()
        return git("rev-parse", "--short", "HEAD").strip() + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
