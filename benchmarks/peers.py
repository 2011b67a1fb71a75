"""Time a first-order search step of other libraries' DARTS supernets beside ours: `python -m benchmarks.peers`.

Takes the libraries that can be imported: `confopt` (ConfigurableOptimizer) and `naslib` from their checkouts on
PYTHONPATH, `nni` from PyPI. Each builds its own supernet of 16 channels and 8 cells for CIFAR-10 and does the same
work: a step of Adam on the alphas, then one of SGD with clipped gradients on the weights, as in its own trainer. Images
are noise, in float32. Networks take turns, and each figure is a ratio of medians within this run.
"""

import statistics
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import FusedSearch
from benchmarks.machine import device_name, in_turns
from benchmarks.original import OriginalSearch
from fastdarts import SearchNetwork

CHANNELS, LAYERS, CLASSES = 16, 8, 10


class Supernet(nn.Module):
    """Give a library's supernet the interface of `OriginalSearch`: its weights, `arch_parameters()` and logits.

    Args:
        network: the library's.
        alphas: its architecture parameters, which are no weights.
        logits: takes them from what the network returns.
    """

    def __init__(self, network: nn.Module, alphas: Sequence[Tensor], logits: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self._network, self._alphas, self._logits = [network], list(alphas), logits  # a list hides its alphas
        known = set(alphas)
        self.weights = nn.ParameterList(w for w in network.parameters() if w not in known and w.requires_grad)

    def arch_parameters(self) -> list[Tensor]:
        return self._alphas

    def forward(self, images: Tensor) -> Tensor:
        return self._logits(self._network[0](images))


def confopt_supernet() -> Supernet:
    from confopt.searchspace import DARTSSearchSpace

    network = DARTSSearchSpace(C=CHANNELS, num_classes=CLASSES, layers=LAYERS)
    return Supernet(network, network.arch_parameters, lambda outputs: outputs[1])


def naslib_supernet() -> Supernet:
    from naslib.optimizers import DARTSOptimizer
    from naslib.search_spaces import NasBench301SearchSpace

    optimizer = DARTSOptimizer()
    optimizer.adapt_search_space(NasBench301SearchSpace(n_classes=CLASSES, auxiliary=False), "cifar10")
    optimizer.before_training()
    return Supernet(optimizer.graph, list(optimizer.architectural_weights), lambda logits: logits)


def nni_supernet() -> Supernet:
    from nni.nas.hub.pytorch import DARTS as Space
    from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
    from nni.nas.strategy import DARTS

    network = DARTS().mutate_model(Space(width=CHANNELS, num_cells=LAYERS, dataset="cifar"))
    modules = (module for module in network.modules() if isinstance(module, BaseSuperNetModule))
    alphas = chain.from_iterable(m.arch_parameters() for m in modules if hasattr(m, "arch_parameters"))
    return Supernet(network, list(dict.fromkeys(alphas)), lambda logits: logits)


PEERS: dict[str, Callable[[], Supernet]] = {
    "confopt": confopt_supernet,
    "naslib": naslib_supernet,
    "nni": nni_supernet,
}


def searches(names: Sequence[str]) -> dict[str, OriginalSearch | FusedSearch]:
    """Return our search and those of the named libraries; names what cannot be imported, and why."""
    made: dict[str, OriginalSearch | FusedSearch] = {
        "fastdarts": FusedSearch(SearchNetwork(CHANNELS, CLASSES, LAYERS)),
        "plain modules": OriginalSearch(SearchNetwork(CHANNELS, CLASSES, LAYERS, backend="reference")),
    }
    for name in names:
        try:
            made[name] = OriginalSearch(PEERS[name]())
        except ImportError as error:
            print(f"without {name}: {error}")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--peers", default=",".join(PEERS), metavar="NAME,...")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    size = args.image_size
    batches = [
        (torch.randn(args.batch_size, 3, size, size), torch.randint(CLASSES, (args.batch_size,))) for _ in range(2)
    ]
    found = searches(args.peers.split(","))
    steps = {name: partial(search.search_step, batches[0], batches[1], 1) for name, search in found.items()}
    times = in_turns(steps, args.rounds)
    ours = statistics.median(times["fastdarts"])
    print(f"{device_name(torch.device('cpu'))}, {torch.get_num_threads()} threads, batch {args.batch_size}")
    for name, values in times.items():
        weights = sum(w.numel() for w in found[name].network.parameters())
        seconds = statistics.median(values)
        print(f"{name}: {seconds:.3f} s a search step, {seconds / ours:.1f} times fastdarts; {weights:,} weights")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
