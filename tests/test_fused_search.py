"""A search by the kernels is the search by the plain modules: the same alphas, step after step, on real images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, cross_entropy

from fastdarts.bilevel.architect import Architect
from fastdarts.ops import operators
from fastdarts.spaces.darts.supernet import SearchNetwork

pytestmark = pytest.mark.skipif(
    operators.unavailable(torch.device("cpu"), torch.float32) is not None,
    reason="needs fastdarts._C, which is not built",
)
Curve = tuple[Tensor, Tensor]  # alphas [steps, 2, edges, ops] and losses [steps, 2] (train, valid)


@pytest.fixture(scope="module")
def photographs(cifar10_images: Path) -> tuple[Tensor, Tensor]:
    """25 of CIFAR-10's training images a class at half their size, normalised, and their classes."""
    pictures, classes = [], []
    for target, folder in enumerate(sorted((cifar10_images / "train").iterdir())):
        for file in sorted(folder.iterdir())[:25]:
            pictures.append(torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1))
            classes.append(target)
    x = avg_pool2d(torch.stack(pictures).double() / 255, 2)
    return (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True), torch.tensor(classes)


def search(
    photographs: tuple[Tensor, Tensor],
    steps: int,
    dtype: torch.dtype,
    backend: str,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> tuple[SearchNetwork, Curve]:
    """Second-order steps as the paper's: alphas by Adam, then clipped SGD on the weights."""
    torch.manual_seed(0)
    network = SearchNetwork(C=4, layers=3, steps=2, multiplier=2, backend=backend).to(
        dtype, memory_format=memory_format
    )
    optimizer = torch.optim.SGD(network.parameters(), 0.025, momentum=0.9, weight_decay=3e-4)
    architect = Architect(network, lr=3e-3)
    x, y = photographs[0].to(dtype).contiguous(memory_format=memory_format), photographs[1]
    order = torch.randperm(len(x))
    halves = order[: len(x) // 2], order[len(x) // 2 :]
    alphas, losses = [], []
    for step in range(steps):
        take = torch.arange(8 * step, 8 * step + 8) % len(halves[0])
        train, valid = ((x[half[take]], y[half[take]]) for half in halves)
        architect.step(train, valid, 0.025, optimizer)
        loss = cross_entropy(network(train[0]), train[1])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5)
        optimizer.step()
        alphas.append(torch.stack([alpha.detach().double() for alpha in network.arch_parameters()]))
        losses.append(torch.stack([loss.detach().double(), architect.valid_loss.detach().double()]))
    return network, (torch.stack(alphas), torch.stack(losses))


def assert_same_search(photographs: tuple[Tensor, Tensor], steps: int) -> None:
    network, fused = search(photographs, steps, torch.float64, "fused")
    twin, plain = search(photographs, steps, torch.float64, "reference")
    for a, b in zip(fused, plain, strict=True):
        assert (a - b).abs().max() <= 1e-8
    assert network.genotype() == twin.genotype()
    assert (plain[0][-1] - plain[0][0]).abs().max() > 1e-3 * steps / 2  # it moved


def test_float64(photographs: tuple[Tensor, Tensor]) -> None:
    assert_same_search(photographs, 3)


@pytest.mark.slow
def test_float64_thirty_steps(photographs: tuple[Tensor, Tensor]) -> None:
    assert_same_search(photographs, 30)


def assert_near_enough(photographs: tuple[Tensor, Tensor], steps: int) -> None:
    """No further from the plain search than twice what a change of memory format alone makes of it."""
    _, fused = search(photographs, steps, torch.float32, "fused")
    _, nchw = search(photographs, steps, torch.float32, "reference")
    _, channels_last = search(photographs, steps, torch.float32, "reference", torch.channels_last)
    for a, b, c in zip(fused, nchw, channels_last, strict=True):
        for size in (lambda t: t.abs().max(), lambda t: t.square().mean().sqrt()):
            assert size(a - b) <= 2 * size(b - c)


@pytest.mark.slow
def test_float32_thirty_steps(photographs: tuple[Tensor, Tensor]) -> None:
    assert_near_enough(photographs, 30)
