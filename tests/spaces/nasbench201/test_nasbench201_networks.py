"""The networks of NAS-Bench-201: their sizes, and the search network as the discrete one for one-hot op weights."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastdarts.mixed.mix import Mix
from fastdarts.spaces.darts.discrete import count_parameters
from fastdarts.spaces.group import Choice
from fastdarts.spaces.nasbench201.architecture import ENDS, PRIMITIVES, NasBench201Cell, all_cells
from fastdarts.spaces.nasbench201.blocks import ResidualBlock
from fastdarts.spaces.nasbench201.discrete import Cell201, EvalNetwork201
from fastdarts.spaces.nasbench201.space import NasBench201
from fastdarts.spaces.nasbench201.supernet import SearchCell, SearchNetwork201

BEST = NasBench201Cell.parse(
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
)
SPACE = NasBench201()


def convolution(C_in: int, C_out: int, kernel: int) -> int:
    """Weights without biases, and the scale and shift of the batch norm behind it."""
    return kernel**2 * C_in * C_out + 2 * C_out


def parameters(cell: NasBench201Cell, C: int, layers: int, classes: int, in_channels: int = 3) -> int:
    """Stem, three stages of cells, two residual blocks, batch norm, classifier."""
    total = convolution(in_channels, C, 3)
    for stage in range(3):
        width = C * 2**stage
        total += layers * sum(
            convolution(width, width, int(op[-1])) for op in cell.ops if op in ("nor_conv_1x1", "nor_conv_3x3")
        )
        if stage:
            half = width // 2
            total += convolution(half, width, 3) + convolution(width, width, 3) + half * width
    return total + 2 * (4 * C) + (4 * C + 1) * classes


def test_the_benchmarks_network_has_the_authors_size() -> None:
    with torch.device("meta"):
        network = EvalNetwork201(BEST, C=16, layers=5, num_classes=10)
    assert count_parameters(network) == parameters(BEST, 16, 5, 10) == 1_288_506


@pytest.mark.parametrize("index", [0, 1, 4_321, 9_999, 15_624])
@pytest.mark.parametrize(("C", "layers", "classes", "in_channels"), [(16, 5, 100, 3), (4, 1, 2, 1), (6, 2, 5, 3)])
def test_sizes_of_other_networks(index: int, C: int, layers: int, classes: int, in_channels: int) -> None:
    cell = list(all_cells())[index]
    with torch.device("meta"):
        network = SPACE.discrete(cell, C=C, layers=layers, num_classes=classes, in_channels=in_channels)
    assert count_parameters(network) == parameters(cell, C, layers, classes, in_channels)


def test_shapes() -> None:
    network = EvalNetwork201(BEST, C=4, layers=2, num_classes=7).eval()
    shapes: list[tuple[int, ...]] = []
    for cell in network.cells:
        cell.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
    assert network(torch.randn(2, 3, 9, 6)).shape == (2, 7)
    assert shapes == [(4, 9, 6)] * 2 + [(8, 5, 3)] * 3 + [(16, 3, 2)] * 3
    assert [isinstance(cell, ResidualBlock) for cell in network.cells] == [False, False, True] * 2 + [False, False]


def test_a_residual_block() -> None:
    block = ResidualBlock(4, 6).double()
    x = torch.randn(2, 4, 6, 4, dtype=torch.float64)
    pooled = x.view(2, 4, 3, 2, 2, 2).mean((3, 5))
    beside = torch.einsum("oc,nchw->nohw", block.downsample[1].weight[:, :, 0, 0], pooled)
    torch.testing.assert_close(block(x), beside + block.conv_b(block.conv_a(x)))
    odd = torch.ones(1, 4, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(block.downsample[0](odd), torch.ones(1, 4, 3, 2, dtype=torch.float64))


def small(**arguments: object) -> SearchNetwork201:
    given = {"C": 4, "num_classes": 3, "layers": 1, "in_channels": 1} | arguments
    return SPACE.supernet(**given).double()


def discrete_twin(network: SearchNetwork201, cell: NasBench201Cell) -> EvalNetwork201:
    """The network of a cell with the weights that the search network has for its ops."""
    twin = EvalNetwork201(cell, C=4, num_classes=3, layers=1, in_channels=1).double()
    for name in ("stem", "lastact", "classifier"):
        getattr(twin, name).load_state_dict(getattr(network, name).state_dict())
    for ours, theirs in zip(twin.cells, network.cells, strict=True):
        if not isinstance(theirs, SearchCell):
            ours.load_state_dict(theirs.state_dict())
            continue
        assert isinstance(ours, Cell201)
        for edge, (op, layer) in enumerate(zip(cell.ops, ours.layers, strict=True)):
            state = theirs.edges()[edge]._ops[PRIMITIVES.index(op)].state_dict()
            layer.load_state_dict(layer.state_dict() | state)  # scale 1 and shift 0 stay
    return twin


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_one_hot_op_weights_compute_the_discrete_network(backend: str) -> None:
    network = small(backend=backend)
    cells = [BEST, *(network.random(torch.Generator().manual_seed(seed)) for seed in range(6))]
    assert {op for cell in cells for op in cell.ops} == set(PRIMITIVES)
    x = torch.randn(3, 1, 6, 5, dtype=torch.float64)
    for cell in cells:
        twin = discrete_twin(network, cell)
        with network.mixing(network.mixes_of(cell)), network.frozen_statistics():
            torch.testing.assert_close(network(x), twin(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_every_weight_and_alpha_learns(backend: str) -> None:
    network = small(backend=backend)
    assert list(network.groups) == list(network.alphas) == ["cell"]
    assert network.alphas["cell"].shape == (6, 5)
    assert network.groups["cell"].ends == ENDS
    network(torch.randn(3, 1, 6, 6, dtype=torch.float64)).square().sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None]
    gradient = network.alphas["cell"].grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert (gradient != 0).all()


def test_batch_norm_in_cells_has_no_scale() -> None:
    network = small()
    cells = [cell for cell in network.cells if isinstance(cell, SearchCell)]
    assert len(cells) == len(network.mixed_ops("cell")) == 3
    assert not any(m.affine for cell in cells for m in cell.modules() if isinstance(m, nn.BatchNorm2d))
    weights = sum(p.numel() for cell in cells for p in cell.parameters())
    assert weights == 6 * sum((9 + 1) * width**2 for width in (4, 8, 16))


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_partial_channels_and_auxiliary_ops(backend: str) -> None:
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    partial = small(K=4, backend=backend)
    weights, passing = torch.rand(6, 5, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    with partial.mixing({"cell": Mix(weights, passing=passing)}):
        assert partial(x).isfinite().all()
    auxiliary = small(auxiliary=("skip_connect",), backend=backend)
    one_hot = torch.zeros(6, 6, dtype=torch.float64)
    one_hot[:, 1] = 1
    by_auxiliary = one_hot.roll(4, dims=1)
    assert by_auxiliary[:, 5].all()
    outputs: list[Tensor] = []
    for weights in (one_hot, by_auxiliary):
        with auxiliary.mixing({"cell": Mix(weights)}), auxiliary.frozen_statistics():
            outputs.append(auxiliary(x))
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="C must be a multiple of K = 4; got 6"):
        small(C=6, K=4)


def test_the_strongest_op_of_each_edge() -> None:
    network = small()
    scores = torch.rand(6, 5, dtype=torch.float64)
    cell = network.derive({"cell": scores})
    assert cell.ops == tuple(PRIMITIVES[column] for column in scores.argmax(1).tolist())
    assert network.derive({"cell": torch.ones(6, 5)}).ops == ("none",) * 6  # ties to the first
    sparse = network.derive({"cell": scores}, Choice(threshold=float(scores.max(1).values.sort().values[3])))
    assert sum(a == b for a, b in zip(sparse.ops, cell.ops, strict=True)) >= 3
    assert sparse.ops.count("none") >= 3


def test_a_limit_of_skips_takes_the_weakest_first() -> None:
    network = small()
    scores = torch.full((6, 5), 0.1)
    scores[:, 1] = torch.tensor([0.9, 0.4, 0.8, 0.3, 0.7, 0.6])
    scores[:, 3] = 0.2
    found = [network.derive({"cell": scores}, Choice(max_skips=limit)).ops for limit in (None, 6, 4, 1, 0)]
    assert [ops.count("skip_connect") for ops in found] == [6, 6, 4, 1, 0]
    assert [edge for edge, op in enumerate(found[2]) if op == "nor_conv_3x3"] == [1, 3]
    assert found[3][0] == "skip_connect"
    skips_alone = small(primitives=("skip_connect",))
    assert skips_alone.derive({"cell": torch.ones(6, 1)}, Choice(max_skips=0)).ops == ("skip_connect",) * 6


def test_op_weights_of_a_cell() -> None:
    network = small()
    for seed in range(5):
        cell = network.random(torch.Generator().manual_seed(seed))
        mix = network.mixes_of(cell)["cell"]
        assert mix.active == [[PRIMITIVES.index(op)] for op in cell.ops]
        assert mix.weights.dtype == torch.float64
        assert torch.equal(mix.weights.sum(1), torch.ones(6, dtype=torch.float64))
        assert network.derive({"cell": mix.weights}) == cell
    without_none = small(primitives=PRIMITIVES[1:])
    mix = without_none.mixes_of(NasBench201Cell(("none",) * 5 + ("skip_connect",)))["cell"]
    assert mix.active == [[]] * 5 + [[0]]


def test_random_cells_are_uniform() -> None:
    network = small()
    generator = torch.Generator().manual_seed(0)
    drawn = [network.random(generator) for _ in range(500)]
    for edge in range(6):
        n = len(drawn)
        for op in PRIMITIVES:
            share = sum(cell.ops[edge] == op for cell in drawn) / n
            assert abs(share - 0.2) <= 4 * (0.2 * 0.8 / n) ** 0.5
    few = [network.random(generator, max_skips=1) for _ in range(50)]
    assert {cell.ops.count("skip_connect") for cell in few} == {0, 1}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small(C=0), "C must be at least 1; got 0"),
        (lambda: small(layers=0), "layers must be at least 1; got 0"),
        (lambda: small(backend="gpu"), "backend must be one of auto, reference, fused; got 'gpu'"),
        (lambda: EvalNetwork201(BEST, num_classes=0), "num_classes must be at least 1; got 0"),
        (lambda: SPACE.discrete(BEST, auxiliary=True), "auxiliary has no meaning in space 'nasbench201'; leave it out"),
        (lambda: SPACE.discrete(BEST, drop_path_prob=0.2), "drop_path has no meaning in space 'nasbench201'"),
        (lambda: SPACE.discrete(BEST, stem="imagenet"), "stem has no meaning in space 'nasbench201'"),
    ],
)
def test_wrong_arguments(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
