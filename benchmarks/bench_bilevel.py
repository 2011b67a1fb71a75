"""What a search step does beside the network's passes, on the supernet's 1,399 tensors; run by `make bench`.

The groups set our way against the usual one:
- alpha step without its passes: all of `alpha_gradients` with the passes replaced by ready gradients, against loops
  over the parameters and a copy of the model, as in the original code;
- clip and SGD: on ready gradients, against `clip_grad_norm_` and `torch.optim.SGD(foreach=True)`;
- whole steps, and the sampling and augmentation of their two batches, to set shares against.
"""

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from fastdarts.augment import Augment
from fastdarts.bilevel import Architect
from fastdarts.data import BatchStream, ImageData
from fastdarts.flat import FlatSGD
from fastdarts.network import SearchNetwork
from fastdarts.step import SearchStep

BATCH, XI = 64, 0.025
NOTHING = (torch.zeros(BATCH, 3, 32, 32), torch.zeros(BATCH, dtype=torch.int64))


@pytest.fixture
def supernet() -> SearchNetwork:
    return SearchNetwork(C=16, layers=8)


def gradients_like(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [1e-3 * torch.randn_like(t) for t in tensors]


def stream() -> tuple[BatchStream, Augment]:
    mean, std = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
    images = torch.randint(256, (2048, 3, 32, 32), dtype=torch.uint8)
    data = ImageData(images, torch.randint(10, (2048,)), tuple("0123456789"), mean, std)
    return BatchStream(data, BATCH, seed=0), Augment(mean, std, crop_padding=4, flip=True, cutout=0, generator_seed=0)


def measure(benchmark: BenchmarkFixture, function: Callable[[], object], rounds: int = 20) -> None:
    benchmark.pedantic(function, rounds=rounds, warmup_rounds=2)


@pytest.mark.benchmark(group="alpha step without its passes")
def test_between_the_passes_flat(benchmark: BenchmarkFixture, supernet: SearchNetwork) -> None:
    architect, optimizer = Architect(supernet), FlatSGD(supernet.parameters(), XI)
    inputs = [*architect.alphas, *architect.flat.weights]
    ready = {id(t): g for t, g in zip(inputs, gradients_like(inputs), strict=True)}

    def no_pass(batch: object, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        return torch.zeros(()), [ready[id(t)] for t in inputs]

    architect._gradients = no_pass  # type: ignore[method-assign]
    measure(benchmark, lambda: architect.alpha_gradients(NOTHING, NOTHING, XI, optimizer))


@pytest.mark.benchmark(group="alpha step without its passes")
def test_between_the_passes_loops(benchmark: BenchmarkFixture, supernet: SearchNetwork) -> None:
    weights, alphas = list(supernet.parameters()), supernet.arch_parameters()
    gradients, buffers, v = (gradients_like(weights) for _ in range(3))
    direct, plus, minus = (gradients_like(alphas) for _ in range(3))

    @torch.no_grad()
    def between() -> list[Tensor]:
        virtual = copy.deepcopy(supernet)
        for w, original, g, buffer in zip(virtual.parameters(), weights, gradients, buffers, strict=True):
            w.copy_(original - XI * (0.9 * buffer + g + 3e-4 * original))
        epsilon = 0.01 / torch.cat([t.reshape(-1) for t in v]).norm().item()
        for step in (epsilon, -2 * epsilon, epsilon):
            for w, direction in zip(weights, v, strict=True):
                w.add_(direction, alpha=step)
        return [a - XI * (p - m) / (2 * epsilon) for a, p, m in zip(direct, plus, minus, strict=True)]

    measure(benchmark, between)


@pytest.mark.benchmark(group="clip and SGD")
@pytest.mark.parametrize("ready", [True, False], ids=["flat gradient", "gathering it"])
def test_clip_and_sgd_flat(benchmark: BenchmarkFixture, supernet: SearchNetwork, ready: bool) -> None:
    optimizer = FlatSGD(supernet.parameters(), XI, weight_decay=3e-4)
    gradients = gradients_like(list(supernet.parameters()))
    flat = optimizer.flat.gather(gradients)
    measure(
        benchmark,
        lambda: optimizer.step(gradient=flat if ready else optimizer.flat.gather(gradients), max_norm=5.0),
    )


@pytest.mark.benchmark(group="clip and SGD")
def test_clip_and_sgd_torch(benchmark: BenchmarkFixture, supernet: SearchNetwork) -> None:
    weights = list(supernet.parameters())
    optimizer = torch.optim.SGD(weights, XI, momentum=0.9, weight_decay=3e-4, foreach=True)
    for w, g in zip(weights, gradients_like(weights), strict=True):
        w.grad = g

    def step() -> None:
        nn.utils.clip_grad_norm_(weights, 5.0)
        optimizer.step()

    measure(benchmark, step)


@pytest.mark.benchmark(group="whole step, batch 64")
def test_sampling_and_augmentation(benchmark: BenchmarkFixture) -> None:
    batches, augment = stream()

    def two_batches() -> None:
        for _ in range(2):
            augment(batches.next()[0])

    measure(benchmark, two_batches)


@pytest.mark.benchmark(group="whole step, batch 64")
@pytest.mark.parametrize("part", ["alpha step", "search step"])
@pytest.mark.parametrize("order", [1, 2])
def test_step(benchmark: BenchmarkFixture, supernet: SearchNetwork, order: int, part: str) -> None:
    network = supernet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    architect, optimizer = Architect(network), FlatSGD(network.parameters(), XI, weight_decay=3e-4)
    search = SearchStep(network, architect, optimizer, order=order)
    images, augment = stream()
    train, valid = ((augment(x), y) for x, y in (images.next(), images.next()))
    if part == "search step":
        benchmark.pedantic(lambda: search.step(train, valid), rounds=3, warmup_rounds=1)
    else:
        benchmark.pedantic(lambda: architect.step(train, valid, XI, optimizer, order), rounds=3, warmup_rounds=1)
