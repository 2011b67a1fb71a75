"""PC-DARTS: the channels of an edge, edge weights, warm-up."""

import pytest
import torch
from tiny_method import finish_epoch, network_of, paper_method, paper_size, tiny_state
from torch import nn
from torch.nn.functional import max_pool2d

from fastdarts.methods.edges import softmax_by_node
from fastdarts.ops.functional import shuffled
from fastdarts.spaces.darts.cell import Cell
from fastdarts.spaces.darts.genotype import edges_of
from fastdarts.spaces.darts.supernet import groups_of

GROUP = groups_of(["none", "skip_connect"])["normal"]


def test_sizes():
    method = paper_method("pc-darts")
    assert paper_size(method) == 299_578
    network = network_of(method)
    assert sum(p.numel() for p in network.arch_parameters()) == 2 * (112 + 14)


def test_channel_map():
    x = torch.arange(16.0).reshape(1, 16, 1, 1)
    order = shuffled(x[:, :4], [x[:, 4:]], torch.ones(1)).flatten().tolist()
    assert order == [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15]


def plain_edge(ops: nn.Module, x: torch.Tensor, weights: torch.Tensor, K: int, stride: int) -> torch.Tensor:
    """The mixed edge as the paper's code has it, one at a time."""
    N, C, _, _ = x.shape
    mixed = sum(w * op(x[:, : C // K]) for w, op in zip(weights, ops._ops, strict=True))
    rest = x[:, C // K :] if stride == 1 else max_pool2d(x[:, C // K :], 2, 2)
    y = torch.cat([mixed, rest], dim=1)
    return y.view(N, K, C // K, *y.shape[2:]).transpose(1, 2).flatten(1, 2)


@pytest.mark.parametrize("how", ["auto", "reference", "a module that is watched"])
@pytest.mark.parametrize("reduction", [False, True])
def test_a_cell_is_the_papers(reduction, how):
    backend = "reference" if how == "reference" else "auto"
    cell = Cell(4, 4, 6, 6, 8, reduction, False, backend=backend, K=4).double()
    if how == "a module that is watched":
        cell.edges()[3]._ops[4].register_forward_hook(lambda *_: None)
    s0, s1 = torch.randn(2, 3, 6, 8, 8, dtype=torch.float64, requires_grad=True)
    alpha = torch.randn(14, 8, dtype=torch.float64, requires_grad=True)
    beta = torch.randn(14, dtype=torch.float64, requires_grad=True)
    shares, factors = alpha.softmax(-1), softmax_by_node(beta, GROUP)
    ours = cell(s0, s1, factors[:, None] * shares, passing=factors)
    states = [cell.preprocess0(s0), cell.preprocess1(s1)]
    edges = edges_of(4)
    for rows in GROUP.entering():
        beta_j = beta[rows].softmax(0)
        states.append(
            sum(
                beta_j[e - rows.start] * plain_edge(cell._ops[e], states[source], shares[e], 4, cell._ops[e].stride)
                for e in range(rows.start, rows.stop)
                for source in [edges[e][0]]
            )
        )
    plain = torch.cat(states[2:], dim=1)
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)
    inputs = [s0, s1, alpha, beta, *cell.parameters()]
    g = torch.randn_like(plain)
    for a, b in zip(*(torch.autograd.grad(y, inputs, g, retain_graph=True) for y in (ours, plain)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("stride", [1, 2])
def test_none_passes_the_other_channels(stride):
    """One node whose edges have `none` alone, all weight on the first: 0 where ops go, else the input or its maxima."""
    cell = Cell(1, 1, 8, 8, 8, stride == 2, False, ["none"], "reference", K=4).double()
    cell.preprocess0 = cell.preprocess1 = nn.Identity()
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    first = torch.tensor([1.0, 0.0], dtype=torch.float64)
    y = cell(x, x, first[:, None], passing=first)
    assert not y[:, ::4].any()
    passed = x[:, 2:] if stride == 1 else max_pool2d(x[:, 2:], 2)
    assert torch.equal(
        y[:, [c for c in range(8) if c % 4]], passed.reshape(2, 3, 2, *y.shape[2:]).transpose(1, 2).flatten(1, 2)
    )


@pytest.mark.parametrize("reduction", [False, True])
def test_all_channels_through_the_ops(reduction):
    """K = 1: a plain cell under the products of op weights and edge weights."""
    cell = Cell(3, 3, 6, 6, 4, reduction, False, K=1).double()
    plain = Cell(3, 3, 6, 6, 4, reduction, False).double()
    plain.load_state_dict(cell.state_dict())
    s0, s1 = torch.randn(2, 2, 6, 6, 6, dtype=torch.float64)
    weights, beta = torch.rand(9, 8, dtype=torch.float64), torch.rand(9, dtype=torch.float64)
    product = weights * beta[:, None]
    assert torch.equal(cell(s0, s1, product, passing=beta), plain(s0, s1, product))


def test_edge_weights_sum_to_one_and_do_not_see_a_shift():
    beta = torch.randn(14, dtype=torch.float64)
    weights = softmax_by_node(beta, GROUP)
    assert [float(weights[rows].sum()) for rows in GROUP.entering()] == pytest.approx([1] * 4, abs=1e-12)
    beta[GROUP.entering()[2]] += 3
    torch.testing.assert_close(softmax_by_node(beta, GROUP), weights, rtol=1e-12, atol=0)


def test_warm_up_and_derivation_by_products():
    method = paper_method("pc-darts")
    moving = []
    for epoch in (0, 14, 15, 49):
        method.begin_epoch(epoch)
        moving.append(method.alphas_move())
    assert moving == [False, False, True, True]
    network = network_of(method)
    with torch.no_grad():
        network.alphas_normal[:, 4] = 3
        network.extra_alphas["betas_normal"].copy_(torch.arange(14.0))
    assert [source for _, source in method.genotype(network).nodes("normal")[3]] == [4, 3]


def test_alphas_and_betas_wait():
    state = tiny_state("pc-darts")  # one epoch of three
    before = [alpha.clone() for alpha in state.network.arch_parameters()]
    finish_epoch(state)
    assert all(torch.equal(a, b) for a, b in zip(before, state.network.arch_parameters(), strict=True))
    state.train_step()
    assert not any(torch.equal(a, b) for a, b in zip(before, state.network.arch_parameters(), strict=True))


def test_a_search_with_k_1():
    state = tiny_state("pc-darts", method_options={"k": 1})
    finish_epoch(state)
    state.train_step()
    assert all(alpha.isfinite().all() for alpha in state.network.arch_parameters())


def test_k_1_has_no_passing_channels():
    for k in (1, 4):
        method = paper_method("pc-darts", method_options={"k": k})
        network = network_of(method)
        for mix in (*network.op_weights().values(), *method.discrete(network, method.genotype(network)).values()):
            assert (mix.passing is None) == (k == 1)


def test_channels_must_divide():
    with pytest.raises(ValueError, match="init_channels must be a multiple of the method's k = 4; got 6"):
        tiny_state("pc-darts", init_channels=6)
    with pytest.raises(ValueError, match="C must be a multiple of K = 4; got 6"):
        Cell(1, 1, 6, 6, 6, False, False, K=4)


@pytest.mark.parametrize(("steps", "C", "N"), [(1, 16, 3), (1, 32, 2), (2, 16, 3)])
def test_gradients_where_one_node_is_all(steps, C, N):
    """The input of its ops then has no gaps in memory, as the slice of a node beside others has."""
    found = []
    for backend in ("reference", "auto"):
        torch.manual_seed(0)
        cell = Cell(steps, steps, C, C, C, False, False, backend=backend, K=4).double()
        x = torch.randn(N, C, 8, 8, dtype=torch.float64, requires_grad=True)
        weights = torch.rand(len(cell.edges()), 9, dtype=torch.float64, requires_grad=True)
        y = cell(x, 2 * x, weights[:, :-1], passing=weights[:, -1])
        found.append(torch.autograd.grad(y.pow(3).sum(), [x, weights, *cell.parameters()]))
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * float(theirs.abs().max()))
