"""DARTS+ and RobustDARTS: when a search ends, and with which cells; the largest eigenvalue of a Hessian."""

from types import SimpleNamespace

import pytest
import torch
from tiny_method import network_of, paper_method, tiny_state

from fastdarts.genotype import Genotype
from fastdarts.methods.lanczos import largest_eigenvalue
from fastdarts.methods.robustdarts import smoothed

SKIP, MAX, SEP3, SEP5 = 3, 1, 4, 5


def watched(method, network, epochs):
    """The epochs at whose end the method wants to stop; `epochs` changes the alphas before each."""
    for epoch, change in enumerate(epochs):
        method.begin_epoch(epoch)
        with torch.no_grad():
            change(network)
        method.end_epoch(SimpleNamespace(network=network), {})
        if method.stopped is not None:
            return epoch
    return None


def set_ops(cell, columns):
    """The strongest op of the two edges of node 2 and of one edge each of the later nodes."""

    def change(network):
        network.alphas[cell].zero_()
        network.alphas[cell][:, SEP3] = 1
        for edge, column in zip((0, 2, 5, 9), columns, strict=False):
            network.alphas[cell][edge, column] = 2

    return change


@pytest.mark.parametrize(("cell", "stop"), [(0, 2), (1, None)])
def test_two_skips_in_the_normal_cell_stop(cell, stop):
    method = paper_method("darts-plus")
    network = network_of(method)
    first, second = set_ops(cell, [SEP3]), set_ops(cell, [SKIP])
    assert watched(method, network, [first, second, set_ops(cell, [SKIP] * 4)]) == stop
    assert (method.stopped == "the normal cell has 4 skip connections") == (stop == 2)
    assert method.genotype(network).nodes("normal" if cell == 0 else "reduce")[0][0] == ("skip_connect", 0)


def test_the_previous_cells_if_wanted():
    method = paper_method("darts-plus", method_options={"take": "previous"})
    network = network_of(method)
    watched(method, network, [set_ops(0, [SKIP]), set_ops(0, [SKIP, SKIP])])
    result = method.result(SimpleNamespace(network=network))
    assert sum(op == "skip_connect" for op, _ in result.normal) == 1


def test_a_ranking_that_stands_for_ten_epochs_stops():
    method = paper_method("darts-plus", method_options={"rule": "ranking"})
    network = network_of(method)

    def keep(network):
        network.alphas_normal[:, MAX] += 1  # pools have no weights: their order does not count

    def swap(network):
        network.alphas_normal[3, SEP3], network.alphas_normal[3, SEP5] = (
            network.alphas_normal[3, SEP5].clone(),
            network.alphas_normal[3, SEP3].clone(),
        )

    assert watched(method, network, [keep] * 20) == 10
    again = paper_method("darts-plus", method_options={"rule": "ranking"})
    assert watched(again, network_of(again), [keep] * 4 + [swap] + [keep] * 20) == 14


def test_the_mean_of_eigenvalues_is_centred():
    assert smoothed([1, 2, 3, 4, 5, 6]) == [2, 2.5, 3, 4, 4.5, 5]


@pytest.mark.parametrize("rise", [20, 18])
def test_a_rise_by_a_third_stops_with_the_cells_before_it(monkeypatch, rise):
    """Measurements 1, from `rise` on 2: epoch 18's mean is 1.3 times that of epoch 10, the first that may be taken."""
    method = paper_method("robustdarts")
    network = network_of(method)
    monkeypatch.setattr(type(method), "eigenvalue", lambda self, state: 2.0 if self.epoch >= rise else 1.0)
    seen = {}

    def change(network):
        network.alphas_normal.normal_()
        seen[method.epoch] = method.genotype(network)

    assert watched(method, network, [change] * 50) == 22
    assert method.result(SimpleNamespace(network=network)) == seen[10]
    assert "epoch 11" in method.stopped


def test_simulating_goes_on(monkeypatch):
    method = paper_method("robustdarts", method_options={"early_stop": "simulate"})
    network = network_of(method)
    monkeypatch.setattr(type(method), "eigenvalue", lambda self, state: 2.0 if self.epoch >= 20 else 1.0)
    assert watched(method, network, [lambda network: None] * 30) is None
    assert method.metrics(network)["stop_epoch"] == 23


