"""SGAS: scores, when edges are decided, and what becomes of the others."""

import math
from types import SimpleNamespace

import pytest
import torch
from tiny_method import finish, network_of, paper_method, tiny_state

from fastdarts.methods.sgas import entropy, shares


def test_scores_of_equal_alphas() -> None:
    method = paper_method("sgas")
    group = method.space.groups["normal"]
    importance, known = shares(torch.zeros(14, 8), group)
    assert importance[0].item() == pytest.approx(7 / 8)
    torch.testing.assert_close(entropy(known, group), torch.ones(14, dtype=torch.float64))
    assert -torch.xlogy(known, known).sum(1)[0].item() == pytest.approx(math.log(7))
    assert method.score("normal", method.space.groups["normal"], importance, known).argmax() == 0


SHARE = 0.5 * (1 - math.log(2) / math.log(7))


@pytest.mark.parametrize(("criterion", "expected"), [(1, [0, 1, SHARE]), (2, [0, 0, SHARE])])
def test_scores_by_hand(criterion: int, expected: list[float]) -> None:
    """Importance .2, 1, .6, certainty 0, 1, 1 - ln 2 / ln 7 and stability 1, .5, 1, each spread to 0..1."""
    method = paper_method("sgas", method_options={"criterion": criterion})
    known = torch.zeros(14, 8, dtype=torch.float64)
    known[0, 1:] = 1 / 7
    known[1, 3] = 1
    known[2:, 1:3] = 0.5
    importance = torch.full((14,), 0.6, dtype=torch.float64)
    importance[:2] = torch.tensor([0.2, 1], dtype=torch.float64)
    before = known.clone()
    before[1, 3:5] = 0.5
    method._past["normal"] = [before]
    score = method.score("normal", method.space.groups["normal"], importance, known)
    torch.testing.assert_close(score[:3], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    assert score[2:].unique().numel() == 1


def decided_after(method, network, epochs: int) -> list[int]:
    """The epochs at whose end an edge of the normal cell was decided."""
    times, before = [], 0
    for epoch in range(epochs):
        method.begin_epoch(epoch)
        method.end_epoch(SimpleNamespace(network=network), {})
        now = len(method.decided["normal"])
        times += [epoch] * (now - before)
        before = now
    return times


def test_decisions_come_after_the_published_epochs_and_leave_two_edges_a_node() -> None:
    method = paper_method("sgas")
    network = network_of(method)
    with torch.no_grad():
        for alpha in network.alphas.values():
            alpha.normal_(generator=torch.Generator().manual_seed(0))
    assert decided_after(method, network, 50) == [9, 14, 19, 24, 29, 34, 39, 44]
    for name, group in network.groups.items():
        kept = method.kept[name]
        assert [int(kept[rows].any(1).sum()) for rows in group.entering()] == [2, 2, 2, 2]
        assert kept.sum() == 8
        assert kept[:2].any(1).all()
        assert not kept[:, 0].any()  # none
        cell = method.genotype(network).nodes(name)
        chosen = {group.ends[row]: group.ops[row][column] for row, column in method.decided[name].items()}
        assert {(source, state): op for state, node in enumerate(cell, 2) for op, source in node} == chosen


def test_a_decided_edge_runs_its_op_alone_and_keeps_its_alphas() -> None:
    state = tiny_state("sgas", epochs=3, arch_weight_decay=0.1)
    finish(state)
    method = state.method
    assert {name: len(rows) for name, rows in method.decided.items()} == {"normal": 8, "reduce": 8}
    mix = state.network.op_weights()["normal"]
    for row in range(14):
        column = method.decided["normal"].get(row)
        assert list(mix.active[row]) == ([] if column is None else [column])
        if column is not None:
            assert mix.weights[row, column] == 1
    before = state.network.alphas_normal.detach().clone()
    state.train_step()
    rows = list(method.decided["normal"])
    assert torch.equal(before[rows], state.network.alphas_normal[rows])


def test_every_edge_of_a_space_that_keeps_all_is_decided() -> None:
    state = tiny_state("sgas", space="nasbench201", epochs=6)
    finish(state)
    assert len(state.method.decided["cell"]) == 6
    rows = state.method.genotype(state.network).ops
    group = state.network.groups["cell"]
    assert list(rows) == [group.ops[row][state.method.decided["cell"][row]] for row in range(6)]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prune_below": 0.1}, "prune_below cannot be used"),
        ({"method_options": {"first": 0.5, "last": 0.2}}, "first must be at most last = 0.2; got 0.5"),
    ],
)
def test_what_has_no_meaning_in_sgas(fields: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        tiny_state("sgas", **fields)
