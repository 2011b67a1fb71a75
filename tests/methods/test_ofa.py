"""Once-for-all: phases, their gradients and teacher, resumed searches; predictor and limit of the ranking."""

import copy
from typing import Any

import pytest
import torch
from tiny_method import finish, finish_epoch, tiny_state
from torch import Tensor
from torch.nn.functional import cross_entropy

from fastdarts.data import ImageData
from fastdarts.methods import predictor
from fastdarts.methods.samplers import Draws, Limit
from fastdarts.methods.scored import Scored
from fastdarts.methods.shrinking import lengths, phases_of
from fastdarts.runs.search_config import SearchConfig
from fastdarts.runs.search_state import SearchState
from fastdarts.spaces.elastic import Sides

FOUR = {"space_options": {"least": 1}, "epochs": 4}  # a phase each of full, kernel, depth and width


def in_phase(number: int, **fields: Any) -> SearchState:
    """Return a search at the start of a phase, in float64."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    state = tiny_state("ofa", **(FOUR | fields))
    for epoch in range(number):
        state.search_step.step(batch(), batch())
        state.epoch = epoch + 1
        state._begin_epoch()
    return state


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(6, 1, 6, 6, generator=generator, dtype=torch.float64), torch.arange(6) % 2


def test_phases_of_the_paper() -> None:
    phases = phases_of(Sides((3, 5, 7), (3, 4, 6), 2), 4)
    assert [phase.name for phase in phases] == ["full", "kernel", "depth", "depth", "width", "width"]
    assert [phase.sides for phase in phases] == [
        Sides((7,), (6,), 4),
        Sides((3, 5, 7), (6,), 4),
        Sides((3, 5, 7), (6,), 3),
        Sides((3, 5, 7), (6,), 2),
        Sides((3, 5, 7), (4, 6), 2),
        Sides((3, 5, 7), (3, 4, 6), 2),
    ]
    assert [phase.parts for phase in phases] == [1, 1, 2, 2, 4, 4]
    assert [phase.shared for phase in phases] == [None, None, None, None, (), (4,)]
    assert lengths(phases, 605) == [180, 305, 330, 455, 480, 605]
    assert lengths(phases, 6) == [1, 2, 3, 4, 5, 6]
    with pytest.raises(ValueError, match="epochs must be at least 6, one for each phase"):
        lengths(phases, 5)


def test_learning_rates_of_the_paper() -> None:
    space = {"kernels": [3, 5, 7], "expansions": [3, 4, 6], "least": 2}
    method = tiny_state("ofa", epochs=605, lr=0.075, lr_min=0.0, layers=4, space_options=space).method
    starts, rates = [0, 180, 305, 330, 455, 480], (0.075, 0.03, 0.0025, 0.0075, 0.0025, 0.0075)
    for start, rate, warm in zip(starts, rates, (0, 5, 0, 5, 0, 5), strict=True):
        method.begin_epoch(start + warm)
        assert method.learning_rate() == pytest.approx(rate)
        method.begin_epoch(start)
        assert method.learning_rate() == pytest.approx(rate / (warm + 1))
        method.begin_epoch(start - 1 if start else 604)
        assert method.learning_rate() < 0.01 * 0.075


@pytest.mark.parametrize("phase", [1, 2, 3])
def test_a_step_sums_the_gradients_of_its_parts(phase: int) -> None:
    """Against plain passes: the labels' loss plus the cross entropy to the whole network of the first phase."""
    state = in_phase(phase, method_options={"distillation": 0.7, "cells": 4})
    method, network = state.method, state.network
    method.weight_gradients(state.search_step, batch())  # enters the phase
    assert method._saved is not None
    teacher = copy.deepcopy(network)
    teacher.load_state_dict(dict(method._saved), strict=False)
    generator = copy.deepcopy(method.generator)
    found = method.weight_gradients(state.search_step, batch())
    x, targets = batch()
    network.train()
    with torch.no_grad(), teacher.mixing(teacher.mixes_of(teacher.largest())):
        soft = teacher.train()(x).softmax(1)
    expected = [torch.zeros_like(weight) for weight in network.parameters()]
    losses = []
    for _ in range({1: 1, 2: 2, 3: 4}[phase]):
        part = network.draw(method.phase.sides, generator)
        with network.mixing(network.mixes_of(part)):
            logits = network(x)
        losses.append(cross_entropy(logits, targets))
        loss = losses[-1] - 0.7 * (soft * logits.log_softmax(1)).sum(1).mean()
        gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
        for total, gradient in zip(expected, gradients, strict=True):
            if gradient is not None:
                total += gradient
    by_weight = dict(zip(map(id, state.architect.flat.weights), found.gradients, strict=True))
    for weight, total in zip(network.parameters(), expected, strict=True):
        ours = by_weight[id(weight)]
        torch.testing.assert_close(torch.zeros_like(total) if ours is None else ours, total, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.loss, torch.stack(losses).mean())


def test_the_teacher_is_the_network_of_the_first_phase_for_good() -> None:
    state = in_phase(1)
    whole = {name: weight.detach().clone() for name, weight in state.network.named_parameters()}
    for epoch in (1, 2, 3):
        state.epoch = epoch
        state._begin_epoch()
        state.search_step.step(batch(), batch())
    assert state.method._teacher is not None
    for name, weight in state.method._teacher.named_parameters():
        assert torch.equal(weight, whole[name])
        assert not weight.requires_grad
    assert any(not torch.equal(weight, whole[name]) for name, weight in state.network.named_parameters())


