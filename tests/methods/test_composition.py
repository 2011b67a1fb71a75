"""Searches by parts of several methods."""

import copy
import dataclasses
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_method import finish, finish_epoch, tiny_state
from tiny_search import tiny_config, tiny_images

from fastdarts.compare import CompareConfig
from fastdarts.methods import NAMES, find
from fastdarts.search import search

COMPOSING = [name for name in NAMES if find(name).role is not None]


@pytest.mark.parametrize("part", ["pc-darts", "darts-minus", "sdarts-rs", "sdarts-adv", "beta-darts", "oles", "sgas"])
def test_a_part_with_darts_is_the_method_alone(part: str) -> None:
    fields = {"epochs": 4, "order": 1, "alpha_warmup": 0.0, "method_options": {}}
    alone, composed = (tiny_state(name, **fields) for name in (part, f"darts+{part}"))
    for _ in range(2):
        ours, theirs = finish_epoch(composed), finish_epoch(alone)
        assert ours == theirs
    for a, b in zip(composed.network.arch_parameters(), alone.network.arch_parameters(), strict=True):
        assert torch.equal(a, b)


def test_every_pair_composes_or_is_refused_with_a_reason() -> None:
    assert len(COMPOSING) == 16
    possible = 0
    for pair in combinations(COMPOSING, 2):
        reason = ""
        try:
            method = find("+".join(pair))
        except ValueError as error:
            reason = str(error)
        if reason:
            assert reason.startswith(f"methods {pair[0]!r} and {pair[1]!r} cannot go together: ")
        else:
            of_parts = {field.name for part in pair for field in dataclasses.fields(find(part).Options)}
            assert of_parts == {field.name for field in dataclasses.fields(method.Options)}
            possible += 1
    assert possible > 50


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gdas+reinmax", "both are for the same part, relaxation"),
        ("pc-darts+sdarts-rs+gdas", "noise is for the op weights of all ops"),
        ("oles+reinmax", "all ops are judged in every step"),
        ("fairdarts+sdarts-adv", "back onto the simplex"),
        ("lambda-darts+oles", "both change the gradient of the weights"),
        ("darts-minus+robustdarts", "each has an option 'factor'"),
        ("darts+p-darts", "method 'p-darts' only runs alone: it has no role"),
        ("darts+drats", "method must be one of .*; got 'drats'"),
    ],
)
def test_what_has_no_meaning_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        tiny_state(name)


def test_options_and_rules_are_those_of_all_parts() -> None:
    state = tiny_state("reinmax+pc-darts+beta-darts", method_options={"tau": 2.0, "k": 2, "strength": 5.0}, order=1)
    assert state.config.alpha_warmup == 0.3  # of PC-DARTS
    assert state.method.draws
    assert state.method.sparse
    with pytest.raises(ValueError, match="init_channels must be a multiple of the method's k = 4; got 6"):
        tiny_state("darts+pc-darts", init_channels=6)
    with pytest.raises(ValueError, match=r"'drnas\+pc-darts' has no second order"):
        tiny_state("drnas+pc-darts", order=2)
    compared = CompareConfig(methods="darts,reinmax+pc-darts+k=2", order=1)
    searched = compared.search_config("reinmax+pc-darts+k=2", 0, Path())
    assert (searched.method, searched.method_options["k"]) == ("reinmax+pc-darts", 2)


def test_penalties_add_up() -> None:
    torch.set_default_dtype(torch.float64)
    state = tiny_state("fbnet+beta-darts+darts-plus", method_options={"strength": 3.0}, order=1)
    state.method.begin_epoch(1)
    alone = tiny_state("beta-darts", method_options={"strength": 3.0})
    alone.method.begin_epoch(1)
    assert state.method.penalty(alone.network) == alone.method.penalty(alone.network)


@pytest.mark.parametrize("noise", ["sdarts-rs", "sdarts-adv"])
def test_noise_comes_before_edge_weights_and_the_auxiliary_skip(noise: str) -> None:
    torch.set_default_dtype(torch.float64)
    state = tiny_state(f"{noise}+pc-darts+darts-minus", order=1, epochs=4)
    batch = torch.randn(4, 1, 6, 6), torch.arange(4) % 2
    plain = state.network.op_weights()
    with state.method.weight_pass(state.search_step, batch):
        noisy = state.network.op_weights()
    for name, mix in noisy.items():
        assert (mix.weights[:, :-1] - plain[name].weights[:, :-1]).abs().max() > 1e-3
        torch.testing.assert_close(mix.weights[:, :-1].sum(1), mix.passing)
        assert (mix.weights[:, -1] == state.method.factor()).all()


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("reinmax+pc-darts+beta-darts+darts-plus", {"op_dropout": 0.3}),
        ("drnas+pc-darts+darts-minus+sdarts-adv+sgas", {}),
        ("fbnet+pc-darts+sdarts-rs+oles+darts-plus", {"method_options": {"window": 1}}),
        ("gdas+pc-darts+sgas", {"space_options": {"auxiliary_skip": True}}),
        pytest.param(
            "darts+pc-darts+lambda-darts+robustdarts",
            {"method_options": {"iterations": 2, "images": 4}, "layers": 4},
            marks=pytest.mark.slow,
        ),
        ("fairdarts+darts-minus+darts-plus", {"method_options": {"rule": "ranking"}}),
    ],
)
def test_composed_searches_go_on_as_they_were(name: str, fields: dict[str, Any]) -> None:
    options = {"epochs": 3, "order": 1, "deterministic": True} | fields
    whole = tiny_state(name, **options)
    before = finish_epoch(whole)
    resumed = tiny_state(name, **options)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    rest = finish(whole)
    assert rest
    assert before["train_loss"] > 0
    assert finish(resumed) == rest
    assert resumed.method.result(resumed) == whole.method.result(whole)


def test_a_composed_search_ends_with_a_selection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdarts.report.alphas.draw_alphas", lambda path: None)  # takes longer than the search
    monkeypatch.setattr("fastdarts.report.run_report.write_report", lambda out: None)
    config = tiny_config(
        tmp_path,
        method="fbnet+pc-darts+beta-darts",
        method_options={"k": 2},
        init_channels=4,
        epochs=1,
        select="pt",
        select_options={"epochs": 1, "batches": 1},
    )
    found = search(config, tiny_images())
    assert len(found.genotype.reduce) == 8
    assert found.metrics[-1]["method"]["projections"] == 17
