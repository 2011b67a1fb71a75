"""Cells of other shapes: the supernets of DARTS-Bench-Suite, odd numbers of channels, other numbers of nodes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_method import finish_epoch, tiny_state
from tiny_search import tiny_config, tiny_images

from fastdarts.search import search
from fastdarts.spaces import registry
from fastdarts.spaces.darts.discrete import EvalNetwork, count_parameters
from fastdarts.spaces.darts.genotype import DARTS_V2

WIDE, DEEP, SINGLE = {"C": 18, "layers": 4}, {"C": 7, "layers": 18}, {"C": 26, "layers": 1}
SKIP, AUXILIARY = {"without": "skip_connect"}, {"auxiliary_skip": True}


@pytest.mark.parametrize(
    ("sizes", "options", "weights"),
    [
        (WIDE, {}, 1_399_168),
        (WIDE, SKIP, 1_347_328),
        (WIDE, AUXILIARY, 1_451_008),
        (DEEP, {}, 991_392),
        (DEEP, SKIP, 983_552),
        (DEEP, AUXILIARY, 999_232),
        (SINGLE, {"steps": 8}, 1_002_960),
        (SINGLE, {"steps": 8} | SKIP, 959_696),
        (SINGLE, {"steps": 8} | AUXILIARY, 1_046_224),
    ],
)
def test_the_supernets_of_darts_bench_suite(sizes: dict[str, int], options: dict[str, Any], weights: int) -> None:
    space = registry.find("darts", options=options)
    with torch.device("meta"):
        network = space.supernet(**sizes, **space.arguments())
    assert sum(p.numel() for p in network.parameters()) == weights
    edges, ops = space.groups["normal"].shape
    assert (edges, ops) == (44 if "steps" in options else 14, 7 if "without" in options else 8)


def test_odd_channels_run_in_both_networks() -> None:
    state = tiny_state("darts", init_channels=7, order=1)
    metrics = finish_epoch(state)
    assert metrics["train_loss"] > 0
    network = EvalNetwork(DARTS_V2, C=7, layers=4, num_classes=3, in_channels=1, auxiliary=False).eval()
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 3)


def test_fused_and_plain_passes_are_equal_for_odd_channels() -> None:
    torch.set_default_dtype(torch.float64)
    fused, plain = (tiny_state("darts", init_channels=7, order=1, backend=b) for b in ("auto", "reference"))
    x, y = torch.randn(2, 6, 1, 6, 6), torch.randint(2, (2, 6))
    for state in (fused, plain):
        state.network.train()
        state.search_step.step((x[0], y[0]), (x[1], y[1]))
    for ours, theirs in zip(fused.network.parameters(), plain.network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_single_cell_of_five_nodes_is_searched_and_its_network_runs(tmp_path: Path) -> None:
    options = {"steps": 5, "multiplier": 2, "without": "none,skip_connect"}
    found = search(tiny_config(tmp_path, space_options=options, epochs=1), tiny_images())
    cell = found.genotype
    assert cell.reduce_concat == [5, 6]
    assert len(cell.nodes("reduce")) == 5
    assert "skip_connect" not in {op for op, _ in cell.reduce}
    assert found.alphas["reduce"].shape == (20, 6)
    network = EvalNetwork(cell, C=4, layers=1, num_classes=3, in_channels=1, auxiliary=False).eval()
    assert network.classifier.in_features == 2 * 8  # the only cell doubles the channels
    assert count_parameters(network) > 0
    assert network(torch.randn(1, 1, 8, 8)).shape == (1, 3)


@pytest.mark.parametrize(
    ("space", "options", "reason"),
    [
        ("darts", {"steps": 2}, "multiplier must be at most steps = 2; got 4"),
        ("darts", {"without": "skip"}, "without must name ops among none, .*; got 'skip'"),
        ("darts", {"nodes": 2}, "space_options sets 'nodes', which is unknown"),
        ("s2", {"steps": 5}, "the ops of space 's2' are those of cells of four nodes"),
    ],
)
def test_shapes_that_have_no_meaning(space: str, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        tiny_state("darts", space=space, space_options=options)
