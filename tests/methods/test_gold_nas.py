"""GOLD-NAS: the resource term, pruning to a budget, networks whose cells are all different."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_method import finish, finish_epoch, network_of, paper_method, tiny_state
from tiny_search import tiny_config, tiny_images
from torch import nn
from torch.nn.functional import cross_entropy

from fastdarts.evaluate import EvalConfig, evaluate
from fastdarts.methods.budget import Budget, node_shares
from fastdarts.runs.costs import cost_table
from fastdarts.runs.trained import load
from fastdarts.search import search
from fastdarts.spaces.cost_model import CostModel
from fastdarts.spaces.darts.cell_genotypes import PUBLISHED, CellGenotypes
from fastdarts.spaces.darts.discrete import EvalNetwork, count_parameters
from fastdarts.spaces.darts.genotype import edges_of
from fastdarts.spaces.darts.source import ImageFormat, network_source
from fastdarts.spaces.darts.supernet import SearchNetwork
from fastdarts.spaces.group import Group
from fastdarts.spaces.registry import load_architecture, space_of

NODES = Group("", (("a", "b"),) * 14, tuple(edges_of(4))).entering()


def test_numbers_of_the_published_search() -> None:
    method = paper_method("gold-nas")
    config = method.config
    assert (config.layers, config.init_channels, config.batch_size, config.cutout) == (14, 36, 96, 16)
    table = cost_table(config, method, 10, (3, 32, 32))
    assert sum(float(rows.sum()) for rows in table.rows.values()) == pytest.approx(613.453824, abs=1e-9)
    with torch.device("meta"):
        network = SearchNetwork(C=36, **method.network_arguments())
    assert sum(p.numel() for p in network.parameters()) == 5_217_526
    assert sum(alpha.numel() for alpha in network.alphas.values()) == 392


def test_the_resource_term_of_equal_ops() -> None:
    method = paper_method("gold-nas")
    network = network_of(method, layers=14)
    assert float(method.resource(network).detach()) == pytest.approx(271.7137, abs=5e-5)
    assert float(method.resource(network).detach()) == pytest.approx(392 * math.log(2), abs=1e-10)
    assert method.penalty(network) is None
    scores = method.scores(network)["cell0"]
    assert scores[[0, 2, 5, 9], 0].tolist() == pytest.approx([1 / 4, 1 / 6, 1 / 8, 1 / 10])


def test_the_resource_term_falls_for_unequal_ops_and_counts_costs() -> None:
    method = paper_method("gold-nas", method_options={"mu": 2.0, "rho": 1.0})
    network = network_of(method, layers=3)
    prices = torch.zeros(3, 14, 2, dtype=torch.float64)
    prices[:, :, 1] = 1.0
    method._budget = Budget(prices, 0.0, 0.0, NODES)
    assert float(method.resource(network).detach()) == pytest.approx(42 * (1 + 3) * math.log(2), abs=1e-10)
    with torch.no_grad():
        for alpha in network.alphas.values():
            alpha[:, 1] = -3
    equal = 42 * 4 * math.log(2)
    assert float(method.resource(network).detach()) < equal
    every = torch.ones(14, 2, dtype=torch.bool)
    torch.autograd.gradcheck(lambda a: node_shares(a, every, NODES), torch.randn(14, 2).double().requires_grad_())


def test_lambda_grows_in_idle_epochs_and_halves_after_one_that_prunes() -> None:
    method = paper_method("gold-nas")
    for k in range(1, 12):
        method.adapt(3)
        assert method.weight == pytest.approx(1e-5 * (2 ** (k + 1) - 2), rel=1e-12)
    before = method.weight
    method.adapt(4)
    assert method.weight == before / 2
    method.adapt(0)
    assert method.weight == pytest.approx(before / 2 + 2e-5, rel=1e-12)


def alphas_of(shares: dict[tuple[int, int, int], float]) -> torch.Tensor:
    """Alphas [1, 14, 2] whose node shares are about these; the other ops of a node share the rest evenly."""
    weights = torch.full((1, 14, 2), 0.5, dtype=torch.float64)
    for place, share in shares.items():
        rows = next(rows for rows in NODES if rows.start <= place[1] < rows.stop)
        others = 2 * (rows.stop - rows.start) - 1
        weights[place] = 0.5 * others * share / (1 - share)
    return weights.logit()


def pruned(alpha: torch.Tensor, budget: Budget, kept: torch.Tensor | None = None) -> set[tuple[int, ...]]:
    kept = torch.ones(alpha.shape, dtype=torch.bool) if kept is None else kept
    left = budget.prune(alpha, kept, dead=0.01, weak=0.05, most=4)
    return {tuple(place) for place in (kept & ~left).nonzero().tolist()}


def test_dead_ops_go_at_once_and_four_weak_ones_after_them() -> None:
    free = Budget(torch.ones(1, 14, 2, dtype=torch.float64), 0.0, 4.0, NODES)
    assert pruned(alphas_of({(0, 2, 0): 0.005, (0, 3, 1): 0.03}), free) == {(0, 2, 0), (0, 3, 1)}
    assert pruned(alphas_of({(0, 2, 0): 0.06}), free) == set()
    weak = {(0, edge, 0): 0.02 + 0.001 * edge for edge in range(2, 9)}
    assert pruned(alphas_of(weak), free) == {(0, edge, 0) for edge in range(2, 6)}
    dead = {(0, edge, op): 0.001 for edge in range(9, 14) for op in range(2) if (edge, op) != (13, 1)}
    assert len(pruned(alphas_of(dead), free)) == 9


def test_the_last_op_of_a_node_stays() -> None:
    alpha = torch.full((1, 14, 2), -50.0, dtype=torch.float64)
    alpha[:, :, 1] = -60
    budget = Budget(torch.ones(1, 14, 2, dtype=torch.float64), 0.0, 4.0, NODES)
    left = torch.ones(1, 14, 2, dtype=torch.bool)
    for _ in range(10):
        left = budget.prune(alpha, left, dead=0.01, weak=1.0, most=4)
    assert [int(left[0, rows].sum()) for rows in NODES] == [1, 1, 1, 1]
    assert node_shares(alpha, left, NODES)[left].tolist() == [1.0] * 4


@pytest.mark.parametrize("limit", [10.0, 10.5, 40.0])
def test_a_cut_meets_any_budget_that_a_network_can_meet(limit: float) -> None:
    """The cheapest op of each node may be its weakest: it stays where the others would cost too much."""
    prices = torch.full((2, 14, 2), 3.0, dtype=torch.float64)
    prices[:, :, 0] = 0
    alpha = torch.randn(2, 14, 2, generator=torch.Generator().manual_seed(0)).double()
    alpha[:, :, 0] -= 20
    budget = Budget(prices, 10.0, limit, NODES)
    left = budget.cut(alpha, torch.ones(2, 14, 2, dtype=torch.bool), limit)
    assert budget.cost(left) <= limit
    assert budget.cost(left) > limit - 3  # no more than needed
    assert left[:, :, 0].all()  # removing what costs nothing would not help


def budgets(state: Any) -> tuple[float, float]:
    """The lowest cost of a search's networks and that of all ops."""
    budget = state.method.budget
    kept = torch.ones(budget.prices.shape, dtype=torch.bool)
    return budget.lowest(kept), budget.cost(kept)


