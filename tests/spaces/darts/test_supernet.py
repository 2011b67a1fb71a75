"""The search network: names, counts and shapes of the original; wiring; what is said of wrong arguments."""

import copy
import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fastdarts.primitives.table import PRIMITIVES
from fastdarts.spaces.darts.supernet import SearchNetwork
from fastdarts.spaces.nasbench201.supernet import SearchNetwork201
from fastdarts.spaces.supernet import Supernet

BUFFERS = ["running_mean", "running_var", "num_batches_tracked"]


def weights_of(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_counts_of_the_papers_network() -> None:
    network = SearchNetwork()
    assert weights_of(network) == 1_930_618
    assert len(list(network.parameters())) == 1399
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == 929
    assert sum(buffer.numel() for buffer in network.buffers()) == 75_521
    cells = [45_888, 46_144, 144_000, 137_856, 139_904, 484_608, 460_032, 468_224]
    assert [weights_of(cell) for cell in network.cells] == cells
    assert weights_of(network.stem) == 1392
    assert weights_of(network.classifier) == 2570
    assert [tuple(alpha.shape) for alpha in network.arch_parameters()] == [(14, 8), (14, 8)]


@pytest.mark.parametrize(
    ("C", "layers", "weights", "reductions"),
    [
        (4, 8, 207_094, [2, 5]),
        (16, 20, 4_548_730, [6, 13]),
        (16, 5, 1_275_834, [1, 3]),
        (2, 14, None, [4, 9]),
        (2, 2, None, [0, 1]),
        (2, 1, None, [0]),
    ],
)
def test_counts_of_other_networks(C: int, layers: int, weights: int | None, reductions: list[int]) -> None:
    with torch.device("meta"):
        network = SearchNetwork(C, layers=layers)
    assert weights is None or weights_of(network) == weights
    assert [i for i, cell in enumerate(network.cells) if cell.reduction] == reductions


def test_shapes_and_arithmetic_of_every_cell() -> None:
    with torch.device("meta"):
        network = SearchNetwork(backend="reference")
        x = torch.empty(2, 3, 32, 32)
    shapes: list[tuple[int, ...]] = []
    macs = 0

    def count(module: nn.Module, _: object, out: torch.Tensor) -> None:
        nonlocal macs
        macs += out.numel() // len(out) * module.weight[0].numel()

    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    for cell in network.cells:
        cell.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))
    assert tuple(network(x).shape) == (2, 10)
    sizes = [(64, 32), (64, 32), (128, 16), (128, 16), (128, 16), (256, 8), (256, 8), (256, 8)]
    assert shapes == [(2, channels, size, size) for channels, size in sizes]
    assert macs == 300_255_744


def norm(prefix: str) -> list[str]:
    return [f"{prefix}.{buffer}" for buffer in BUFFERS]


def op_names(name: str, stride: int) -> list[str]:
    match name.split("_")[0]:
        case "max" | "avg":
            return norm("1")
        case "sep":
            return [
                *("op.1.weight", "op.2.weight", *norm("op.3")),
                *("op.5.weight", "op.6.weight", *norm("op.7")),
            ]
        case "dil":
            return ["op.1.weight", "op.2.weight", *norm("op.3")]
        case "skip" if stride == 2:
            return ["conv_1.weight", "conv_2.weight", *norm("bn")]
    return []


