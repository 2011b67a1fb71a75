"""FairNAS, and the ranking of architectures with shared weights: samplers, batch norms, fronts, the report."""

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_method import finish_epoch, tiny_state
from tiny_search import tiny_config, tiny_images

from fastdarts.bilevel.statistics import average_statistics, kept_statistics
from fastdarts.methods.nsga2 import by_front
from fastdarts.methods.recombination import crossed, mutated
from fastdarts.methods.samplers import Draws, check_enumerable, everything, evolve
from fastdarts.methods.scored import Scored, best_within, pareto_front
from fastdarts.report.run_report import write_report
from fastdarts.runs.search_config import SearchConfig
from fastdarts.search import search

CHAIN = {"space": "fairnas", "init_channels": 8, "layers": 1}
UNEQUAL = {"space": "proxyless", "init_channels": 8, "layers": 2}


def batch_of(state: Any) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = next(state.network.parameters()).dtype
    return torch.randn(6, 1, 6, 6, dtype=dtype), torch.arange(6) % 2


def count_calls(state: Any) -> dict[tuple[str, int, int], int]:
    """Count the calls of each op, by group, row and column, from now on."""
    calls: dict[tuple[str, int, int], int] = {}
    for group in state.network.groups:
        for row, choices in enumerate(state.network.mixed_ops(group)[0]):
            for column, op in enumerate(choices._ops):
                calls[group, row, column] = 0

                def note(*_: object, at: tuple[str, int, int] = (group, row, column)) -> None:
                    calls[at] += 1

                op.register_forward_hook(note)
    return calls


# Strict fairness


def test_each_op_is_in_exactly_one_of_the_models_of_a_step() -> None:
    state = tiny_state("fairnas", **CHAIN)
    assert state.method.passes == 6
    calls = count_calls(state)
    state.network.train()
    for step in range(1, 4):
        state.search_step.step(batch_of(state), batch_of(state))
        assert set(calls.values()) == {step}  # so their variance is 0


def test_rows_of_fewer_ops_differ_by_one_at_most() -> None:
    state = tiny_state("fairnas", **UNEQUAL)
    network = state.network.train()
    counts = {name: torch.zeros(alpha.shape) for name, alpha in network.alphas.items()}
    for pass_ in range(1, 50):
        for name, mix in network.op_weights().items():
            counts[name] += mix.weights
            spread = counts[name].max(1).values - counts[name].min(1).values
            assert spread.max() <= 1
            if pass_ % counts[name].shape[1] == 0:
                assert spread.max() == 0


@pytest.mark.parametrize("space", [CHAIN, {"space": "darts"}], ids=["chain", "cells"])
def test_the_gradient_of_a_step_is_the_sum_of_separate_passes(space: dict[str, Any]) -> None:
    torch.set_default_dtype(torch.float64)
    state = tiny_state("fairnas", backend="reference", **space)
    network, method, batch = state.network.train(), state.method, batch_of(state)
    before = copy.deepcopy(method.state_dict())
    loss, _, gradients = method.weight_gradients(state.search_step, batch)
    method.load_state_dict(before)
    weights = state.architect.flat.weights
    expected = [torch.zeros_like(weight) for weight in weights]
    losses = []
    for mixes in [network.op_weights() for _ in range(method.passes)]:
        with network.mixing(mixes):
            one, _ = state.architect.forward(batch)
        losses.append(one.detach())
        for total, part in zip(expected, torch.autograd.grad(one, weights, materialize_grads=True), strict=True):
            total += part
    assert loss.item() == pytest.approx(sum(map(float, losses)) / len(losses), rel=1e-12)
    used = 0
    for ours, theirs in zip(gradients, expected, strict=True):
        if ours is None:
            assert not theirs.any()
        else:
            used += 1
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)
    assert used > len(weights) / 2


# Batch norms


def test_statistics_are_plain_averages_and_come_back() -> None:
    norm = torch.nn.BatchNorm2d(3).double()
    network = torch.nn.Sequential(norm)
    before = norm.running_mean.clone()
    batches = [(torch.randn(4, 3, 5, 5, dtype=torch.float64) + shift, torch.zeros(4)) for shift in range(3)]
    with kept_statistics(network):
        average_statistics(network, lambda batch: network(batch[0]), batches)
        means = torch.stack([x.mean((0, 2, 3)) for x, _ in batches]).mean(0)
        variances = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x, _ in batches]).mean(0)
        torch.testing.assert_close(norm.running_mean, means, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(norm.running_var, variances, rtol=1e-12, atol=1e-12)
    assert norm.momentum == 0.1
    assert torch.equal(norm.running_mean, before)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_recalibrated_cells_score_as_plain_modules_do(backend: str) -> None:
    """A network whose statistics are those of all training images in one batch: eval mode equals train mode there."""
    state = tiny_state("random", backend=backend, batch_size=16)
    network = state.network
    images, targets = state.streams[0].data.images, state.streams[0].data.targets
    batch = state.augment.normalise(images), targets
    with network.mixing(network.mixes_of(network.random(torch.Generator()))), torch.no_grad():
        state.recalibrate(1)
        expected = state.architect.forward(batch)[1]
        found = state.architect.forward(batch)[1] if network.eval() else None
    # running variances are unbiased: a factor of 16 / 15 at least where a map has one pixel
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1)


