"""ProxylessNAS and FBNet: gates, their gradients, pairs, temperatures."""

import pytest
import torch
from tiny_method import finish_epoch, tiny_state

from fastdarts.methods.gumbel import straight_through
from fastdarts.methods.proxyless import _draw
from fastdarts.runs.search_config import SearchConfig
from fastdarts.runs.search_state import SearchState

CHAIN = {"space": "proxyless", "init_channels": 8, "layers": 2, "alpha_warmup": 0.0}


def state_of(method: str = "proxyless", **options) -> SearchState:
    return tiny_state(method, method_options=options, **CHAIN)


def alpha_gradients(gradient: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """The alphas' gradients of one alpha step in float64, from gates drawn with a seed."""
    state = state_of(gradient=gradient, every=1)
    state.network.double()
    torch.manual_seed(0)
    for alpha in state.network.alphas.values():
        alpha.data.normal_()
    state.method.generator.manual_seed(seed)
    state.network.train()
    batch = torch.randn(8, 1, 6, 6, dtype=torch.float64), torch.arange(8) % 2
    step = state.search_step
    state.method.before_alpha_step(step)
    found = state.architect.alpha_gradients(batch, batch, 0.0, state.w_optimizer, order=1)
    return dict(zip(state.network.alphas, found, strict=True))


@pytest.mark.parametrize("gradient", ["full", "full_v2", "two"])
def test_the_gradients_of_a_rows_alphas_sum_to_zero(gradient: str) -> None:
    for found in alpha_gradients(gradient).values():
        assert found.abs().max() > 1e-6
        torch.testing.assert_close(found.sum(1), torch.zeros(len(found), dtype=found.dtype), rtol=0, atol=1e-12)


def test_ops_that_run_in_the_backward_pass_give_the_same_gradient() -> None:
    with_graph, without = alpha_gradients("full"), alpha_gradients("full_v2")
    for name, expected in with_graph.items():
        torch.testing.assert_close(without[name], expected, rtol=1e-9, atol=1e-12)


def test_a_pair_leaves_the_other_ops_alone() -> None:
    for found in alpha_gradients("two").values():
        assert ((found != 0).sum(1) <= 2).all()


def test_the_gradient_of_gates() -> None:
    """With G = c: sum_j c_j p_j (delta_ij - p_i) = p_i (c_i - E)."""
    alpha = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    costs = torch.rand(3, 5, dtype=torch.float64)
    p = alpha.softmax(1)
    gates = straight_through(torch.tensor([0, 4, 2]), p)
    assert torch.equal(gates.detach().round(), torch.eye(5, dtype=torch.float64)[[0, 4, 2]])
    (found,) = torch.autograd.grad((gates * costs).sum(), alpha)
    expected = p * (costs - (p * costs).sum(1, keepdim=True))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_pairs_step_keeps_its_share_and_all_others() -> None:
    state = state_of(every=1)
    for alpha in state.network.alphas.values():
        torch.nn.init.normal_(alpha)
    before = {name: alpha.detach().clone() for name, alpha in state.network.alphas.items()}
    state.train_step()
    moved = 0
    for name, alpha in state.network.alphas.items():
        old, new = before[name].double().softmax(1), alpha.detach().double().softmax(1)
        changed = (new - old).abs() > 1e-6
        assert (changed.sum(1) <= 2).all()
        moved += int(changed.sum())
    assert moved > 0


def test_draws_follow_the_shares() -> None:
    generator = torch.Generator().manual_seed(0)
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    count = 20_000
    drawn = _draw(shares.repeat(count, 1), 1, generator)[:, 0]
    frequency = torch.bincount(drawn, minlength=4) / count
    assert ((frequency - shares).abs() < 3 * (shares * (1 - shares) / count).sqrt()).all()
    pairs = _draw(shares.repeat(100, 1), 2, generator)
    assert (pairs[:, 0] != pairs[:, 1]).all()


def test_a_weight_step_runs_one_op_a_row() -> None:
    state = state_of(every=5)
    state.train_step()  # the first of five moves weights only
    assert all(alpha.grad is None for alpha in state.network.alphas.values())
    for layer in state.network.layers:
        touched = [any(p in state.w_optimizer.state for p in op.parameters()) for op in layer._ops]
        assert sum(touched) <= 1


def test_alphas_move_in_every_fifth_step() -> None:
    state = state_of(every=5)
    moves = []
    for _ in range(10):
        before = [alpha.detach().clone() for alpha in state.network.alphas.values()]
        if state.step == state.steps_per_epoch:
            finish_epoch(state)
        state.train_step()
        moves.append(not all(map(torch.equal, before, (a.detach() for a in state.network.alphas.values()))))
    assert moves == [False] * 4 + [True] + [False] * 4 + [True]


def test_cells_need_the_full_gradient() -> None:
    with pytest.raises(ValueError, match="take gradient=full"):
        SearchConfig(method="proxyless", order=1, method_options={"gradient": "two"})
    state = tiny_state("proxyless", method_options={"every": 1}, alpha_warmup=0.0)
    assert state.method.gradient == "full"
    state.train_step()


def test_the_temperature_of_fbnet() -> None:
    state = tiny_state("fbnet", epochs=91, **CHAIN)
    state.method.begin_epoch(91)
    assert state.method.tau() == pytest.approx(0.0871, abs=5e-5)
    state.method.begin_epoch(0)
    assert state.method.tau() == 5.0
    finish_epoch(state)
