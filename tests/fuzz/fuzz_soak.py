"""A long search whose memory, open files and threads do not grow.

python tests/fuzz/fuzz_soak.py --steps 1000
"""

import argparse
import gc
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from fastdarts.search import SearchConfig, search

STEPS_PER_EPOCH = 112
"""Half of the 1,797 images of digits train the weights, in batches of 8."""

WARM_UP = 2
"""Epochs in which caches fill and files are opened."""

GROWTH = 4 << 20
"""Bytes that the process may grow after that, by its list of epochs and by fragments."""


def measured() -> dict[str, int]:
    """Return the resident bytes, open files, threads and living tensors of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    counts = {name: len(list(Path(f"/proc/self/{name}").iterdir())) for name in ("fd", "task")}
    tensors = sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
    return {"bytes": pages * 4096, "open files": counts["fd"], "threads": counts["task"], "tensors": tensors}


def soak(steps: int, folder: Path, **options: Any) -> list[dict[str, int]]:
    """Search for so many steps and return what was measured after each epoch; `options` are a SearchConfig's."""
    seen: list[dict[str, int]] = []
    small = {"init_channels": 2, "layers": 1, "batch_size": 8, "device": "cpu", "order": 2, "out": folder}
    config = SearchConfig(**{"epochs": -(-steps // STEPS_PER_EPOCH), **small, **options})
    search(config, callbacks=[lambda *_: seen.append(measured())])
    return seen


def growth(seen: list[dict[str, int]]) -> list[str]:
    """Say what grew after the warm-up. Alphas and op weights of each epoch are kept: two tensors a group."""
    first, last = seen[WARM_UP - 1], seen[-1]
    allowed = {"bytes": GROWTH, "open files": 0, "threads": 0, "tensors": 4 * (len(seen) - WARM_UP)}
    return [
        f"{name} grew from {first[name]} to {last[name]}" for name in first if last[name] > first[name] + allowed[name]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seen = soak(args.steps, Path(folder) / "out")
    for epoch, numbers in enumerate(seen, start=1):
        words = ", ".join(f"{value} {name}" for name, value in numbers.items())
        print(f"after {epoch * STEPS_PER_EPOCH} steps: {words}")
    grown = growth(seen)
    print("; ".join(grown) or "nothing grew")
    return int(bool(grown))


if __name__ == "__main__":
    sys.exit(main())