def test_names_are_the_originals() -> None:
    network = SearchNetwork(C=2, layers=3)  # cells 1 and 2 are reductions
    expected = ["stem.0.weight", "stem.1.weight", "stem.1.bias", *norm("stem.1")]
    for i in range(3):
        first = ["conv_1.weight", "conv_2.weight", *norm("bn")] if i == 2 else ["op.1.weight", *norm("op.2")]
        expected += [f"cells.{i}.preprocess0.{name}" for name in first]
        expected += [f"cells.{i}.preprocess1.{name}" for name in ["op.1.weight", *norm("op.2")]]
        edge = 0
        for node in range(4):
            for source in range(2 + node):
                for o, primitive in enumerate(PRIMITIVES):
                    names = op_names(primitive, 2 if i > 0 and source < 2 else 1)
                    expected += [f"cells.{i}._ops.{edge}._ops.{o}.{name}" for name in names]
                edge += 1
    expected += ["classifier.weight", "classifier.bias"]
    assert list(network.state_dict()) == expected
    assert "cells.0._ops.3._ops.4.op.1.weight" in expected
    shape = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert shape["cells.0._ops.3._ops.4.op.1.weight"] == (2, 1, 3, 3)
    assert shape["cells.1._ops.0._ops.3.conv_2.weight"] == (2, 4, 1, 1)


def test_wiring() -> None:
    """Stem twice into cell 0, then the two cells before; mean over pixels; the classifier."""
    network = SearchNetwork(
        C=2, num_classes=3, layers=4, steps=2, multiplier=2, in_channels=1, backend="reference"
    ).eval()
    x = torch.randn(2, 1, 7, 6)
    normal, reduce = (alpha.softmax(-1) for alpha in network.arch_parameters())
    s = [network.stem(x)] * 2
    for i, cell in enumerate(network.cells):  # reductions at 4 // 3 and 8 // 3
        s.append(cell(s[-2], s[-1], reduce if i in (1, 2) else normal))
    want = s[-1].mean((2, 3)) @ network.classifier.weight.T + network.classifier.bias
    torch.testing.assert_close(network(x), want)
    assert tuple(s[-1].shape) == (2, 16, 2, 2)


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (5, 12), (3, 3)], ids=str)
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_any_size(size: tuple[int, int], backend: str) -> None:
    network = SearchNetwork(C=2, num_classes=5, layers=3, steps=2, multiplier=2, in_channels=4, backend=backend)
    logits = network(torch.randn(3, 4, *size))
    assert tuple(logits.shape) == (3, 5)
    logits.square().sum().backward()
    used = [p for name, p in network.named_parameters() if p.grad is None]
    assert not used
    assert all(alpha.grad.isfinite().all() and alpha.grad.any() for alpha in network.arch_parameters())


def test_alphas_are_leaves_beside_the_weights() -> None:
    network = SearchNetwork(C=2, layers=3)
    alphas = network.arch_parameters()
    assert all(alpha.is_leaf and alpha.requires_grad and not isinstance(alpha, nn.Parameter) for alpha in alphas)
    assert all(alpha is not p for alpha in alphas for p in network.parameters())
    assert max(alpha.abs().max().item() for alpha in alphas) < 1e-2  # 1e-3 times a normal draw
    assert min(alpha.std().item() for alpha in alphas) > 5e-4
    network.double()
    assert all(map(torch.Tensor.is_set_to, alphas, network.arch_parameters()))
    assert all(alpha.dtype == torch.float64 for alpha in alphas)
    network(torch.randn(2, 3, 4, 4, dtype=torch.float64)).sum().backward()
    network.float()
    assert all(alpha.grad.dtype == torch.float32 for alpha in alphas)


def test_a_copy_has_alphas_of_its_own() -> None:
    network = SearchNetwork(C=2, layers=1)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        twin.alphas["normal"] += 1
    assert not torch.equal(twin.alphas_normal, network.alphas_normal)
    assert twin.alphas_normal.requires_grad


