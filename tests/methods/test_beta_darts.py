"""beta-DARTS: the penalty, its gradient and its growth."""

import math

import pytest
import torch
from tiny_method import network_of, paper_method


def test_the_penalty_of_equal_alphas_and_its_gradient() -> None:
    method = paper_method("beta-darts")
    network = network_of(method)
    method.begin_epoch(10)
    with torch.no_grad():
        for alpha in network.alphas.values():
            alpha.zero_()
    penalty = method.penalty(network)
    assert penalty.item() == pytest.approx(5 * 2 * math.log(8), abs=1e-12)
    gradient = torch.autograd.grad(penalty, network.alphas_normal)[0]
    torch.testing.assert_close(gradient, torch.full_like(gradient, 5 * 0.0089286), rtol=1e-5, atol=0)
    with torch.no_grad():
        network.alphas_normal[3] += 0.7
    assert (method.penalty(network) - penalty).item() == pytest.approx(5 * 0.7 / 14, abs=1e-12)


@pytest.mark.parametrize(("fields", "epoch", "weight"), [({}, 0, 0), ({}, 10, 5), ({"epochs": 100}, 99, 24.75)])
def test_the_weight_grows(fields: dict, epoch: int, weight: float) -> None:
    method = paper_method("beta-darts", **fields)
    method.begin_epoch(epoch)
    assert method.decay() == pytest.approx(weight)


def test_pruned_ops_are_no_part_of_the_penalty() -> None:
    method = paper_method("beta-darts")
    network = network_of(method)
    method.begin_epoch(50)
    method.kept = {name: torch.ones(group.shape, dtype=torch.bool) for name, group in network.groups.items()}
    method.kept["normal"][:, 2:] = False
    gradient = torch.autograd.grad(method.penalty(network), network.alphas_normal)[0]
    assert not gradient[:, 2:].any()
    torch.testing.assert_close(gradient.sum(1), torch.full((14,), 25 / 14, dtype=torch.float64))