def test_a_search_ends_within_any_budget_and_refuses_one_that_nothing_meets() -> None:
    lowest, most = budgets(tiny_state("gold-nas"))
    for target in (lowest, (lowest + most) / 2, 2 * most):
        state = tiny_state("gold-nas", cost_target=target, epochs=4)
        finish(state)
        assert state.method.stopped is not None
        result = state.method.result(state)
        cost = state.costs.of(state.network, result)
        assert cost <= target
        assert state.method.compared[-1].architecture == result
        assert all(node for cell in result.cells for node in cell.nodes)
    with pytest.raises(ValueError, match=r"cost_target must be at least .* million multiply-adds.* got"):
        tiny_state("gold-nas", cost_target=0.999 * lowest)


def test_what_makes_no_sense_is_refused() -> None:
    for fields, words in (
        ({"cost": None}, "shrinks a network to a cost"),
        ({"cost_weight": 0.1}, "resource term of its own"),
        ({"prune_below": 0.1}, "by its own rule"),
        ({"epochs": 1}, "epochs must be at least 2"),
        ({"space": "nasbench201"}, "needs own cells"),
    ):
        with pytest.raises(ValueError, match=words):
            tiny_state("gold-nas", **fields)
    state = tiny_state("gold-nas")
    with pytest.raises(ValueError, match="a table, not a regressor"):
        state.method.takes_costs(state.network, CostModel("ms", {}, [], 0.0, {}))