def test_largest_eigenvalue_of_a_known_matrix():
    a = torch.randn(40, 40, dtype=torch.float64)
    matrix = a + a.T
    true = float(torch.linalg.eigvalsh(matrix)[-1])
    found = largest_eigenvalue(lambda v: matrix @ v, torch.randn(40, dtype=torch.float64), 40)
    assert found == pytest.approx(true, rel=1e-4)
    shifted = largest_eigenvalue(lambda v: matrix @ v + 1e-3 * v, torch.ones(40, dtype=torch.float64), 40, 0.0)
    exact = largest_eigenvalue(lambda v: matrix @ v, torch.ones(40, dtype=torch.float64), 40, 0.0)
    assert shifted - exact == pytest.approx(1e-3, abs=1e-9)
    twice = torch.eye(5, dtype=torch.float64)
    assert largest_eigenvalue(lambda v: twice @ v, torch.ones(5, dtype=torch.float64), 5) == pytest.approx(1)


def test_the_eigenvalue_of_a_search_is_that_of_the_dense_hessian():
    torch.set_default_dtype(torch.float64)
    options = {"images": 4, "iterations": 60}
    state = tiny_state("robustdarts", space="s2", method_options=options, arch_weight_decay=0.25)
    normalise = state.augment.normalise
    state.augment.normalise = lambda images: normalise(images).double()
    statistics = [buffer.clone() for buffer in state.network.buffers()]
    ours = state.method.eigenvalue(state)
    assert all(torch.equal(a, b) for a, b in zip(statistics, state.network.buffers(), strict=True))
    part = state.validation.subset(torch.arange(4))
    images = state.augment.normalise(part.images)
    alphas = state.network.alphas

    def gradient():
        loss, _ = state.architect.forward((images, part.targets))
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, alphas, create_graph=True)])

    g = gradient()
    rows = [torch.cat([r.flatten() for r in torch.autograd.grad(one, alphas, retain_graph=True)]) for one in g]
    hessian = torch.stack(rows)
    true = float(torch.linalg.eigvalsh((hessian + hessian.T) / 2)[-1]) + 0.25
    assert ours == pytest.approx(true, rel=1e-4)


def test_spaces():
    state = tiny_state("robustdarts", space="s1")
    network = state.network
    assert [tuple(alpha.shape) for alpha in network.alphas] == [(14, 2), (14, 2)]
    assert network.candidates[0][5] == ("max_pool_3x3", "skip_connect")
    assert network.candidates[1][6] == ("max_pool_3x3", "sep_conv_3x3")
    assert network.candidates[1][13] == ("skip_connect", "dil_conv_5x5")
    state.train_step()
    assert isinstance(state.method.genotype(network).validated(), Genotype)
    assert state.alphas()[0].isfinite().sum() == 28


def test_noise_does_not_see_its_input():
    state = tiny_state("darts", space="s4", order=1)
    noise = state.network.cells[0].edges()[0]._ops[0]
    x = torch.full((50, 4, 9, 9), 7.0, requires_grad=True)
    y = noise(x)
    n = y.numel()
    assert abs(float(y.mean())) <= 4 / n**0.5
    assert abs(float(y.var()) - 1) <= 4 * (2 / n) ** 0.5
    assert not y.requires_grad
    state.train_step()


def test_drop_path_drops_whole_samples():
    state = tiny_state("robustdarts", order=1, method_options={"drop_path": 0.6, "early_stop": "off"})
    state.method.begin_epoch(1)
    assert state.method.drop_path() == pytest.approx(0.3)
    cell = state.network.cells[0]
    states = [torch.randn(40, 4, 6, 6) for _ in range(2)]
    weights = torch.zeros(14, 8)
    weights[0, SKIP] = 1  # node 2 is the first state, or 0
    node = cell._nodes(states, weights, None, None)[:, :4]
    kept = (node != 0).flatten(1).any(1)
    assert 0 < kept.sum() < 40
    torch.testing.assert_close(node[kept], states[0][kept] / 0.7)
    cell.eval()
    torch.testing.assert_close(cell._nodes(states, weights, None, None)[:, :4], states[0])
