"""ProxylessNAS and FBNet: gates, their gradients, pairs, temperatures."""

import pytest
import torch
from tiny_method import finish_epoch, tiny_state

from fastdarts.methods.gumbel import straight_through
from fastdarts.methods.reinforce import draw, policy_gradients
from fastdarts.mixed.mix import Mix
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
    drawn = draw(shares.repeat(count, 1), 1, generator)[:, 0]
    frequency = torch.bincount(drawn, minlength=4) / count
    assert ((frequency - shares).abs() < 3 * (shares * (1 - shares) / count).sqrt()).all()
    pairs = draw(shares.repeat(100, 1), 2, generator)
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


# REINFORCE


def test_the_estimator_has_the_mean_of_the_exact_gradient() -> None:
    """Rewards that are known for each of all 4 x 3 networks: the estimate of 20,000 samples is within 3 sigma."""
    network = tiny_state("proxyless", **CHAIN).network
    torch.manual_seed(0)
    network.alphas = {"a": torch.randn(1, 4, dtype=torch.float64), "b": torch.randn(1, 3, dtype=torch.float64)}
    rewards = torch.rand(4, 3, dtype=torch.float64)
    for alpha in network.alphas.values():
        alpha.requires_grad_()
    p = [alpha.softmax(1)[0] for alpha in network.alphas.values()]
    loss = -(p[0][:, None] * p[1] * rewards).sum()
    exact = torch.autograd.grad(loss, list(network.alphas.values()))
    generator = torch.Generator().manual_seed(1)
    count = 20_000
    columns = [draw(share.detach().repeat(count, 1), 1, generator)[:, 0] for share in p]
    hots = [torch.eye(n, dtype=torch.float64)[column] for n, column in zip((4, 3), columns, strict=True)]
    advantages = rewards[columns[0], columns[1]] - 0.5
    for ours, share, hot in zip(exact, p, hots, strict=True):
        terms = advantages[:, None] * (share.detach() - hot)
        error = terms.std(0) / count**0.5
        assert ((terms.mean(0) - ours[0]).abs() < 3 * error).all()
        assert (error > 0).all()
    samples = [{"a": Mix(hots[0][i : i + 1]), "b": Mix(hots[1][i : i + 1])} for i in range(50)]
    found = policy_gradients(network, samples, advantages[:50].tolist())
    for ours, share, hot in zip(found, p, hots, strict=True):
        terms = advantages[:50, None] * (share.detach() - hot[:50])
        torch.testing.assert_close(ours[0], terms.mean(0), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("space", ["proxyless", "s3"])
def test_reinforce_moves_alphas_and_leaves_weights_and_statistics(space: str) -> None:
    fields = CHAIN if space == "proxyless" else {"space": "s3", "alpha_warmup": 0.0}
    state = tiny_state("proxyless", method_options={"gradient": "reinforce", "every": 1, "networks": 4}, **fields)
    network = state.network.train()
    batch = torch.randn(8, 1, 6, 6), torch.arange(8) % 2
    alphas = [alpha.detach().clone() for alpha in network.alphas.values()]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state.search_step._alpha_step(batch, batch, torch.tensor(0.1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert 0 <= state.method._baseline <= 1
    state.search_step._alpha_step(batch, batch, torch.tensor(0.1))
    assert not all(torch.equal(a, b) for a, b in zip(alphas, network.alphas.values(), strict=True))
    saved = state.method.state_dict()
    assert saved["baseline"] == state.method._baseline


@pytest.mark.parametrize("form", ["add", "multiply", "limit"])
def test_a_reward_includes_the_cost(form: str) -> None:
    state = tiny_state("proxyless", cost="flops", cost_form="add", cost_weight=0.1, **CHAIN)
    term = state.cost
    term.form = form
    network = state.network
    found = network.random(torch.Generator().manual_seed(3))
    ratio = state.costs.of(network, found) / term.target
    expected = {
        "add": 0.5 - 0.1 * (ratio - 1),
        "multiply": 0.5 * ratio**-0.1,
        "limit": 0.5 - 0.1 * max(ratio - 1, 0),
    }[form]
    assert term.rewarded(0.5, network.mixes_of(found)) == pytest.approx(expected, rel=1e-5)


def test_reinforce_finds_the_cheap_ops() -> None:
    """With a reward that is nearly all cost, the expected cost falls."""
    fields = CHAIN | {"cost": "flops", "cost_weight": 50.0, "arch_lr": 0.1, "epochs": 8}
    state = tiny_state("proxyless", method_options={"gradient": "reinforce", "every": 1, "networks": 8}, **fields)
    first = float(state.cost.expected(state.network))
    for _ in range(8):
        finish_epoch(state)
    assert float(state.cost.expected(state.network)) < 0.9 * first