def test_without_lambda_and_rate_it_trains_the_supernet_alone() -> None:
    """Two steps, bit for bit those of plain SGD on all ops with weight 1/2."""
    states = [tiny_state("gold-nas", arch_lr=1e-300, backend="reference") for _ in range(2)]
    ours, plain = states
    optimizer = torch.optim.SGD(plain.network.parameters(), 0.01, 0.9, weight_decay=3e-4)
    plain.network.train()
    x, y = torch.randn(6, 1, 6, 6), torch.arange(6) % 2
    for _ in range(2):
        ours.search_step.step((x, y), (x, y))
        loss = cross_entropy(plain.network(x), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.network.parameters(), 5.0)
        optimizer.step()
    theirs = plain.network.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.network.state_dict().items())
    assert not any(alpha.any() for alpha in ours.network.alphas.values())


def test_dead_ops_are_neither_computed_nor_missed() -> None:
    """The network without half of the ops equals the one that computes them with weight 0."""
    method = paper_method("gold-nas")
    network = network_of(method).train()
    kept = {name: torch.rand(14, 2) < 0.5 for name in network.groups}
    for mask in kept.values():
        mask[[0, 2, 5, 9], 1] = True
    with torch.no_grad():
        for alpha in network.alphas.values():
            alpha.normal_()
    method.kept = kept
    mixes = method.mixes(network)
    assert all(list(map(len, mixes[name].active)) == kept[name].sum(1).tolist() for name in kept)
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    full = {
        name: mix._replace(weights=network.alphas[name].sigmoid() * kept[name], active=None)
        for name, mix in mixes.items()
    }
    with torch.no_grad(), network.frozen_statistics():
        ours = network(x)
        with network.mixing(full):
            torch.testing.assert_close(ours, network(x), rtol=0, atol=1e-10)


def test_s1_has_the_published_number_of_weights() -> None:
    """The authors' cells have batch norms without scales and shifts; ours have them, as all found networks."""
    genotype = PUBLISHED["GOLD_NAS_S1"]
    assert load_architecture("GOLD_NAS_S1") == genotype
    assert genotype.ops() == {"sep_conv_3x3": 111, "skip_connect": 61}
    assert [sum(map(len, cell.nodes)) for cell in genotype.cells] == [
        11,
        14,
        12,
        9,
        11,
        14,
        14,
        14,
        13,
        17,
        11,
        13,
        10,
        9,
    ]
    with torch.device("meta"):
        network = EvalNetwork(genotype, auxiliary=False)
    norms = [m for m in network.cells.modules() if isinstance(m, nn.BatchNorm2d)]
    assert count_parameters(network) - sum(p.numel() for m in norms for p in m.parameters()) == 3_442_006
    with pytest.raises(ValueError, match="layers must be 14"):
        EvalNetwork(genotype, layers=20)


def small() -> CellGenotypes:
    return CellGenotypes.of_text(
        (
            "skip:0 sep3:0 / sep3:1 / skip:2 / skip:0 sep3:3",
            "skip:1 / / sep3:0 skip:2 / skip:4 sep3:1",
            "sep3:0 sep3:1 / skip:0 / skip:1 / skip:2 skip:3 skip:4",
        )
    )


def test_cells_are_read_back_and_wrong_ones_are_named() -> None:
    genotype = small()
    space = space_of(genotype)
    assert space.from_json(genotype.to_json()) == genotype
    assert space.numbers(genotype) == {"ops": 18, "skips": 11}
    assert "Cell 1 (reduction)" in space.svg(genotype)
    assert space.png(genotype).startswith(b"\x89PNG")
    value = json.loads(genotype.to_json())
    value["cells"][1]["nodes"][2][0][1] = 9
    with pytest.raises(ValueError, match=r"genotype.cells\[1\].nodes: \('sep_conv_3x3', 9\) of state 4"):
        space.from_json(json.dumps(value))
    for wrong in ({"cells": []}, {"cells": [{"nodes": [[]], "concat": [2]}]}, {"cells": [{"nodes": [[[1, 2]]]}]}):
        with pytest.raises(ValueError, match=r"genotype\.cells"):
            space.from_json(json.dumps(wrong))


