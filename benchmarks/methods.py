"""Time of a search step of each method relative to DARTS': `python -m benchmarks.methods --methods drnas,reinmax`.

The network has 16 channels and 8 cells, as on CIFAR-10; images are noise. A step moves alphas and weights at order 1.
Methods take turns, and each figure is a ratio of medians within this run. Prints rows for the table in docs/methods.md;
methods that cannot search this network are named with the reason.
"""

import argparse
import statistics
from collections.abc import Sequence
from functools import partial

import torch
from torch.nn.functional import cross_entropy

from benchmarks.machine import device_name, in_turns
from fastdarts.data import ImageData
from fastdarts.methods import NAMES, find
from fastdarts.runs.search_config import SearchConfig
from fastdarts.runs.search_state import SearchState


def state_of(method: str, batch_size: int, channels: int) -> SearchState:
    """Return a search in its second epoch, where alphas move and what grows from 0 has begun to.

    Raises: ValueError if the method cannot search this network.
    """
    config = SearchConfig(
        dataset="cifar10",
        method=method,
        order=1,
        epochs=60,
        alpha_warmup=0.0,
        batch_size=batch_size,
        init_channels=channels,
        layers=8,
        device="cpu",
    )
    noise = torch.randint(0, 256, (4 * batch_size, 3, 32, 32), dtype=torch.uint8)
    names = tuple(map(str, range(10)))
    images = ImageData(noise, torch.arange(4 * batch_size) % 10, names, (0.5,) * 3, (0.25,) * 3)
    halves = images.subset(torch.arange(2 * batch_size)), images.subset(torch.arange(2 * batch_size, 4 * batch_size))
    second = None if find(method).level in ("single", "coordinate") else halves[1]
    state = SearchState(config, halves[0], second, cross_entropy, torch.device("cpu"))
    state.method.begin_epoch(1)
    return state


def step(state: SearchState) -> None:
    """Do one step; an epoch begins anew when its batches are used up."""
    if state.step == state.steps_per_epoch:
        state.step = 0
    state.train_step()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(name for name in NAMES if name != "darts"), metavar="NAME,...")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    states: dict[str, SearchState] = {}
    for name in ("darts", *args.methods.split(",")):
        try:
            states[name] = state_of(name, args.batch_size, args.channels)
        except ValueError as error:
            print(f"without {name}: {error}")
    times = in_turns({name: partial(step, state) for name, state in states.items()}, args.rounds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(
        f"{device_name(torch.device('cpu'))}, {torch.get_num_threads()} threads; darts: {medians['darts']:.3f} s a step"
    )
    for name, median in medians.items():
        print(f"| `{name}` | {median / medians['darts']:.2f} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
