"""Twenty steps of three miniature code bases: with their own modules, with `MixedOp` instead, and patched."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import pytest
import torch
from drop_in import original, partial_channels, ports
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fastdarts

STEPS, BATCH = 20, 16


class CodeBase(NamedTuple):
    """A network made with the code base's own mixed op or with ours, its search, and where its alphas are."""

    network: Callable[..., nn.Module]
    ours: Callable[[int, int], nn.Module]
    search: Callable[..., Any]
    alphas: Callable[[Any], list[Tensor]]
    edges: int


CODE_BASES = {
    "original": CodeBase(
        original.Network, fastdarts.MixedOp, original.Search, lambda model: model.arch_parameters(), edges=15
    ),
    "ports": CodeBase(
        ports.SearchCNNController,
        partial(fastdarts.MixedOp, primitives=ports.PRIMITIVES),
        ports.Search,
        lambda model: model.alphas(),
        edges=15,
    ),
    "partial channels": CodeBase(
        partial_channels.Network,
        fastdarts.MixedOp,
        partial_channels.Search,
        lambda model: model.arch_parameters(),
        edges=10,
    ),
}


class Track(NamedTuple):
    """Record the course of a search: losses [steps], alphas after each step [steps, number of alphas]."""

    losses: Tensor
    alphas: Tensor

    def distances(self, other: "Track") -> tuple[float, float]:
        return (self.losses - other.losses).abs().max().item(), (self.alphas - other.alphas).abs().max().item()


def images(dtype: torch.dtype, layout: torch.memory_format) -> list[tuple[Tensor, Tensor]]:
    """Scikit-learn's digits, 8x8, in batches."""
    pixels, targets = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=dtype).reshape(-1, 1, 8, 8) / 16
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[: 2 * STEPS * BATCH]
    x, y = x[order].contiguous(memory_format=layout), torch.tensor(targets)[order]
    return list(zip(x.split(BATCH), y.split(BATCH), strict=True))


@cache
def run(
    name: str, kind: str, dtype: torch.dtype, layout: torch.memory_format = torch.contiguous_format, rounded: int = 0
) -> Track:
    """A search from a fixed seed; kind is "own", "ours" or "patched". rounded: a draw of other last bits of weights."""
    base = CODE_BASES[name]
    torch.manual_seed(1)
    model = base.network(base.ours) if kind == "ours" else base.network()
    if kind == "patched":
        report = fastdarts.patch(model)
        assert len(report.replaced) == base.edges, str(report)
        assert not report.left
    model.to(dtype=dtype, memory_format=layout)  # type: ignore[call-overload]
    for alpha in base.alphas(model):
        alpha.data = alpha.data.to(dtype)
    if rounded:
        bits = torch.Generator().manual_seed(rounded)
        for weight in model.parameters():
            weight.data *= 1 + torch.finfo(dtype).eps * torch.randint(-1, 2, weight.shape, generator=bits)
    search = base.search(model)
    batches = images(dtype, layout)
    losses, alphas = [], []
    for train, valid in zip(batches[::2], batches[1::2], strict=True):
        losses.append(search.step(train, valid))
        alphas.append(torch.cat([a.detach().flatten().double() for a in base.alphas(model)]))
    return Track(torch.tensor(losses, dtype=torch.float64), torch.stack(alphas))


@pytest.mark.parametrize("kind", ["ours", "patched"])
@pytest.mark.parametrize("name", CODE_BASES)
def test_same_search_in_float64(name: str, kind: str) -> None:
    own, ours = (run(name, k, torch.float64) for k in ("own", kind))
    assert own.losses[-1] < own.losses[0]
    assert max(own.distances(ours)) < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("name", CODE_BASES)
def test_as_near_as_rounding_allows_in_float32(name: str) -> None:
    """Adam makes whole steps of the smallest gradients: a last bit can decide which way, and the rest follows."""
    own = run(name, "own", torch.float32)
    others = [run(name, "own", torch.float32, torch.channels_last)]
    others += [run(name, "own", torch.float32, rounded=draw) for draw in range(1, 6)]
    allowed = [2 * max(distances) for distances in zip(*(own.distances(other) for other in others), strict=True)]
    for kind in ("ours", "patched"):
        ours = own.distances(run(name, kind, torch.float32))
        assert all(a <= b for a, b in zip(ours, allowed, strict=True)), (kind, ours, allowed)


def test_checkpoints_of_the_original_fit() -> None:
    own, ours = original.Network(), original.Network(fastdarts.MixedOp)
    ours.load_state_dict(own.state_dict(), strict=True)
    own.load_state_dict(ours.state_dict(), strict=True)
