"""MiLeNAS: the alphas' gradient of both losses."""

import pytest
import torch
from tiny_method import tiny_state

from fastdarts.runs.search_config import SearchConfig


def gradients(method: str, **options: float) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Return the method's gradient, and those of the training loss and of the validation loss, in float64."""
    state = tiny_state(method, order=1, method_options=options)
    network = state.network.double().train()
    generator = torch.Generator().manual_seed(3)
    train, valid = (
        (torch.randn(8, 1, 6, 6, dtype=torch.float64, generator=generator), torch.arange(8) % 2) for _ in range(2)
    )
    found = state.architect.alpha_gradients(train, valid, 0.1, state.w_optimizer, order=1)
    alphas = network.arch_parameters()
    with network.frozen_statistics():
        parts = [
            torch.autograd.grad(state.architect.forward(batch)[0], alphas, materialize_grads=True)
            for batch in (train, valid)
        ]
    return found, list(parts[0]), list(parts[1])


@pytest.mark.parametrize("balance", [0.5, 1.0, 4.0])
def test_the_gradient_is_that_of_both_losses(balance: float) -> None:
    found, of_train, of_valid = gradients("milenas", balance=balance)
    for ours, train, valid in zip(found, of_train, of_valid, strict=True):
        torch.testing.assert_close(balance * ours, train + balance * valid, rtol=1e-9, atol=1e-12)


def test_darts_reads_the_validation_loss_alone() -> None:
    found, _, of_valid = gradients("darts")
    for ours, valid in zip(found, of_valid, strict=True):
        torch.testing.assert_close(ours, valid, rtol=1e-9, atol=1e-12)


def test_there_is_no_second_order() -> None:
    with pytest.raises(ValueError, match="'milenas' has no second order"):
        SearchConfig(method="milenas", order=2)
