"""A stem and a head of one's own, in the search network and in the discrete one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastdarts import DARTS_V2, EvalNetwork, SearchNetwork
from fastdarts.spaces.nasbench201.architecture import NasBench201Cell
from fastdarts.spaces.nasbench201.space import NasBench201
from fastdarts.spaces.nasbench201.supernet import SearchNetwork201

NETWORKS: list[Callable[..., nn.Module]] = [
    SearchNetwork,
    lambda **options: EvalNetwork(DARTS_V2, auxiliary=False, **options),
]
BENCHMARK_CELL = NasBench201Cell(
    ("nor_conv_3x3", "skip_connect", "avg_pool_3x3", "nor_conv_1x1", "none", "skip_connect")
)
OPS = ("nor_conv_3x3", "skip_connect", "avg_pool_3x3", "nor_conv_1x1", "none", "skip_connect")
OTHERS: list[Callable[..., nn.Module]] = [
    SearchNetwork201,
    lambda **options: NasBench201().discrete(NasBench201Cell(OPS), **options),
]


def quarter_stem(in_channels: int, channels: int) -> nn.Module:
    """Return a convolution that divides the image's sides by four."""
    return nn.Sequential(nn.Conv2d(in_channels, channels, 7, 4, 3, bias=False), nn.BatchNorm2d(channels))


def dense_head(channels: int, num_classes: int) -> nn.Module:
    """Return a classifier of each pixel."""
    return nn.Conv2d(channels, num_classes, 1)


@pytest.mark.parametrize("make", NETWORKS, ids=["search", "discrete"])
def test_shapes_and_gradients(make: Callable[..., Any]) -> None:
    network = make(C=4, num_classes=5, layers=3, in_channels=2, stem=quarter_stem, head=dense_head).train()
    sizes: list[torch.Size] = []
    network.cells[0].register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape))
    y = network(torch.randn(2, 2, 32, 32))
    assert sizes == [(2, 12, 8, 8)]
    assert y.shape == (2, 5, 2, 2)  # the stem and two reduction cells
    y.sum().backward()
    assert network.stem[0].weight.grad.isfinite().all()
    assert network.head.weight.grad.isfinite().all()
    assert not [name for name in network.state_dict() if name.startswith("classifier")]


@pytest.mark.parametrize("make", OTHERS, ids=["search", "discrete"])
def test_networks_of_the_benchmarks_space(make: Callable[..., Any]) -> None:
    network = make(C=4, num_classes=5, layers=1, in_channels=2, stem=quarter_stem, head=dense_head).train()
    y = network(torch.randn(2, 2, 32, 32))
    assert y.shape == (2, 5, 2, 2)  # the stem and two residual blocks
    y.sum().backward()
    assert network.stem[0].weight.grad.isfinite().all()
    assert not [name for name in network.state_dict() if name.startswith(("classifier", "lastact"))]


@pytest.mark.parametrize("make", NETWORKS, ids=["search", "discrete"])
def test_the_default_layers_given_as_ones_own_compute_the_same(make: Callable[..., Any]) -> None:
    class Head(nn.Module):
        def __init__(self, channels: int, num_classes: int) -> None:
            super().__init__()
            self.classifier = nn.Linear(channels, num_classes)

        def forward(self, x: Tensor) -> Tensor:
            return self.classifier(x.mean((2, 3)))

    def stem(in_channels: int, channels: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(in_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))

    built = []
    for own in ({}, {"stem": stem, "head": Head}):
        torch.manual_seed(0)
        built.append(make(C=4, layers=2, **own).eval())
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(built[0](x), built[1](x))


def test_auxiliary_head_beside_an_own_stem_and_head() -> None:
    network = EvalNetwork(DARTS_V2, C=4, num_classes=5, layers=3, stem=quarter_stem, head=dense_head).train()
    y, auxiliary = network(torch.randn(2, 3, 32, 32))
    assert y.shape == (2, 5, 2, 2)
    assert auxiliary.shape == (2, 5)
