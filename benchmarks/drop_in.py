"""Measure the gain of `from fastdarts import MixedOp` in original DARTS code: `python -m benchmarks.drop_in`.

The code is the tests' miniature of the original: softmax in the network's forward, a new model for the virtual weights,
a second-order alpha step with loops over parameters. It runs with its own MixedOp and with that of fastdarts, in turns,
so that disturbances of the machine affect both alike.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

import fastdarts
from benchmarks.machine import in_turns

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from drop_in import original  # type: ignore[import-not-found]

OWN, OURS = "its own MixedOp", "fastdarts.MixedOp"


def steps(C: int, layers: int, batch: int, size: int) -> dict[str, dict[str, Callable[[], object]]]:
    """Return the weight step and the whole search step of both variants, built from the same seed."""
    images, classes = torch.randn(2, batch, 1, size, size), torch.randint(10, (2, batch))
    train, valid = zip(images, classes, strict=True)
    found: dict[str, dict[str, Callable[[], object]]] = {"weight step": {}, "search step, second order": {}}
    for name, mixed_op in ((OWN, original.MixedOp), (OURS, fastdarts.MixedOp)):
        torch.manual_seed(0)
        search = original.Search(original.Network(mixed_op, C, layers))

        def weight_step(search: original.Search = search) -> None:
            search.sgd.zero_grad()
            search.model._loss(train).backward()
            search.sgd.step()

        found["weight step"][name] = weight_step
        found["search step, second order"][name] = partial(search.step, train, valid)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drop_in", description=(__doc__ or "").split("\n")[0])
    for name, default, text in (
        ("init-channels", 16, "channels of the first cells"),
        ("layers", 8, "number of cells, with two nodes each"),
        ("batch-size", 32, "images per step"),
        ("image-size", 32, "height and width of the images in pixels"),
        ("rounds", 5, "measured steps per variant"),
        ("threads", 1, "CPU threads"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default: {default})")
    arguments = parser.parse_args(argv)
    if arguments.layers < 3:
        parser.error(f"--layers must be at least 3, since fewer have no normal cell; got {arguments.layers}")
    torch.set_num_threads(arguments.threads)
    size = arguments.init_channels, arguments.layers, arguments.batch_size, arguments.image_size
    for step, variants in steps(*size).items():
        seconds = in_turns(variants, arguments.rounds)
        own, ours = (statistics.median(seconds[name]) for name in (OWN, OURS))
        ratios = [a / b for a, b in zip(seconds[OWN], seconds[OURS], strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{step}: {own:.3f} s with {OWN}, {ours:.3f} s with {OURS}: {own / ours:.2f} times as fast ({spread})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
