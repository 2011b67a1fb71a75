"""Cells in eval mode as one operator: equal to plain modules, and never behind their weights."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastdarts import DARTS_V2, EvalNetwork, Genotype
from fastdarts.mixed.eval_cell import Packed
from fastdarts.ops import eval_cell, operators
from fastdarts.ops.plan import MixedPlan, PlannedEdge, edge_ops

pytestmark = pytest.mark.skipif(
    operators.unavailable(torch.device("cpu"), torch.float32) is not None,
    reason="needs fastdarts._C, which is not built",
)

EVERY_KERNEL = Genotype(  # any number of ops a node, any concat, a node that only another one reads
    normal=[
        [("sep_conv_3x3", 0), ("dil_conv_3x3", 1), ("none", 1)],
        [("skip_connect", 0), ("dil_conv_5x5", 2), ("max_pool_3x3", 1), ("avg_pool_3x3", 2)],
        [("nor_conv_1x1", 2), ("sep_conv_5x5", 3), ("sep_conv_5x5", 3), ("sep_conv_7x7", 2)],
    ],
    normal_concat=[1, 4, 3],
    reduce=[
        [("avg_pool_3x3", 0), ("sep_conv_7x7", 1), ("skip_connect", 0), ("dil_conv_5x5", 0)],
        [("skip_connect", 2), ("sep_conv_3x3", 0), ("nor_conv_1x1", 1), ("max_pool_3x3", 1)],
        [("dil_conv_3x3", 1), ("sep_conv_5x5", 1), ("none", 0)],
    ],
    reduce_concat=[2, 4, 3],
)
GENOTYPES = {"DARTS_V2": DARTS_V2, "every_kernel": EVERY_KERNEL}


def trained(genotype: Genotype, C: int = 6, layers: int = 4, **settings: object) -> EvalNetwork:
    """Build a network in eval mode whose batch norms hold numbers that differ."""
    torch.manual_seed(0)
    network = EvalNetwork(genotype, C, num_classes=3, layers=layers, backend="fused", **settings)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias, 0.0, 0.3)
            nn.init.normal_(module.running_mean, 0.0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def plain(network: EvalNetwork) -> EvalNetwork:
    twin = copy.deepcopy(network)
    for part in (twin, *twin.cells):
        part.backend = "reference"
    return twin


def packed(network: EvalNetwork) -> list[Packed | None]:
    return [cell._packed for cell in network.cells]


@pytest.mark.parametrize("N", [1, 5])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("genotype", GENOTYPES)
def test_equals_plain_modules(genotype: str, stem: str, N: int) -> None:
    network = trained(GENOTYPES[genotype], stem=stem).double()
    x = torch.randn(N, 3, *((13, 70) if stem == "cifar" else (33, 72)), dtype=torch.float64)
    with torch.no_grad():
        ours, theirs = network(x), plain(network)(x)
    assert all(packed(network))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10 * theirs.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("genotype", GENOTYPES)
def test_errors_are_those_of_plain_modules(genotype: str, dtype: torch.dtype) -> None:
    network = trained(GENOTYPES[genotype], C=20, layers=3)
    x = torch.randn(7, 3, 12, 12)
    with torch.no_grad():
        exact = plain(network).double()(x.double())
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            ours, theirs = network(x), plain(network)(x)
    assert all(packed(network))
    assert (ours.double() - exact).norm() <= 2 * (theirs.double() - exact).norm()


def by_optimizer(network: EvalNetwork) -> None:
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.SGD(network.parameters(), lr=0.01).step()


def through_data(network: EvalNetwork) -> None:
    """Change one number of one weight in a way that no version counter records."""
    for cell in network.cells:
        next(cell.preprocess1.parameters()).data.view(-1)[-1] += 1


def statistics(network: EvalNetwork) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.data.mul_(1.5)


def new_tensors(network: EvalNetwork) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias = nn.Parameter(module.bias + 1)


def other_eps(network: EvalNetwork) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.1


CHANGES = [by_optimizer, through_data, statistics, new_tensors, other_eps]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_weights_are_packed_again_when_they_change(change: Callable[[EvalNetwork], None]) -> None:
    network = trained(DARTS_V2).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.inference_mode():
        network(x)
        before = packed(network)
        network(x)
        assert all(a is b for a, b in zip(packed(network), before, strict=True))  # kept while nothing changes
    change(network)
    with torch.inference_mode():
        ours, theirs = network(x), plain(network)(x)
    assert all(a is not b for a, b in zip(packed(network), before, strict=True))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_computes_otherwise_where_gradients_or_modules_are_wanted() -> None:
    x = torch.randn(2, 3, 8, 8)
    network = trained(DARTS_V2)
    assert network(x).requires_grad
    network.train()
    with torch.no_grad():
        network(x)
    assert not any(packed(network))
    network.eval()
    for module in network.cells[0].modules():  # the batch's statistics in eval mode
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    network.cells[1].preprocess1.register_forward_hook(lambda *_: None)
    with torch.no_grad():
        torch.testing.assert_close(network(x), plain(network)(x), rtol=1e-3, atol=1e-3)
    assert [one is not None for one in packed(network)] == [False, False, True, True]
    assert network.train().cells[2]._packed is None


def test_packed_weights_are_no_part_of_a_network() -> None:
    network = trained(DARTS_V2, layers=1)
    with torch.no_grad():
        network(torch.randn(1, 3, 8, 8))
    assert all(packed(network))
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert not any(packed(twin))


def a_call() -> tuple[list[Tensor], Tensor, MixedPlan]:
    """Two states, packed weights and the plan of a cell with C = 4: a pool at stride 2, and a node that reads it."""
    torch.manual_seed(0)
    edges = (
        PlannedEdge(0, 2, 2, edge_ops(("sep_conv_3x3",))),
        PlannedEdge(1, 2, 2, edge_ops(("max_pool_3x3",))),
        PlannedEdge(2, 3, 1, edge_ops(("dil_conv_3x3",))),
    )
    plan = MixedPlan(2, 2, edges)
    projections = [[torch.randn(2, 6, 1, 1), torch.randn(2, 6, 1, 1)], [torch.randn(4, 5, 1, 1)]]
    params = [torch.randn(4, 1, 3, 3), torch.randn(4, 4, 1, 1)] * 3
    norms = 2 + 4
    running, affine = torch.rand(norms, 2, 4) + 0.5, torch.randn(norms, 2, 4)
    packed = eval_cell.pack(projections, params, running, plan, 1e-5, affine, torch.float32)
    again = (
        [w for own in projections for w in own],
        [2, 1],
        params,
        running,
        plan.encoded,
        1e-5,
        affine,
        torch.float32,
    )
    torch.library.opcheck(torch.ops.fastdarts.pack_eval_cell.default, again)
    return [torch.randn(3, 6, 9, 10), torch.randn(3, 5, 5, 5)], packed, plan


def test_operators_pass_opcheck_and_refuse_what_does_not_fit() -> None:
    states, weights, plan = a_call()
    arguments = (states, weights, [2, 1], plan.encoded, [3, 2], 4)
    torch.library.opcheck(torch.ops.fastdarts.eval_cell.default, arguments)
    wrong = {
        0: (states[:1], r"plan has 2 inputs; got 1"),
        1: (weights[1:], r"packed must hold \d+ numbers"),
        2: ([3, 1], r"parts must be 1, or 2 where C is even; got 3"),
        4: ([4], r"concat must name states of the nodes' size; got 4"),
        5: (0, r"C must be from 1"),
    }
    for at, (value, message) in wrong.items():
        call = list(arguments)
        call[at] = value
        with pytest.raises(ValueError, match=message):
            torch.ops.fastdarts.eval_cell(*call)
    with pytest.raises(ValueError, match="packed must be dense Float"):
        torch.ops.fastdarts.eval_cell(states, weights.double(), *arguments[2:])


def test_checksum_sees_order_layout_and_dtype() -> None:
    x = torch.randn(40, 30)
    others = [x.flip(0), x.t(), x.view(30, 40), x.double(), x + 1e-7 * x.abs().max(), x[:-1]]
    assert eval_cell.checksum([x]) == eval_cell.checksum([x.clone()])
    assert len({eval_cell.checksum([y]) for y in (x, *others)}) == 1 + len(others)
    y = torch.randn(3)
    assert eval_cell.checksum([x, y]) != eval_cell.checksum([y, x])
