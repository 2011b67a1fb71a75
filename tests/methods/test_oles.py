"""OLES: the two scores, when ops are frozen, and that a frozen op stays as it is."""

import pytest
import torch
from tiny_method import tiny_state

from fastdarts.methods.oles import ops_with_weights, paper_scores, released_scores


def gradients() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 1, 3, 3), (4, 4, 1, 1), (4, 1, 3, 3), (4,)]
    first, second = ([torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes] for _ in range(2))
    return first, second


OPS = [[0, 1], [2, 3]]


@pytest.mark.parametrize(("sign", "paper"), [(1, 1), (-1, -1)])
def test_scores_of_equal_and_of_opposite_gradients(sign: int, paper: int) -> None:
    train, _ = gradients()
    valid = [sign * g for g in train]
    torch.testing.assert_close(paper_scores(train, valid, OPS), torch.full((2,), float(paper)).double())
    released = torch.ones(2) if sign == 1 else torch.zeros(2)  # of g_train + g_valid, which is 0 in the second case
    torch.testing.assert_close(released_scores(train, valid, OPS, None), released.double())


def test_scores_against_their_definitions() -> None:
    train, valid = gradients()
    ours = paper_scores(train, valid, OPS)
    released = released_scores(train, valid, OPS, max_norm=0.7)
    scale = 0.7 / torch.cat([g.flatten() for g in train]).norm()
    for op, places in enumerate(OPS):
        a, b = (torch.cat([side[place].flatten() for place in places]) for side in (train, valid))
        assert ours[op].item() == pytest.approx((a @ b / a.norm() / b.norm()).item(), rel=1e-12)
        means = []
        for place in places:
            clipped, other = scale * train[place], valid[place]
            means.append(torch.cosine_similarity(clipped + other, clipped, dim=0).mean())
        assert released[op].item() == pytest.approx(torch.stack(means).mean().item(), rel=1e-9)


def test_independent_gradients_look_alike_to_the_released_score_only() -> None:
    """cos(a + b, a) of independent vectors of equal length is 1 / sqrt(2) on average over many entries."""
    generator = torch.Generator().manual_seed(1)
    train, valid = ([torch.randn(4096, 1, 1, 1, generator=generator)] for _ in range(2))
    assert abs(paper_scores(train, valid, [[0]]).item()) < 5 / 64
    assert released_scores(train, valid, [[0]], None).item() == pytest.approx(0.5**0.5, abs=5 / 64)


def batches() -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    x = torch.randn(2, 4, 1, 6, 6, generator=torch.Generator().manual_seed(2))
    y = torch.tensor([0, 1, 0, 1])
    return (x[0], y), (x[1], y)


def copies(ops: list[list[torch.nn.Parameter]]) -> list[torch.Tensor]:
    return [weight.detach().clone() for op in ops for weight in op]


@pytest.mark.parametrize("score", ["paper", "released"])
def test_nothing_is_frozen_before_the_window_ends_and_what_is_stays_bit_for_bit(score: str) -> None:
    options = {"window": 3, "threshold": 1.0, "score": score}  # freezes whatever is judged
    state = tiny_state("oles", method_options=options, weight_decay=0.1)
    state.network.train()
    ops = ops_with_weights(state.network)
    assert len(ops) == 3 * 14 * 4 + 2 * 8  # convolutions, and reductions in place of skips on strided edges
    first = copies(ops)
    for _ in range(2):
        state.search_step.step(*batches())
    assert not state.method.frozen
    before = copies(ops)
    assert not any(torch.equal(a, b) for a, b in zip(first, before, strict=True))
    state.search_step.step(*batches())
    assert state.method.frozen == set(range(len(ops)))
    stem, alphas = state.network.stem[0].weight.detach().clone(), state.network.alphas_normal.detach().clone()
    statistics = {name: b.clone() for name, b in state.network.named_buffers() if name.endswith("running_mean")}
    for _ in range(4):
        state.search_step.step(*batches())
    assert all(torch.equal(a, b) for a, b in zip(before, copies(ops), strict=True))
    assert not torch.equal(stem, state.network.stem[0].weight)
    assert not torch.equal(alphas, state.network.alphas_normal)
    now = dict(state.network.named_buffers())
    assert any(not torch.equal(statistics[name], now[name]) for name in statistics)
    assert state.method.metrics(state.network)["frozen_share"] == 1


def test_the_same_batch_for_both_steps_freezes_nothing() -> None:
    """The alphas hardly move between the two gradients, so that these agree."""
    state = tiny_state("oles", method_options={"window": 1, "threshold": 0.9}, arch_lr=1e-6)
    state.network.train()
    batch, _ = batches()
    state.search_step.step(batch, batch)
    assert not state.method.frozen


@pytest.mark.parametrize(("score", "threshold"), [("paper", 0.0), ("released", 0.4)])
def test_the_threshold_belongs_to_the_score(score: str, threshold: float) -> None:
    assert tiny_state("oles", method_options={"score": score}).method.threshold() == threshold


def test_there_is_no_second_order_of_oles() -> None:
    with pytest.raises(ValueError, match="'oles' has no second order"):
        tiny_state("oles", order=2)