def test_channels_are_sorted_once_before_widths_and_momentum_begins_anew() -> None:
    state = in_phase(3)
    network = state.network
    assert state.w_optimizer.state

    def outputs() -> Tensor:
        with torch.no_grad(), network.eval().mixing(network.mixes_of(network.largest())):
            return network(batch()[0])

    before, first = outputs(), network.layers[0].shared.conv_dw.weight.clone()
    state.method._enter(state.search_step)
    torch.testing.assert_close(outputs(), before, rtol=0, atol=1e-12)
    assert not torch.equal(network.layers[0].shared.conv_dw.weight, first)
    assert not state.w_optimizer.state
    ordered = network.layers[0].shared.conv_dw.weight.clone()
    state.method.weight_gradients(state.search_step, batch())
    assert torch.equal(network.layers[0].shared.conv_dw.weight, ordered)


def test_a_search_that_stops_in_any_phase_goes_on_bit_for_bit() -> None:
    torch.use_deterministic_algorithms(True)
    whole, saved, epochs = tiny_state("ofa", **FOUR), [], []
    for _ in range(4):
        whole.train_step()
        whole.read()
        saved.append(copy.deepcopy(whole.state_dict()))
        epochs.append(finish_epoch(whole))
    found = whole.method.result(whole)
    assert [metrics["method"]["phase"] for metrics in epochs] == [0, 1, 2, 3]
    for epoch, state in enumerate(saved):
        resumed = tiny_state("ofa", **FOUR)
        resumed.load_state_dict(state)
        assert finish(resumed) == epochs[epoch:]
        theirs = whole.network.state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in resumed.network.state_dict().items())
        assert resumed.method.result(resumed) == found


def test_each_step_takes_one_of_the_sizes() -> None:
    state = in_phase(2, method_options={"sizes": [4, 6, 8], "cells": 4})
    sides: list[tuple[int, ...]] = []
    state.network.register_forward_pre_hook(lambda _, inputs: sides.append(tuple(inputs[0].shape[2:])))
    for _ in range(8):
        state.search_step.step(batch(), batch())
    assert sides[::2] == sides[1::2]  # the two parts of a step see the same images
    assert set(sides) == {(4, 4), (6, 6), (8, 8)}


def test_a_predictor_learns_the_order_of_scores() -> None:
    """Score networks by their share of large kernels; the rank correlation on others is above 0.8."""
    network = tiny_state("ofa", **FOUR).network
    generator = torch.Generator().manual_seed(0)
    drawn = list(dict.fromkeys(network.random(generator) for _ in range(150)))

    def score(part: Any) -> float:
        return sum(name.startswith("k5") for name in part.layers) / len(part.layers)

    predicted = predictor.fit(network, [Scored(part, score(part)) for part in drawn[:100]], seed=0)
    rest = drawn[100:]
    ranks = [
        torch.tensor(values).argsort().argsort().double()
        for values in ([predicted(part) for part in rest], [score(part) for part in rest])
    ]
    assert float(torch.corrcoef(torch.stack(ranks))[0, 1]) > 0.8


def test_the_ranking_with_a_predictor_scores_finalists_alone() -> None:
    options = {"sampler": "evolution", "predictor": 3, "cells": 12, "population": 4, "finalists": 2}
    state = tiny_state("ofa", **FOUR, method_options=options)
    scored: list[Any] = []
    real = state.method._score
    state.method._score = lambda of, part, data: scored.append(part) or real(of, part, data)
    found = state.method.result(state)
    assert len(scored) == 3 + 2
    assert found in scored[3:]
    assert {one.architecture for one in state.method.compared} == set(scored)  # predicted scores are no measurements


def test_a_space_of_one_network_meets_its_own_target() -> None:
    """Numbers stand for lists of one; the mean of equal costs in float32 may be below their sum in float64."""
    options = {"space_options": {"kernels": 3, "expansions": 2, "least": 4}, "method_options": {"sizes": 6}}
    config = SearchConfig(space="ofa", method="ofa", epochs=1, device="cpu", **options)
    assert (config.space_options["kernels"], config.method_options["sizes"]) == ((3,), (6,))
    halves = [ImageData(torch.zeros(8, 1, 8, 8), torch.arange(8) % 10, tuple("0123456789"), (0,), (1,), False)] * 2
    state = SearchState(config, *halves, cross_entropy, torch.device("cpu"))
    assert state.cost is not None
    assert state.cost.target == pytest.approx(state.costs.of(state.network, state.network.largest()), rel=1e-6)


def test_what_is_bred_stays_within_the_limit() -> None:
    network = tiny_state("ofa", **FOUR).network

    def cost(part: Any) -> float:
        return sum({"skip": 0, "k3 e2": 1, "k5 e2": 2, "k3 e4": 3, "k5 e4": 4}[name] for name in part.layers)

    draws = Draws(network, torch.Generator().manual_seed(0), limit=Limit(cost, 12))
    parts = [draws.random() for _ in range(5)]
    parts += [draws.crossed(parts[0], parts[1]), draws.mutated(parts[2], 0.5), draws.mutated(network.largest(), 0.1)]
    assert max(map(cost, parts)) <= 12


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"space": "darts"}, "method 'ofa' needs elastic layers, which space 'darts' does not have"),
        ({"method_options": {"sizes": [0]}}, r"sizes must be at least 1; got \[0\]"),
        ({"method_options": {"sampler": "random", "predictor": 5}}, "predictor is for sampler=evolution and nsga2"),
        ({"sync_batch_norm": True}, "sync_batch_norm does not reach norms of some of the channels"),
    ],
)
def test_what_has_no_meaning_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchConfig(**({"method": "ofa", "space": "ofa"} | fields))
