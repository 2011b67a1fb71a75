"""DrNAS: concentrations, samples, their gradient, and the divergence."""

import pytest
import torch
from tiny_method import network_of, paper_method, tiny_state

from fastdarts.methods.drnas import concentrations, divergence, draw


def test_concentrations() -> None:
    alpha = torch.tensor([1.0, -1.0, 0.0, -1e4], dtype=torch.float64)
    c = concentrations(alpha)
    torch.testing.assert_close(c, torch.tensor([2, 0.36787944, 1, 0], dtype=torch.float64), rtol=0, atol=1e-8)
    tiny = concentrations(torch.tensor([-20.0]))  # elu(alpha) + 1 is 0 in float32
    assert tiny.item() == pytest.approx(2.0611536e-9, rel=1e-6)


@pytest.mark.parametrize(
    ("c", "expected"),
    [([0.5] * 8, 1.5661945), ([1.0] * 8, 0), ([2.0] * 8, 0.8282738), ([2.0, 0.367879] + [1.0] * 6, 1.3093981)],
)
def test_divergence_from_the_uniform_distribution(c: list[float], expected: float) -> None:
    rows = torch.tensor([c], dtype=torch.float64)
    assert divergence(rows).item() == pytest.approx(expected, abs=1e-5)
    wider = torch.cat([rows, torch.zeros(1, 3, dtype=torch.float64)], dim=1)  # ops that are not there
    assert divergence(wider).item() == pytest.approx(divergence(rows).item(), abs=1e-12)
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Dirichlet(rows), torch.distributions.Dirichlet(torch.ones_like(rows))
    )
    assert divergence(rows).item() == pytest.approx(theirs.item(), abs=1e-12)


def test_samples_have_the_mean_and_the_gradient_of_the_distribution() -> None:
    """d E[w_k] / d c_j = (1[j = k] S - c_k) / S^2; the standard error over n samples bounds both, at 5 of it."""
    c = torch.tensor([2.0, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    n = 20_000
    w = draw(c.expand(n, 3), torch.Generator().manual_seed(0))
    assert torch.allclose(w.sum(1), torch.ones(n, dtype=torch.float64))
    total = c.detach().sum()
    assert ((w.mean(0) - c.detach() / total).abs() <= 5 * w.std(0) / n**0.5).all()
    for k in range(3):
        found = torch.autograd.grad(w[:, k].mean(), c, retain_graph=True)[0]
        exact = (torch.eye(3, dtype=torch.float64)[k] * total - c.detach()[k]) / total**2
        assert (found - exact).abs().max() < 5 * 0.5 / n**0.5


def test_ops_that_are_not_there_get_nothing_and_change_no_law() -> None:
    c = torch.tensor([2.0, 0.0, 1.0, 0.0], dtype=torch.float64).expand(20_000, 4)
    w = draw(c, torch.Generator().manual_seed(1))
    assert not w[:, [1, 3]].any()
    n, mean, variance = len(w), 2 / 3, 2 / 9 / 4  # of Beta(2, 1)
    assert abs(w[:, 0].mean() - mean) <= 5 * (variance / n) ** 0.5
    assert w[:, 0].var().item() == pytest.approx(variance, rel=0.05)


def test_samples_come_from_the_methods_generator_and_touch_no_other() -> None:
    method = paper_method("drnas")
    network = network_of(method)
    network.train()
    before, drawn = torch.random.get_rng_state(), method.generator.get_state()
    first = network.op_weights()["normal"].weights
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(3)
    method.generator.set_state(drawn)
    assert torch.equal(first, network.op_weights()["normal"].weights)
    assert not torch.equal(first, network.op_weights()["normal"].weights)
    network.eval()
    weights = network.op_weights()["normal"].weights
    c = concentrations(network.alphas_normal)
    torch.testing.assert_close(weights, c / c.sum(1, keepdim=True))


def test_the_divergence_enters_the_loss_of_the_alphas() -> None:
    method = paper_method("drnas", method_options={"kl": 1e-3})
    network = network_of(method)
    with torch.no_grad():
        for alpha in network.alphas.values():
            alpha.fill_(1)
    assert method.penalty(network).item() == pytest.approx(1e-3 * 28 * 0.8282738, rel=1e-5)
    assert paper_method("drnas").penalty(network) is None


def test_there_is_no_second_order() -> None:
    with pytest.raises(ValueError, match="'drnas' has no second order"):
        tiny_state("drnas", order=2)
