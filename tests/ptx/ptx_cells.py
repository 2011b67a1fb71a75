"""Execute the compiled kernels of a cell and compare its results with float64; needs Triton without its interpreter.

    python ptx_cells.py TARGET DTYPE C STRIDE N,H,W OPS [--nodes 2] [--exact] [--barriers] [--seeds 0 1]

prints JSON: results that are wrong, by how many times what is allowed; findings; instructions executed by kernel.
"""

import argparse
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch
from kernel_cases import Case, Results, fused, make_case
from ptx_machine import TritonMachine

from benchmarks.gpu_day.recording import nan_in_new_memory
from benchmarks.gpu_day.smoke import too_far
from benchmarks.traffic import launches_to
from fastdarts.kernels import bank


class Cell:
    """Hold a cell and count the instructions that its kernels execute."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.executed: Counter[str] = Counter()

    def run(self, machine: TritonMachine) -> Results:
        """Execute forward and backward; memory that nobody has written is NaN."""

        def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
            before = machine.executed
            machine.launch(kernel, grid, *args, **constants)
            self.executed[kernel.fn.__name__] += machine.executed - before

        with nan_in_new_memory(), launches_to(launch):
            return fused(self.case)


@contextmanager
def only_what_occurs() -> Iterator[None]:
    """Compile stages for the windows that they have, not for all usual ones: in a tenth of the time."""
    usual = bank.geometries

    def exact(stages: Any, normalised: bool) -> int:
        bits = 0
        for stage in stages:
            bits |= stage.geometry
        return bits

    bank.geometries = exact
    try:
        yield
    finally:
        bank.geometries = usual


def barriers(cell: Cell, machine: TritonMachine) -> dict[str, list[str]]:
    """Take out the barriers of one place after the other; return what that changes, by kernel and place."""
    found = {}
    right = cell.run(machine)
    for program, compiled in list(machine.programs.values()):
        for place in sorted(set(program.barriers())):
            program.without_barriers_at(place)
            machine.findings = []
            ours = cell.run(machine)
            changes = {finding.kind for finding in machine.findings}
            if any(not torch.equal(t, ours[name]) for name, t in right.items()):
                changes.add("other results")
            found[f"{compiled.metadata.name} {place}"] = sorted(changes)
        program.without_barriers_at("")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("dtype")
    parser.add_argument("C", type=int)
    parser.add_argument("stride", type=int)
    parser.add_argument("size", help="images,height,width")
    parser.add_argument("ops", help="of each edge, with commas")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--exact", action="store_true", help="compile only the windows that occur")
    parser.add_argument("--barriers", action="store_true", help="take out each barrier")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of orders of programs and warps")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    images, height, width = map(int, args.size.split(","))
    ops = tuple(args.ops.split(","))
    size = (images, height, width)
    case = make_case(ops, inputs=2, nodes=args.nodes, stride=args.stride, C=args.C, size=size).to(dtype)
    cell, machine = Cell(case), TritonMachine(args.target)
    report: dict[str, Any] = {"wrong": [], "findings": []}
    windows = only_what_occurs() if args.exact else launches_to(bank.launch)
    with windows:
        first: Results | None = None
        for seed in args.seeds:
            machine.seed = 1000 * seed
            ours = cell.run(machine)
            report["wrong"] += [f"{name}: {times:.1f} times" for name, times in too_far(ours, case).items()]
            if first and any(not torch.equal(t, ours[name]) for name, t in first.items()):
                report["wrong"].append(f"other bits in the order of seed {seed}")
            first = first or ours
        report["findings"] = [f"{f.kind} at {f.place} x{f.count}: {f.detail}" for f in machine.findings]
        report["executed"] = dict(cell.executed)
        report["barriers"] = barriers(cell, machine) if args.barriers else {}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
