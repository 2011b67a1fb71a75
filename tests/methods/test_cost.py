"""The cost of an architecture in the loss of the alphas."""

import json
import math
from pathlib import Path

import pytest
import torch
from tiny_method import finish_epoch, tiny_state
from tiny_search import tiny_config, tiny_images

from fastdarts.methods.cost import CostTerm, with_cost
from fastdarts.search import search
from fastdarts.spaces import registry
from fastdarts.spaces.cost import CostTable, multiply_adds, parameters
from fastdarts.spaces.darts.discrete import count_multiply_adds
from fastdarts.spaces.layerwise.discrete import LayerwiseNetwork
from fastdarts.spaces.layerwise.supernet import LayerwiseSupernet


@pytest.mark.parametrize(
    ("form", "weight", "cost", "total"),
    [
        ("multiply", 0.3, 93, 0.343464),
        ("add", 0.1, 93, 1.716250),
        ("add", 0.1, 40, 1.65),
        ("limit", 0.1, 93, 1.716250),
        ("limit", 0.1, 40, 1.7),
    ],
)
def test_forms(form, weight: float, cost: float, total: float) -> None:
    loss, cost = torch.tensor(1.7, dtype=torch.float64), torch.tensor(cost, dtype=torch.float64)
    assert with_cost(loss, cost, form, weight, target=80).item() == pytest.approx(total, abs=5e-7)


def table_of(state) -> CostTable:
    """A cost of 1, 2, 3, ... for the ops of each row."""
    groups = state.network.groups
    rows = {
        name: torch.arange(1.0, group.shape[1] + 1).double().repeat(len(group.ops), 1) for name, group in groups.items()
    }
    return CostTable("ms", {name: group.ops for name, group in groups.items()}, rows, 10.0, {})


CHAIN = {"space": "proxyless", "init_channels": 8, "layers": 2}


def test_the_gradient_of_the_expected_cost() -> None:
    """d E / d alpha_i = p_i (cost_i - E of the row) for a softmax, rows of a chain."""
    state = tiny_state("darts", order=1, **CHAIN)
    network = state.network.double()
    for alpha in network.alphas.values():
        torch.nn.init.normal_(alpha)
    table = table_of(state)
    term = CostTerm(state.method, network, table, "add")
    expected = term.expected(network)
    gradients = torch.autograd.grad(expected, list(network.alphas.values()))
    total = table.constant
    for (name, alpha), gradient in zip(network.alphas.items(), gradients, strict=True):
        p = alpha.detach().softmax(1)
        of_rows = (p * table.rows[name]).sum(1, keepdim=True)
        total += float(of_rows.sum())
        torch.testing.assert_close(gradient, p * (table.rows[name] - of_rows), rtol=0, atol=1e-12)
    assert expected.item() == pytest.approx(total, rel=1e-12)


def test_edges_of_a_cell_count_as_often_as_they_are_kept() -> None:
    """Of n edges that enter a node two are kept; `none` cannot be chosen, so it takes no share."""
    state = tiny_state("darts", order=1)
    table = table_of(state)
    with torch.no_grad():
        for alpha in state.network.alphas.values():
            alpha.zero_()
            alpha[:, 0] = 5  # none
    term = CostTerm(state.method, state.network, table, "add")
    mean_of_ops = sum(range(2, 9)) / 7
    assert term.expected(state.network).item() == pytest.approx(10 + 2 * 4 * 2 * mean_of_ops, rel=1e-6)
    found = state.method.genotype(state.network)
    names = state.network.groups["normal"].ops[0]
    ops = [name for cell in ("normal", "reduce") for node in found.nodes(cell) for name, _ in node]
    assert table.of(state.network, found) == 10 + sum(names.index(name) + 1 for name in ops)


def test_targets_that_cannot_be_met_are_refused() -> None:
    state = tiny_state("darts", order=1, **CHAIN)
    rows = sum(len(group.ops) for group in state.network.groups.values())
    with pytest.raises(ValueError, match=f"cost_target must be at least {10 + rows} ms, the cost of the cheapest ops"):
        CostTerm(state.method, state.network, table_of(state), "limit", target=10.5)
    table = CostTable("ms", table_of(state).ops, {n: r / 100 for n, r in table_of(state).rows.items()}, 0.0, {})
    with pytest.raises(ValueError, match="'multiply' takes logarithms"):
        CostTerm(state.method, state.network, table, "multiply")


