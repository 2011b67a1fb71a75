"""DARTS-PT: what is chosen, how often the network is measured, and that it goes on bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_method import finish, finish_epoch, tiny_state
from tiny_search import tiny_config, tiny_images

from fastdarts.bilevel.ranks import Ranks
from fastdarts.methods.darts_pt import DartsPt
from fastdarts.runs import checkpoint
from fastdarts.runs.search_state import SearchState
from fastdarts.search import search, selection_of
from fastdarts.spaces.darts.genotype import Genotype

PT = f"{DartsPt.__module__}:DartsPt"


def selecting(searched: SearchState, **options: Any) -> SearchState:
    """A selection in the network of a search that has ended."""
    config = selection_of(searched.config, Path())
    fields = {"epochs": options.pop("epochs", 3), "space": config.space, "primitives": config.primitives}
    state = tiny_state(PT, method_options=config.method_options | options, order=1, **fields)
    state.take_over(searched.state_dict())
    return state


def searched(method: str = "darts", **fields: Any) -> SearchState:
    state = tiny_state(method, order=1, epochs=3 if method == "p-darts" else 1, **fields)
    finish(state)
    return state


def test_the_method_of_the_search_draws_for_the_same_ranks() -> None:
    config = selection_of(searched().config, Path())
    ranks = Ranks()
    state = tiny_state(PT, ranks=ranks, method_options=config.method_options, order=1)
    assert state.method.trained.ranks is ranks


def counting(state: SearchState, value) -> list[Any]:
    """Replace measurements by value(mixes); return the list of all mixes that are measured."""
    seen: list[Any] = []

    def measure(data: Any, between: Any) -> tuple[float, float]:
        seen.append(state.network.op_weights())
        return 0.0, value(seen[-1])

    state.measure_by_batch = measure  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize(
    ("primitives", "evaluations"), [(None, 240), (("skip_connect", "sep_conv_3x3"), 2 * (14 * 2 + 22))]
)
def test_numbers_of_projections_and_evaluations(primitives: Any, evaluations: int) -> None:
    state = selecting(searched(primitives=primitives))
    seen = counting(state, lambda mixes: 0.5)
    for epoch in range(3):
        state.method.begin_epoch(epoch)
        state.method.end_epoch(state, {})
    assert state.method.projections == 17
    assert len(seen) == state.method.evaluations == evaluations
    for name, kept in state.method.kept.items():
        assert [int(kept[rows].sum()) for rows in state.network.groups[name].entering()] == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("epochs", "times"), [(161, range(0, 161, 10)), (81, range(0, 81, 5)), (17, range(17)), (1, [0] * 17)]
)
def test_projections_are_spread_over_the_epochs(epochs: int, times: Any) -> None:
    state = selecting(searched(), epochs=epochs)
    counting(state, lambda mixes: 0.5)
    found = []
    for epoch in range(epochs):
        state.method.begin_epoch(epoch)
        before = state.method.projections
        state.method.end_epoch(state, {})
        found += [epoch] * (state.method.projections - before)
    assert found == list(times)


def test_the_learning_rate_and_the_optimizer_begin_anew() -> None:
    before = searched()
    config = selection_of(before.config, Path())
    assert config.lr == before.config.lr / 10
    state = selecting(before)
    assert (
        not state.w_optimizer.momentum.any() if hasattr(state.w_optimizer, "momentum") else not state.w_optimizer.state
    )
    theirs = before.network.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in state.network.state_dict().items())
    assert torch.equal(state.network.alphas_normal, before.network.alphas_normal)


def test_the_op_on_which_the_accuracy_depends_is_chosen_whatever_its_weight() -> None:
    """Every edge needs another op, whose alpha is the lowest; the edges from the last two states of a node matter."""
    state = selecting(searched())
    wanted = {name: [1 + row % 7 for row in range(14)] for name in ("normal", "reduce")}
    with torch.no_grad():
        for name, alpha in state.network.alphas.items():
            alpha[range(14), wanted[name]] -= 3

    def accuracy(mixes: Any) -> float:
        """Edges of later sources weigh more, and every wanted op counts."""
        total = 0.0
        for name, columns in wanted.items():
            for row, (source, _) in enumerate(state.network.groups[name].ends):
                active = mixes[name].active
                runs = active is None or columns[row] in active[row]
                total += (1 + source) * float(runs and mixes[name].weights[row, columns[row]] > 0)
        return total

    counting(state, accuracy)
    for epoch in range(3):
        state.method.begin_epoch(epoch)
        state.method.end_epoch(state, {})
    found = state.method.genotype(state.network)
    for name, columns in wanted.items():
        group = state.network.groups[name]
        for target, node in enumerate(found.nodes(name), start=2):
            assert sorted(source for _, source in node) == [target - 2, target - 1]
            for op, source in node:
                row = group.ends.index((source, target))
                assert op == group.ops[row][columns[row]]


def test_a_removed_op_has_no_weight_and_the_others_keep_theirs() -> None:
    state = selecting(searched())
    seen = counting(state, lambda mixes: 0.5)
    state.method.begin_epoch(0)
    state.method.end_epoch(state, {})
    before = state.network.alphas_normal.softmax(1).detach()
    weights = seen[0]["normal"].weights
    ((row, column),) = (weights == 0).nonzero().tolist()
    assert column == 1  # `none` is not measured
    assert weights[row].sum().item() == pytest.approx(1 - before[row, column].item(), abs=1e-6)
    weights[row, column] = before[row, column]
    torch.testing.assert_close(weights, before)


def test_ties_keep_the_first_op_and_the_first_edges() -> None:
    state = selecting(searched(), epochs=1)
    counting(state, lambda mixes: 0.5)
    state.method.end_epoch(state, {})
    found = state.method.genotype(state.network)
    assert {op for op, _ in found.normal} == {"max_pool_3x3"}
    assert sorted(source for _, source in found.normal) == [0] * 4 + [1] * 4


def test_measured_by_the_statistics_of_batches_or_running_ones() -> None:
    state = searched()
    running = {name: buffer.clone() for name, buffer in state.network.named_buffers()}
    by_batch = state.measure_by_batch(state.validation, lambda: None)
    assert by_batch != state.measure(state.validation, lambda: None)
    assert all(torch.equal(running[name], buffer) for name, buffer in state.network.named_buffers())


@pytest.mark.parametrize("method", ["pc-darts", "fairdarts", "p-darts", "gdas", "sgas", "darts-minus", "random"])
def test_the_network_of_any_method(method: str) -> None:
    state = selecting(searched(method))
    state.method.evaluations = 0
    epochs = finish(state)
    found = state.method.result(state)
    assert Genotype.from_json(found.to_json()).validated() == found
    assert json.dumps(epochs[-1]["method"])
    for name, kept in state.method.kept.items():
        assert [int(kept[rows].any(1).sum()) for rows in state.network.groups[name].entering()] == [2, 2, 2, 2]
        mix = state.network.op_weights()[name]
        if mix.passing is not None:
            assert not mix.passing[~kept.any(1)].any()


@pytest.mark.parametrize("space", ["nasbench201", "proxyless"])
def test_other_spaces(space: str) -> None:
    state = selecting(searched(space=space))
    counting(state, lambda mixes: 0.5)
    finish(state)
    assert all((kept.sum(1) == 1).all() for kept in state.method.kept.values())


def test_a_killed_selection_goes_on_bit_for_bit(tmp_path: Path) -> None:
    torch.use_deterministic_algorithms(True)
    before = searched("pc-darts", space="s3")
    whole = selecting(before, batches=1)
    epochs = [finish_epoch(whole)]
    whole.train_step()
    whole.read()
    checkpoint.save(tmp_path / "checkpoint.pt", whole.kind, whole.state_dict())
    epochs += finish(whole)
    resumed = selecting(before, batches=1)
    resumed.load_state_dict(checkpoint.load(tmp_path / "checkpoint.pt", resumed.kind))
    assert finish(resumed) == epochs[1:]
    theirs = whole.network.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in resumed.network.state_dict().items())
    assert resumed.method.result(resumed) == whole.method.result(whole)


def test_a_search_with_selection_and_one_that_selects_after_its_end_are_equal(tmp_path: Path) -> None:
    options = {
        "select_options": {"epochs": 2, "batches": 1},
        "deterministic": True,
        "primitives": ("skip_connect", "sep_conv_3x3"),
    }
    at_once = search(tiny_config(tmp_path / "a", select="pt", **options), tiny_images())
    derived = search(tiny_config(tmp_path / "b", **options), tiny_images())
    assert not (tmp_path / "b" / "selection").exists()
    later = search(tiny_config(tmp_path / "b", select="pt", resume=True, **options), tiny_images())
    assert later.genotype == at_once.genotype
    assert later.out_dir == tmp_path / "b"
    for out in (tmp_path / "a", tmp_path / "b"):
        assert Genotype.load(out) == Genotype.load(out / "selection") == at_once.genotype
        assert (out / "report.html").is_file()
    assert len(at_once.metrics) == 2 + 2
    assert json.loads((tmp_path / "b" / "selection" / "config.json").read_text())["epochs"] == 2
    assert derived.metrics == later.metrics[:2]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"method": "snas"}, "select 'pt' needs validation images"),
        ({"select_options": {"epoch": 3}}, "select_options sets 'epoch', which is unknown; did you mean 'epochs'"),
        ({"select_options": {"batches": 0}}, "select_options: batches must be at least 1; got 0"),
    ],
)
def test_what_has_no_meaning_in_a_selection(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        tiny_state(**({"select": "pt"} | fields))