def test_ranking_leaves_the_search_as_it_was() -> None:
    state = tiny_state("fairnas", **CHAIN)
    finish_epoch(state)
    before = copy.deepcopy(state.state_dict())
    first, second = state.method.result(state), state.method.result(state)
    assert first == second
    after = state.state_dict()
    assert all(torch.equal(tensor, before["network"][name]) for name, tensor in after["network"].items())
    assert torch.equal(before["method"]["generator"], after["method"]["generator"])


# Samplers


def test_crossing_takes_nodes_of_cells_whole_and_rows_of_chains_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    network = tiny_state("random", primitives=("max_pool_3x3", "skip_connect", "sep_conv_3x3")).network
    for _ in range(20):
        parents = [network.random(generator) for _ in range(2)]
        child = crossed(network, *parents, 0.5, generator)
        for cell in ("normal", "reduce"):
            for node, first, second in zip(child.nodes(cell), *(p.nodes(cell) for p in parents), strict=True):
                ends = [sorted(source for _, source in one) for one in (node, first, second)]
                assert ends[0] in ends[1:]
                assert set(node) <= set(first) | set(second)
    chain = tiny_state("random", **UNEQUAL).network
    first, second = (chain.random(generator) for _ in range(2))
    child = crossed(chain, first, second, 0.5, generator)
    assert all(name in pair for name, *pair in zip(child.layers, first.layers, second.layers, strict=True))
    assert crossed(chain, first, second, 0.0, generator) == first
    assert crossed(chain, first, second, 1.0, generator) == second
    changed = mutated(chain, first, 0.3, generator)
    assert 0 < sum(a != b for a, b in zip(first.layers, changed.layers, strict=True)) < len(first.layers)


def test_an_op_that_cells_never_keep_is_replaced_at_random() -> None:
    generator = torch.Generator().manual_seed(1)
    network = tiny_state("random", primitives=("none", "max_pool_3x3", "sep_conv_3x3")).network
    parents = [network.random(generator) for _ in range(2)]
    children = [crossed(network, *parents, 0.5, generator) for _ in range(20)]
    assert "none" in str(parents[0])
    assert all("none" not in str(child) for child in children)
    assert len({child.to_json() for child in children}) > 5


def test_a_limit_of_skips_holds_in_children() -> None:
    generator = torch.Generator().manual_seed(0)
    network = tiny_state("random", space="s3").network
    draws = Draws(network, generator, max_skips=1)
    found = evolve(draws, lambda a: Scored(a, float(str(a).count("skip"))), list, 30, 6, 0.3)
    assert all(sum(op == "skip_connect" for op, _ in one.architecture.normal) <= 1 for one in found)