@pytest.mark.parametrize("space", ["darts", "proxyless"])
@pytest.mark.parametrize("seed", range(3))
def test_a_larger_weight_finds_a_cheaper_network(space: str, seed: int, tmp_path: Path) -> None:
    fields = {"seed": seed, "arch_lr": 0.3, "epochs": 4, "cost": "flops"}
    if space != "darts":
        fields |= CHAIN | {"layers": 1}
    free, cheap = (
        search(tiny_config(tmp_path / str(weight), cost_weight=weight, **fields), tiny_images()).metrics[-1]
        for weight in (0.0, 30.0)
    )
    assert 0 < cheap["cost"] < free["cost"]
    assert cheap["expected_cost"] < free["expected_cost"]


@pytest.mark.parametrize(
    "method", ["darts", "gdas", "snas", "fairdarts", "p-darts", "pc-darts", "daas", "single-level"]
)
def test_every_method_takes_a_cost(method: str) -> None:
    state = tiny_state(method, cost="params", cost_weight=2.0)
    metrics = finish_epoch(state)
    assert 0 < metrics["expected_cost"] < 1
    assert 0 < metrics["cost"] < 1


def test_the_second_order_takes_a_cost() -> None:
    with_it, without = (tiny_state("darts", order=2, cost=cost, cost_weight=5.0) for cost in ("flops", None))
    for state in (with_it, without):
        state.train_step()
    changes = [
        (a - b).abs().max() for a, b in zip(*(s.network.alphas.values() for s in (with_it, without)), strict=True)
    ]
    assert max(changes) > 0


def test_counted_costs_are_those_of_the_found_network() -> None:
    """A chain's table gives exactly the multiply-adds and weights of every architecture."""
    space = registry.find("mobilenet-small")
    arguments = {"C": 16, "num_classes": 10, "layers": 3, "in_channels": 3, "backend": "reference"}
    network: LayerwiseSupernet = space.supernet(**arguments, **space.arguments())
    with torch.device("meta"):
        shadow = space.supernet(**arguments, **space.arguments())
    tables = multiply_adds(shadow, (1, 3, 32, 32)), parameters(shadow, (1, 3, 32, 32))
    for seed in range(3):
        found = network.random(torch.Generator().manual_seed(seed))
        with torch.device("meta"):
            discrete = LayerwiseNetwork(found, num_classes=10)
        assert tables[0].of(network, found) == pytest.approx(count_multiply_adds(discrete, (3, 32, 32)) / 1e6)
        assert tables[1].of(network, found) == pytest.approx(sum(w.numel() for w in discrete.parameters()) / 1e6)


def test_a_table_is_written_and_read(tmp_path: Path) -> None:
    state = tiny_state("darts", order=1)
    table = table_of(state)
    table.save(tmp_path / "table.json")
    again = CostTable.load(tmp_path / "table.json")
    assert (again.unit, again.ops, again.constant) == (table.unit, table.ops, table.constant)
    assert all(torch.equal(again.rows[name], table.rows[name]) for name in table.rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": {"normal": [[1.0]]}}, "finite number for each of its ops"),
        ({"constant": "many"}, "no table of costs"),
        ({"rows": 3}, "no table of costs"),
        ({"rows": {"normal": [[math.nan] * 8] * 14}, "ops": {"normal": [["none"] * 8] * 14}}, "finite number"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    table_of(tiny_state("darts", order=1)).save(tmp_path / "table.json")
    value = json.loads((tmp_path / "table.json").read_text()) | change
    (tmp_path / "table.json").write_text(json.dumps(value))
    with pytest.raises(ValueError, match=message):
        CostTable.load(tmp_path / "table.json")


def test_a_table_of_another_space_is_refused(tmp_path: Path) -> None:
    table_of(tiny_state("darts", order=1)).save(tmp_path / "table.json")
    with pytest.raises(ValueError, match="rows for the space's"):
        search(tiny_config(tmp_path / "run", cost=str(tmp_path / "table.json"), **CHAIN), tiny_images())
