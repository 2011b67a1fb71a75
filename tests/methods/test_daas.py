"""DAAS: entropies, their growth, edge weights and the derivation by them."""

import math

import pytest
import torch
from tiny_method import network_of, paper_method, tiny_state

from fastdarts.methods.daas import entropy, phi
from fastdarts.mixed.mix import Mix
from fastdarts.spaces.darts.genotype import edges_of


@pytest.fixture
def method():
    return paper_method("daas")


@pytest.fixture
def network(method):
    """Without the noise of the initial values."""
    network = network_of(method)
    with torch.no_grad():
        assert list(network.extra_alphas) == ["betas_normal", "betas_reduce"]
        for group, alpha in network.alphas.items():
            alpha.zero_()
            network.extra_alphas[f"betas_{group}"].copy_(torch.tensor([2 / 3] * 3 + [0.5] * 4 + [0.4] * 5))
    return network


def test_size(network):
    assert sum(p.numel() for p in network.arch_parameters()) == 224 + 24


def test_phi_and_psi():
    alpha = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0, 0.25], dtype=torch.float64, requires_grad=True)
    value = phi(alpha)
    assert value.tolist() == [-8, -1, 0, 1, 2, 0.5]
    value.sum().backward()
    assert (alpha.grad[0], alpha.grad[5]) == (24, 2)


def test_entropies_at_the_start(method, network):
    with torch.no_grad():
        ops, edges = method.entropies(network)
    assert float(ops) == pytest.approx(58.2244, abs=1e-4)
    assert float(edges) == pytest.approx(2 * math.log(60), abs=1e-9)


@pytest.mark.parametrize(
    ("epoch", "ops", "edges"),
    [(1, 0, 0), (7, 0, 0.401079), (8, 0, 0.467925), (9, 0.176288, 0.534772), (25, 2.205326, 1.604314),
     (50, 5.859092, 3.275476)],
)  # fmt: skip
def test_weighted_penalties(method, network, epoch, ops, edges):
    method.begin_epoch(epoch - 1)
    common, of_ops = method.growth()
    with torch.no_grad():
        of_both = method.entropies(network)
    assert float(0.1 * common * of_ops * of_both[0]) == pytest.approx(ops, abs=2e-5)
    assert float(0.1 * common * 4 * of_both[1]) == pytest.approx(edges, abs=2e-5)
    assert method.penalty(network).item() == pytest.approx(ops + edges, abs=4e-5)


def test_alphas_wait_and_betas_do_not(method):
    rates = []
    for epoch in (0, 6, 7, 49):
        method.begin_epoch(epoch)
        rates.append(method.arch_learning_rates())
    assert rates == [[0.0, 3e-4], [0.0, 3e-4], [3e-4, 3e-4], [3e-4, 3e-4]]


@pytest.mark.parametrize("betas", [(1, 1, 0, 0, 0), (1, 0, 0, 0, 0), (1, 1, -3, -1, -2)])
def test_two_edges_stay_near_one(method, network, betas):
    """The second term of L_E: (sum of positive betas - 2)^2."""
    beta = network.extra_alphas["betas_normal"]
    before = method.entropies(network)[1].item()
    with torch.no_grad():
        beta[7:] = torch.tensor(betas)
    change = method.entropies(network)[1].item() - before
    terms = entropy(beta[7:]).item() - math.log(5) + 0.2 * (sum(b for b in betas if b > 0) - 2) ** 2
    assert change == pytest.approx(terms, abs=1e-9)
    gradient = torch.autograd.grad(method.entropies(network)[1], beta)[0]
    with torch.no_grad():
        beta[7] = 1.5
    assert torch.autograd.grad(method.entropies(network)[1], beta)[0][7] == 0  # psi is flat above 1
    assert gradient.isfinite().all()


def test_entropies_are_finite(method, network):
    with torch.no_grad():
        network.alphas_normal.copy_(torch.linspace(-50, 50, 112).reshape(14, 8))
    loss = method.entropies(network)[0]
    assert loss.isfinite()
    assert torch.autograd.grad(loss, network.alphas_normal)[0].isfinite().all()


def test_uniform_betas_are_darts(method, network):
    with torch.no_grad():
        network.alphas_normal.normal_()
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    plain = {group: Mix(phi(alpha).softmax(-1)) for group, alpha in network.alphas.items()}
    ours = network(x)
    with network.mixing(plain):
        torch.testing.assert_close(ours, network(x), rtol=1e-9, atol=1e-9)


def test_edges_by_beta_then_ops_by_alpha(method, network):
    with torch.no_grad():
        network.alphas_normal[:, 0] = 5  # none
        network.alphas_normal[:, 4] = 1
        network.alphas_normal[9:, 5] = torch.tensor([2.0, 3.0, 4.0, 0.0, 0.0])
        network.extra_alphas["betas_normal"][7:] = torch.tensor([0.1, 1.4, -2.0, 1.2, 0.3])  # node 5
    genotype = method.genotype(network)
    assert {source for _, source in genotype.nodes("normal")[3]} == {1, 3}
    assert {source: op for op, source in genotype.nodes("normal")[3]} == {1: "sep_conv_5x5", 3: "sep_conv_3x3"}
    assert edges_of(4)[10] == (1, 5)


def test_ops_that_none_leaves_nothing_are_still_told_apart(method, network):
    """In single precision 3e-9 and 3e-14 are one number beside an edge's place of up to 13."""
    network.float()
    with torch.no_grad():
        network.alphas_normal.fill_(-1.5)
        network.alphas_normal[:, 0] = 2  # none
        network.alphas_normal[:, 4] = -1.25
    assert [op for op, _ in method.genotype(network).normal] == ["sep_conv_3x3"] * 8


def test_the_weight_step_moves_no_architecture():
    state = tiny_state("daas", alpha_warmup=0.8)
    before = [alpha.clone() for alpha in state.network.arch_parameters()]
    state.train_step()
    assert all(torch.equal(a, b) for a, b in zip(before, state.network.arch_parameters(), strict=True))
