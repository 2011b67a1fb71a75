"""Execute the compiled kernel of running statistics and compare its results with float64.

    python ptx_running.py TARGET DTYPE

prints JSON: the largest error in units of the type's rounding, counters, findings. Needs Triton without its
interpreter.
"""

import json
import os
import sys

os.environ.pop("TRITON_INTERPRET", None)

import torch
from ptx_machine import TritonMachine

from benchmarks.traffic import launches_to
from fastdarts.kernels.running import update_running
from fastdarts.ops import running

CHANNELS, VALUES = [16, 70, 5], [2, 65536, 7]


def main(target: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    means = [torch.randn(C).to(dtype) for C in CHANNELS]
    variances = [(torch.rand(C) + 0.5).to(dtype) for C in CHANNELS]
    counters = [torch.tensor(count) for count in (0, 2**40)]
    stats = torch.cat([t for C in CHANNELS for t in (torch.randn(C), torch.rand(C))])
    true = [[t.double() for t in tensors] for tensors in (means, variances)]
    running._update_running(*true, [], stats.double(), VALUES, 0.1)
    reached = [("running", t) for t in (*means, *variances)] + [("counter", t) for t in counters]
    machine = TritonMachine(target, reached=reached)
    with launches_to(machine.launch):
        update_running(means, variances, counters, stats, VALUES, 0.1)
    pairs = zip([*means, *variances], [*true[0], *true[1]], strict=True)
    report = {
        "roundings": max(float((t.double() - exact).abs().max()) for t, exact in pairs) / torch.finfo(dtype).eps,
        "counters": [int(counter) for counter in counters],
        "findings": [f"{f.kind} at {f.place} x{f.count}: {f.detail}" for f in machine.findings],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], getattr(torch, sys.argv[2]))