def statistics(network: nn.Module) -> list[torch.Tensor]:
    return [buffer.clone() for buffer in network.buffers()]


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_frozen_statistics(backend: str) -> None:
    network = SearchNetwork(C=2, layers=2, backend=backend)
    x = torch.randn(4, 3, 8, 8)
    before = statistics(network)
    with network.frozen_statistics():
        frozen = network(x)
    assert all(map(torch.equal, before, statistics(network)))
    assert torch.equal(network(x), frozen)  # by the batch's statistics, inside and outside
    assert not any(map(torch.equal, before, statistics(network)))
    with pytest.raises(KeyError), network.frozen_statistics():
        raise KeyError
    assert all(m.track_running_stats for m in network.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SearchNetwork(C=0), "C must be at least 1; got 0"),
        (lambda: SearchNetwork(layers=0), "layers must be at least 1; got 0"),
        (lambda: SearchNetwork(num_classes=0), "num_classes must be at least 1; got 0"),
        (lambda: SearchNetwork(in_channels=-1), "in_channels must be at least 1; got -1"),
        (lambda: SearchNetwork(steps=2), "multiplier must be at most steps = 2; got 4"),
        (lambda: SearchNetwork(backend="gpu"), "backend must be one of auto, reference, fused; got 'gpu'"),
        (lambda: SearchNetwork(primitives=["skip"]), "unknown primitive 'skip'; allowed are none,"),
    ],
)
def test_wrong_arguments(make: Callable[[], SearchNetwork], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(2, 1, 8, 8), ValueError, "x must be a non-empty [N, 3, H, W]; got (2, 1, 8, 8)"),
        (torch.zeros(3, 8, 8), ValueError, "x must be a non-empty [N, 3, H, W]; got (3, 8, 8)"),
        (torch.zeros(0, 3, 8, 8), ValueError, "x must be a non-empty [N, 3, H, W]; got (0, 3, 8, 8)"),
        (torch.zeros(2, 3, 0, 8), ValueError, "x must be a non-empty [N, 3, H, W]; got (2, 3, 0, 8)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), TypeError, "x must be a floating-point tensor; got torch.uint8"),
    ],
)
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_wrong_images(x: torch.Tensor, error: type[Exception], message: str, backend: str) -> None:
    network = SearchNetwork(C=2, layers=1, backend=backend)
    with pytest.raises(error, match=re.escape(message)):
        network(x)


def test_alphas_are_saved_and_loaded_beside_the_weights() -> None:
    ours, other = (SearchNetwork(C=2, layers=2, num_classes=2) for _ in range(2))
    other.extra_alphas = {"betas": torch.ones(3, requires_grad=True)}
    ours.extra_alphas = {"betas": torch.zeros(3, requires_grad=True)}
    leaf, state = ours.alphas_normal, other.alpha_state()
    assert not any(alpha.requires_grad for alpha in state.values())
    ours.load_state_dict(other.state_dict())
    ours.load_alpha_state(state)
    assert ours.alphas_normal is leaf
    for ours_alpha, other_alpha in zip(ours.arch_parameters(), other.arch_parameters(), strict=True):
        assert torch.equal(ours_alpha, other_alpha)
    with pytest.raises(ValueError, match=r"alpha_state must have .*betas"):
        ours.load_alpha_state({"alphas_normal": state["alphas_normal"]})


@pytest.mark.filterwarnings("ignore")  # jit.trace is deprecated, and says what it fixes
@pytest.mark.parametrize("make", [SearchNetwork, SearchNetwork201], ids=lambda make: make.__name__)
def test_a_traced_network_holds_its_alphas_as_constants(make: Callable[..., Supernet]) -> None:
    network = make(C=2, layers=3).eval()
    x = torch.randn(2, 3, 8, 8)
    traced = torch.jit.trace(network, (torch.randn(1, 3, 8, 8),), check_trace=False)
    torch.testing.assert_close(traced(x), network(x))
    assert all(alpha.requires_grad for alpha in network.arch_parameters())


def test_alphas_that_are_not_numbers_have_no_genotype() -> None:
    network = SearchNetwork(C=2, layers=2, num_classes=2)
    with torch.no_grad():
        network.alphas_reduce[3, 2] = float("nan")
    with pytest.raises(ValueError, match=r"the weights of edge 1 -> 3 are NaN"):
        network.genotype()
