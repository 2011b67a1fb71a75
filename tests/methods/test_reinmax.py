"""ReinMax: gradients that are exact for a quadratic loss, and what runs."""

import pytest
import torch
from tiny_method import network_of, paper_method, tiny_state

from fastdarts.methods import gumbel
from fastdarts.methods.reinmax import Sample


def expected_gradient(alpha: torch.Tensor, loss, estimate) -> torch.Tensor:
    """The mean, over the samples of one row, of the gradient of loss(estimate(alpha, column)) in alpha."""
    p = alpha.softmax(1)[0].detach()
    total = torch.zeros_like(alpha)
    for column, share in enumerate(p):
        leaf = alpha.clone().requires_grad_()
        total += share * torch.autograd.grad(loss(estimate(leaf, torch.tensor([column]))), leaf)[0]
    return total


def test_exact_in_expectation_for_a_quadratic_loss_where_straight_through_is_not() -> None:
    torch.manual_seed(0)
    alpha = torch.randn(1, 4, dtype=torch.float64)
    matrix, vector = torch.randn(4, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)

    def loss(d: torch.Tensor) -> torch.Tensor:
        return d[0] @ matrix @ d[0] + vector @ d[0]

    leaf = alpha.clone().requires_grad_()
    values = torch.stack([loss(torch.eye(4, dtype=torch.float64)[[k]]) for k in range(4)])
    exact = torch.autograd.grad((leaf.softmax(1)[0] * values).sum(), leaf)[0]
    ours = expected_gradient(alpha, loss, lambda a, k: Sample.apply(a, k, 1.0))
    theirs = expected_gradient(alpha, loss, lambda a, k: gumbel.straight_through(k, a.softmax(1)))
    assert (ours - exact).abs().max() < 1e-12
    assert (theirs - exact).abs().max() > 0.05


@pytest.mark.parametrize("column", [0, 1])
def test_two_equal_ops_have_the_exact_gradient_for_either_sample(column: int) -> None:
    alpha = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    sample = Sample.apply(alpha, torch.tensor([column]), 1.0)
    assert sample.tolist() == [[1.0 - column, float(column)]]
    gradient = torch.autograd.grad(sample, alpha, torch.tensor([[1.0, 0.0]], dtype=torch.float64))[0]
    torch.testing.assert_close(gradient, torch.tensor([[0.25, -0.25]], dtype=torch.float64), rtol=0, atol=1e-15)


def test_the_gradient_of_a_row_sums_to_zero_and_masked_ops_get_none() -> None:
    alpha = torch.randn(14, 8, dtype=torch.float64)
    alpha[:, 5] = -1e4
    alpha.requires_grad_()
    chosen = torch.zeros(14, dtype=torch.int64)
    gradient = torch.autograd.grad(Sample.apply(alpha, chosen, 1.5), alpha, torch.randn(14, 8).double())[0]
    torch.testing.assert_close(gradient.sum(1), torch.zeros(14, dtype=torch.float64), rtol=0, atol=1e-14)
    assert not gradient[:, 5].any()


def test_alpha_steps_run_all_ops_and_weight_steps_the_drawn_ones() -> None:
    method = paper_method("reinmax")
    network = network_of(method)
    network.train()
    mix = network.op_weights()["normal"]
    assert mix.active is None
    assert mix.weights.sum(1).tolist() == [1.0] * 14
    with method.weight_pass(None, None):
        mix = network.op_weights()["normal"]
        assert [row.index(1) for row in mix.weights.tolist()] == [column for (column,) in mix.active]
    network.eval()
    mix = network.op_weights()["normal"]
    assert [column for (column,) in mix.active] == network.alphas_normal.argmax(1).tolist()


def test_temperatures_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="tau must be at least 1"):
        tiny_state("reinmax", method_options={"tau": 0.5})