def test_the_network_and_its_source_code_agree() -> None:
    options = {"C": 4, "num_classes": 3, "layers": 8, "auxiliary": True, "in_channels": 2, "stem": "cifar"}
    network = space_of(small()).discrete(small(), drop_path_prob=0.0, **options).double()
    code = network_source(small(), options, ImageFormat((2, 8, 8), (0.0, 0.0), (1.0, 1.0), False), "w.pt")
    names: dict[str, Any] = {}
    exec(compile(code, "network.py", "exec"), names)
    written = names["Network"]().double()
    written.load_state_dict(network.state_dict())
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    for ours, theirs in zip(network.train()(x), written.train()(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_other_methods_may_search_own_cells() -> None:
    network = SearchNetwork(C=2, num_classes=2, layers=4, in_channels=1, own_cells=True)
    assert list(network.groups) == ["cell0", "cell1", "cell2", "cell3"]
    assert [group.title for group in network.groups.values()][1:3] == ["cell 1 (reduction)", "cell 2 (reduction)"]
    genotype = network.genotype()
    assert isinstance(genotype, CellGenotypes)
    assert [len(node) for cell in genotype.cells for node in cell.nodes] == [2] * 16
    limited = network.random(torch.Generator().manual_seed(0), max_skips=1)
    assert all(sum(op == "skip_connect" for node in limited.cells[i].nodes for op, _ in node) <= 1 for i in (0, 3))
    with torch.no_grad(), network.mixing(network.mixes_of(genotype)):
        assert network(torch.randn(2, 1, 8, 8)).shape == (2, 2)


def test_the_budget_is_met_before_the_last_epoch_whatever_the_deadline() -> None:
    state = tiny_state("gold-nas", epochs=4, method_options={"deadline": 1.0})
    finish(state)
    assert state.epoch == 4
    assert state.method.stopped is not None
    assert state.method.compared == ()
    assert state.method.result(state) == state.method.series[-1].architecture
    with pytest.raises(ValueError, match=r"alpha_warmup must leave two of 4 epochs: .*; got 0\.75"):
        tiny_state("gold-nas", epochs=4, alpha_warmup=0.75)


def test_a_resumed_series_is_that_of_a_whole_search() -> None:
    state = tiny_state("gold-nas", epochs=8, method_options={"stable": 0, "deadline": 0.2})
    finish_epoch(state)
    finish_epoch(state)
    finish_epoch(state)
    other = tiny_state("gold-nas", epochs=8, method_options={"stable": 0, "deadline": 0.2})
    other.load_state_dict(copy.deepcopy(state.state_dict()))
    finish(state)
    finish(other)
    assert state.method.series == other.method.series
    costs = [one.cost for one in state.method.series]
    assert costs == sorted(costs, reverse=True)


def test_networks_of_the_series_are_trained_by_their_numbers(tmp_path: Path) -> None:
    images = tiny_images()
    options = {"stable": 0, "deadline": 0.0}
    found = search(tiny_config(tmp_path / "s", method="gold-nas", layers=3, epochs=4, method_options=options), images)
    listed = json.loads((tmp_path / "s" / "candidates.json").read_text())["candidates"]
    last = load_architecture(f"{tmp_path}/s/candidates.json:{len(listed) - 1}")
    assert last == found.genotype == load_architecture(str(tmp_path / "s"))
    with pytest.raises(ValueError, match=rf"has the architectures 0\.\.{len(listed) - 1}; got 99"):
        load_architecture(f"{tmp_path}/s/candidates.json:99")
    (tmp_path / "candidates.json").write_text('{"candidates": [{"architecture": {"space": "dart"}}]}')
    with pytest.raises(ValueError, match=r"is no list of compared architectures: space must be one of"):
        load_architecture(f"{tmp_path}/candidates.json:0")
    page = (tmp_path / "s" / "report.html").read_text()
    assert "as search networks on the training images" in page
    assert "Cell 2 (reduction)" in page
    config = EvalConfig(
        dataset="custom", out=tmp_path / "e", device="cpu", epochs=1, init_channels=2, layers=5, batch_size=12,
        auxiliary=False, crop_padding=0,
    )  # fmt: skip
    trained = evaluate(last, config, images, images)
    loaded = load(tmp_path / "e", "cpu")
    assert len(loaded.network.cells) == 3
    assert loaded.architecture == last
    x = torch.randn(2, 1, 6, 6)
    with torch.no_grad():
        assert torch.equal(loaded.network.eval()(x), trained.network.eval()(x))
