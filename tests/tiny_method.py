"""Searches of any method on a few tiny images, without files."""

from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from fastdarts.bilevel.ranks import ALONE, Ranks
from fastdarts.data import ImageData
from fastdarts.methods import find
from fastdarts.runs.search_config import SearchConfig
from fastdarts.runs.search_state import SearchState
from fastdarts.search import _epoch_metrics
from fastdarts.spaces.darts.supernet import SearchNetwork

SMALL = {"epochs": 3, "batch_size": 8, "init_channels": 4, "layers": 3, "arch_lr": 0.03, "device": "cpu"}

OPTIONS: dict[str, dict[str, Any]] = {
    "random": {"cells": 4, "finalists": 2},
    "fairnas": {"cells": 4, "finalists": 2, "population": 2},
    "ofa": {"cells": 4, "finalists": 2, "population": 2},
    "dna": {"batches": 1, "smallest": 32},
    "robustdarts": {"iterations": 2, "images": 4},
    "darts-plus": {"min_epoch": 2},
    "p-darts": {"depth": (1.0, 1.0, 1.4)},
    "sdarts-adv": {"steps": 2},
    "drnas-progressive": {"k": (2, 1), "left": 2},
}

FIELDS: dict[str, dict[str, Any]] = {
    "ofa": {"space": "ofa", "layers": 2, "space_options": {"least": 2}, "cost": None},  # three phases
    "dna": {"space": "dna", "layers": 1, "primitives": ("k3 e3", "k5 e3"), "cost": None},
}
"""Fields of the config that a method needs besides its options."""


def tiny_state(method: str = "darts", ranks: Ranks = ALONE, **fields: Any) -> SearchState:
    """A search on 32 images of 6x6 in two classes, half of them for the alphas: two steps an epoch."""
    noise = torch.randint(0, 256, (32, 1, 6, 6), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    images = ImageData(noise, torch.arange(32) % 2, ("even", "odd"), (0.5,), (0.3,))
    options = {"method_options": OPTIONS.get(method, {})}
    config = SearchConfig(dataset="digits", method=method, **(SMALL | FIELDS.get(method, {}) | options | fields))
    first, second = (images.subset(torch.arange(16) + start) for start in (0, 16))
    return SearchState(config, first, second, cross_entropy, torch.device("cpu"), ranks)


def finish_epoch(state: SearchState) -> dict[str, Any]:
    """The steps that are left of the epoch and what follows them; returns its metrics without times."""
    while state.step < state.steps_per_epoch:
        state.train_step()
    metrics = _epoch_metrics(state, SimpleNamespace(stop_if_asked=lambda: None))  # type: ignore[arg-type]
    state.next_epoch(metrics)
    return {name: value for name, value in metrics.items() if name not in ("seconds", "images_per_second")}


def finish(state: SearchState) -> list[dict[str, Any]]:
    """All epochs that are left."""
    epochs = []
    while state.epoch < state.config.epochs and state.method.stopped is None:
        epochs.append(finish_epoch(state))
    return epochs


def paper_method(name: str, **fields: Any) -> Any:
    """A method with the settings of its paper for CIFAR-10."""
    return find(name)(SearchConfig(dataset="cifar10", method=name, **fields))


def network_of(method: Any, **arguments: Any) -> SearchNetwork:
    """A new network for a method, as a search makes it; by default tiny, in float64."""
    small = {"C": 4, "num_classes": 2, "in_channels": 1, "layers": 3}
    network = SearchNetwork(
        **(small | {k: v for k, v in method.network_arguments().items() if k != "layers"} | arguments)
    )
    method.attach(network)
    return network.double()


def paper_size(method: Any) -> int:
    """Weights of the method's search network with 16 channels, as a search on CIFAR-10 makes it."""
    with torch.device("meta"):
        network = SearchNetwork(C=16, **method.network_arguments())
    return sum(p.numel() for p in network.parameters())