def test_all_cells_of_a_small_space_are_enumerated() -> None:
    network = tiny_state("random", space="nasbench201", primitives=("none", "skip_connect"), layers=1).network
    check_enumerable(network)
    cells = {str(cell) for cell in everything(network)}
    assert len(cells) == 2**6
    state = tiny_state(
        "random",
        method_options={"sampler": "enumeration", "finalists": 100, "batches": 2},
        space="nasbench201",
        primitives=("skip_connect", "nor_conv_1x1"),
        layers=1,
    )
    found = state.method.result(state)
    assert len(state.method.compared) == 2**6
    best = max(one.score for one in state.method.compared)
    assert next(one for one in state.method.compared if one.architecture == found).score == best


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"space": "darts", "primitives": ("skip_connect",)}, "needs a space in which each row keeps an op"),
        ({"space": "proxyless", "init_channels": 8}, "takes at most 20,000 architectures; this space has"),
    ],
)
def test_spaces_that_cannot_be_enumerated(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        tiny_state("random", method_options={"sampler": "enumeration"}, **fields)


def test_evolution_finds_what_chance_does_not() -> None:
    """The number of layers with one block: of 200 random chains of 11 layers none has all of them."""
    network = tiny_state("random", **UNEQUAL).network
    generator = torch.Generator().manual_seed(0)

    def score(architecture: Any) -> Scored:
        return Scored(architecture, float(architecture.layers.count("k5 e3")))

    by_score = lambda scored: sorted(scored, key=lambda one: -one.score)  # noqa: E731
    found = evolve(Draws(network, generator), score, by_score, 400, 20, 0.1)
    assert len({one.architecture.to_json() for one in found}) == 400
    best = max(one.score for one in found)
    chance = max(score(network.random(generator)).score for _ in range(400))
    assert best == len(found[0].architecture.layers) > chance


def test_evolution_ends_where_a_space_is_exhausted() -> None:
    network = tiny_state("random", space="nasbench201", primitives=("none", "skip_connect"), layers=1).network
    found = evolve(Draws(network, torch.Generator()), lambda a: Scored(a, 0.0), list, 1000, 10, 0.5)
    assert 0 < len(found) <= 2**6


def test_fronts() -> None:
    points = [(0.9, 5.0), (0.8, 3.0), (0.7, 4.0), (0.6, 1.0), (0.95, 9.0), (0.8, 3.5)]
    scored = [Scored(index, score, cost) for index, (score, cost) in enumerate(points)]
    assert [one.architecture for one in pareto_front(scored)] == [3, 1, 0, 4]
    assert best_within(scored, None).architecture == 4
    assert best_within(scored, 5.0).architecture == 0
    assert best_within(scored, 0.5).architecture == 3  # none is that cheap
    assert [one.architecture for one in pareto_front([Scored(0, 0.1), Scored(1, 0.2)])] == [1]
    pytest.importorskip("pymoo", reason="NSGA-II needs pymoo")
    ordered = [one.architecture for one in by_front(scored)]
    assert set(ordered[:4]) == {3, 1, 0, 4}
    assert set(ordered[:2]) == {3, 4}  # the ends of a front are its loneliest
    assert ordered[4:] == [5, 2] or set(ordered[4:]) == {2, 5}


# Runs


@pytest.mark.parametrize("sampler", ["nsga2", "evolution", "random"])
@pytest.mark.parametrize("space", ["mobilenet-small", "darts"])
def test_the_report_shows_what_was_compared(tmp_path: Path, sampler: str, space: str) -> None:
    if sampler == "nsga2":
        pytest.importorskip("pymoo", reason="NSGA-II needs pymoo")
    options = {"sampler": sampler, "cells": 8, "population": 4, "finalists": 3, "recalibrate": 1}
    result = search(
        tiny_config(
            tmp_path, method="fairnas", space=space, layers=1, init_channels=4, epochs=1, method_options=options
        ),
        tiny_images(),
    )
    record = json.loads((tmp_path / "candidates.json").read_text())
    assert record["found"] == json.loads(result.genotype.to_json())
    assert record["unit"] == "million multiply-adds"
    front = [one for one in record["candidates"] if one["front"]]
    assert len(record["candidates"]) == 8
    for one, other in itertools.permutations(front, 2):
        assert not (one["score"] <= other["score"] and one["cost"] >= other["cost"])
    page = (tmp_path / "report.html").read_text()
    assert "Architectures compared" in page
    assert page.count("<circle") >= 8
    (tmp_path / "candidates.json").write_text('{"unit": null}')
    with pytest.raises(ValueError, match="no list of compared architectures"):
        write_report(tmp_path)


def test_a_cost_target_limits_what_is_found(tmp_path: Path) -> None:
    fields = {"method": "random", "space": "mobilenet-small", "layers": 1, "init_channels": 8, "epochs": 1}
    options = {"sampler": "evolution", "cells": 30, "population": 6}
    free = search(tiny_config(tmp_path / "a", cost="params", method_options=options, **fields), tiny_images())
    record = json.loads((tmp_path / "a" / "candidates.json").read_text())
    costs = sorted(one["cost"] for one in record["candidates"])
    limit = costs[3]
    search(
        tiny_config(tmp_path / "b", cost="params", cost_target=limit, method_options=options, **fields), tiny_images()
    )
    record = json.loads((tmp_path / "b" / "candidates.json").read_text())
    found = next(one for one in record["candidates"] if one["architecture"] == record["found"])
    assert found["cost"] <= limit < costs[-1]
    assert free.genotype is not None


def test_nsga2_needs_a_cost() -> None:
    with pytest.raises(ValueError, match="sampler 'nsga2' weighs accuracy against cost, which is not given"):
        SearchConfig(method="random", method_options={"sampler": "nsga2"})
    assert SearchConfig(method="fairnas").cost == "flops"
