"""Lambda-DARTS: the direction of the finite difference, and the regulariser's gradient against autograd."""

import pytest
import torch
from tiny_method import paper_method, tiny_state

from fastdarts.methods.lambda_darts import (
    DIRECTIONS,
    aligned_group,
    by_cell,
    cosine_direction,
    mean_cosine,
    sign_direction,
)


def some_gradients(cells: int = 6) -> torch.Tensor:
    return torch.randn(cells, 14 * 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_the_mean_cosine_is_that_of_the_fifteen_pairs() -> None:
    g = some_gradients()
    pairs = [torch.cosine_similarity(g[a], g[b], dim=0) for a in range(6) for b in range(a)]
    assert len(pairs) == 15
    assert mean_cosine(g).item() == pytest.approx(torch.stack(pairs).mean().item(), abs=1e-14)


def test_the_direction_is_the_gradient_of_the_mean_cosine() -> None:
    g = some_gradients().requires_grad_()
    exact = torch.autograd.grad(mean_cosine(g), g)[0]
    ours = cosine_direction(g.detach())
    torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close((ours * g.detach()).sum(1), torch.zeros(6).double(), rtol=0, atol=1e-13)


def test_the_direction_by_signs() -> None:
    g = some_gradients(3)
    ours = sign_direction(g)
    for one in range(3):
        total = torch.zeros_like(g[0])
        for other in range(3):
            if other != one:
                lengths = g[one].norm() * g[other].norm()
                total += (1 - g[one] @ g[other] / lengths * g[one].sign() * g[other].sign()) * g[other] / lengths
        torch.testing.assert_close(ours[one], total / 3, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("form", DIRECTIONS)
def test_cells_that_agree_have_no_direction(form: str) -> None:
    g = some_gradients(1).expand(4, -1)
    if form == "cosine":
        assert DIRECTIONS[form](g).norm() < 1e-15
    assert DIRECTIONS[form](torch.zeros(4, 5).double()).isfinite().all()


def test_the_strength_grows_from_nothing() -> None:
    method = paper_method("lambda-darts")
    values = []
    for epoch in (0, 49):
        method.begin_epoch(epoch)
        values.append(method.strength_now())
    assert values == [0, 0.25]
    assert method.config.batch_size == 96


def test_the_weights_gradient_is_that_of_the_loss_and_the_regulariser() -> None:
    """loss - strength Lambda by double backward through plain modules, in float64. The difference is central, so its
    error falls with eps^2; eps of 1e-4 leaves 1e-6 of the regulariser's gradient, apart from ReLUs that switch."""
    torch.set_default_dtype(torch.float64)
    state = tiny_state("lambda-darts", layers=5, backend="reference", method_options={"eps": 1e-5})
    method, network = state.method, state.network
    method.begin_epoch(2)
    network.train()
    x = torch.randn(6, 1, 6, 6, generator=torch.Generator().manual_seed(3))
    batch = (x, torch.arange(6) % 2)
    running = network.stem[1].running_mean.clone()
    done = method.weight_gradients(state.search_step, batch)
    once = network.stem[1].running_mean.clone()
    assert not torch.equal(running, once)

    group = aligned_group(network)
    assert group == "normal"
    with torch.no_grad():
        mixes = network.op_weights()
    leaves = [mixes[group].weights.clone().requires_grad_() for _ in network.mixed_ops(group)]
    assert len(leaves) == 3
    with network.mixing(by_cell(mixes, group, leaves)), network.frozen_statistics():
        loss, _ = state.architect.forward(batch)
    g = torch.autograd.grad(loss, leaves, create_graph=True)
    term = -method.strength_now() * mean_cosine(torch.stack([one.flatten() for one in g]))
    weights = state.architect.flat.weights
    plain = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    extra = torch.autograd.grad(term, weights, allow_unused=True)
    size = torch.cat([e.flatten() for e in extra if e is not None]).norm()
    error = 0.0
    for ours, base, more in zip(done.gradients, plain, extra, strict=True):
        exact = (0 if base is None else base) + (0 if more is None else more)
        error += float((ours - exact).square().sum())
    assert size > 1e-4
    assert error**0.5 < 1e-3 * size


@pytest.mark.parametrize("space", ["darts", "nasbench201"])
def test_equal_op_weights_by_cell_are_those_of_the_type(space: str) -> None:
    state = tiny_state("darts", order=1, space=space)
    network = state.network.eval()
    x = torch.randn(2, 1, 6, 6)
    mixes = network.op_weights()
    cells = {group: [mix.weights] * len(network.mixed_ops(group)) for group, mix in mixes.items()}
    with network.mixing({group: mix._replace(by_cell=cells[group]) for group, mix in mixes.items()}):
        same = network(x)
    assert torch.equal(same, network(x))
    name = aligned_group(network)
    cells[name][-1] = torch.roll(cells[name][-1].detach(), 1, 1) * 3
    with network.mixing({group: mix._replace(by_cell=cells[group]) for group, mix in mixes.items()}):
        assert not torch.equal(same, network(x))


def test_one_cell_of_each_type_is_refused() -> None:
    with pytest.raises(ValueError, match="compares cells of a type, and the network has one at most"):
        tiny_state("lambda-darts", layers=1)


def test_spaces_without_cells_are_refused() -> None:
    with pytest.raises(ValueError, match="needs weights by cell, which space 'proxyless' does not have"):
        tiny_state("lambda-darts", space="proxyless")
