"""The measurement of latencies, on passes whose time is known; the command on a tiny space."""

import json
from pathlib import Path

import pytest
import torch
from tiny_method import tiny_state
from tiny_search import tiny_config, tiny_images

from fastdarts import cli, latency
from fastdarts.evaluate import EvalConfig, evaluate
from fastdarts.latency import Latencies, measure
from fastdarts.runs import timing
from fastdarts.runs.costs import load_cost
from fastdarts.runs.latency_config import LatencyConfig
from fastdarts.search import search
from fastdarts.spaces.cost import CostTable
from fastdarts.spaces.cost_model import fit, weights_of
from fastdarts.spaces.layerwise.architecture import LayerChoices

CHAIN = {"space": "proxyless", "init_channels": 8, "layers": 2}
TINY = {"space": "mobilenet-small", "dataset": "digits", "init_channels": 4, "layers": 1}


def test_passes_take_turns_and_the_shortest_time_counts(monkeypatch) -> None:
    clock = {"now": 0.0}
    calls: list[str] = []
    cost = {"a": iter([9.0, 9.0, 0.004, 0.005, 0.003, 0.004]), "b": iter([9.0, 9.0] + [0.01] * 4)}

    def run(name: str):
        def call() -> None:
            calls.append(name)
            clock["now"] += next(cost[name])

        return call

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock["now"])
    taken = timing.milliseconds({"a": run("a"), "b": run("b")}, rounds=3)
    assert taken == pytest.approx({"a": 3.0, "b": 10.0})
    assert "".join(calls[6:]) == "ababab"


def test_the_constant_is_what_the_ops_leave_of_whole_networks(monkeypatch) -> None:
    """With exact times of ops, and 7 ms beside them, the other networks are predicted exactly."""

    def exact(passes, rounds: int):
        return {key: 7.0 + sums[key] if isinstance(key, int) else costs[key] for key in passes}

    costs: dict[str, float] = {}
    sums: dict[int, float] = {}

    class Table(CostTable):
        def of(self, network, architecture) -> float:
            ops = super().of(network, architecture)
            sums.setdefault(len(sums), ops)
            return ops

    config = LatencyConfig(**TINY, networks=2)
    space = latency.registry.find(config.space, None, config.space_options)
    with torch.device("meta"):
        network = latency._supernet(space, config)
    found = latency.places(network, (1, 1, 8, 8))
    costs.update({place.key: float(index + 1) for index, (_, place) in enumerate(found)})
    rows = {name: torch.zeros(group.shape, dtype=torch.float64) for name, group in network.groups.items()}
    for (group, row, column), place in found:
        rows[group][row, column] += costs[place.key]
    table = CostTable("ms", latency.names_of(network), rows, 0.0, {})
    on_cpu = latency._supernet(space, config)
    sums.update({i: table.of(on_cpu, a) for i, a in enumerate(latency._architectures(on_cpu, config))})
    monkeypatch.setattr(latency, "milliseconds", exact)
    measured = measure(config)
    assert measured.table.constant == pytest.approx(7.0)
    assert measured.predicted == pytest.approx(measured.measured)
    assert measured.error == pytest.approx(0, abs=1e-12)
    assert all(torch.equal(measured.table.rows[name], rows[name]) for name in rows)


def test_error_and_spread() -> None:
    found = Latencies(CostTable("ms", {}, {}, 0.0, {}), measured=[10.0, 10.0], predicted=[9.0, 12.0])
    assert found.error == pytest.approx(0.15)
    assert found.spread == pytest.approx(0.3 / 2**0.5)


def test_the_command_writes_a_table_that_a_search_takes(tmp_path: Path, capsys) -> None:
    table = tmp_path / "table.json"
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    assert cli.main(["latency", *arguments, "--rounds=3", "--networks=2", f"--out={table}", "-q"]) == 0
    assert "other networks of" in capsys.readouterr().out
    about = json.loads(table.read_text())["about"]
    assert (about["runtime"], about["batch_size"], about["image_size"]) == ("eager", 1, [8, 8])
    fields = {"space": "mobilenet-small", "init_channels": 4, "layers": 1, "cost": str(table)}
    result = search(tiny_config(tmp_path / "run", **fields), tiny_images())
    assert result.metrics[-1]["cost"] > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"runtime": "graph", "device": "cpu"}, "runtime 'graph' needs a CUDA device; got cpu"),
        ({"space": "mobilenet-smal"}, "did you mean"),
        ({"rounds": 1}, "rounds must be at least 3"),
        ({"space_options": {"stride": [1]}}, "did you mean 'strides'"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_measured(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(LatencyConfig(**(TINY | fields)))


def test_onnx_runtime(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    x = torch.randn(1, 3, 6, 6)
    run = timing.runner(torch.nn.Conv2d(3, 4, 3).eval(), x, "onnxruntime")
    assert run()[0].shape == (1, 4, 4, 4)


def test_an_evaluation_sets_the_prediction_beside_the_measurement(tmp_path: Path) -> None:
    table = measure(LatencyConfig(**TINY, networks=2, rounds=3, device="cpu")).table
    table.save(tmp_path / "table.json")
    space = {"space": "mobilenet-small", "layers": 1, "init_channels": 4, "crop_padding": 1}
    found = search(tiny_config(tmp_path / "search", **space, epochs=1), tiny_images()).genotype
    settings = {"dataset": "custom", "epochs": 1, "batch_size": 16, "device": "cpu", "cutout": 0, "crop_padding": 1}
    settings |= {"space": "mobilenet-small", "init_channels": 4, "out": tmp_path / "train"}
    config = EvalConfig(**settings, cost=tmp_path / "table.json")
    result = evaluate(found, config, tiny_images(), tiny_images())
    assert result.cost.predicted == pytest.approx(float(table.constant) + ops_of(table, found.layers))
    assert 0 < result.cost.measured < 1000
    assert f"cost: predicted {result.cost.predicted:.3g} ms, measured {result.cost.measured:.3g} ms" in str(result.cost)
    written = json.loads((tmp_path / "train" / "result.json").read_text())["cost"]
    assert written["predicted"] == result.cost.predicted
    page = (tmp_path / "train" / "report.html").read_text()
    assert "predicted cost" in page
    assert "measured cost" in page
    with pytest.raises(ValueError, match="rows for the space's"):
        evaluate(LayerChoices("proxyless", ("k3 e3",) * 21), config, tiny_images(), tiny_images())


def ops_of(table: CostTable, layers: tuple[str, ...]) -> float:
    """The sum of a table's numbers for the choices of a chain without optional layers."""
    (name,) = table.rows
    return sum(
        float(row[ops.index(choice)])
        for row, ops, choice in zip(table.rows[name], table.ops[name], layers, strict=True)
    )


def test_a_regressor_learns_what_a_sum_of_ops_does_not_know(tmp_path: Path) -> None:
    """A cost of ops times the number of one kind of them: held-out architectures within 10 %."""
    network = tiny_state("random", **CHAIN).network
    groups, generator = network.groups, torch.Generator().manual_seed(0)
    drawn = [network.random(generator) for _ in range(400)]

    def cost(layers: tuple[str, ...]) -> float:
        return 5 + sum(float(name[-1]) for name in layers if name != "skip") * (1 + 0.2 * layers.count("k7 e6"))

    weights = [weights_of(network.mixes_of(one), groups) for one in drawn]
    costs = [cost(one.layers) for one in drawn]
    model = fit({name: group.ops for name, group in groups.items()}, weights[80:], costs[80:], "ms", seed=0)
    errors = [abs(model.of(network, one) / true - 1) for one, true in zip(drawn[:80], costs[:80], strict=True)]
    assert sum(errors) / len(errors) < 0.1
    model.save(tmp_path / "model.json")
    again = load_cost(tmp_path / "model.json")
    assert again.of(network, drawn[0]) == pytest.approx(model.of(network, drawn[0]), rel=1e-12)
    assert again.unit == "ms"
    (tmp_path / "model.json").write_text('{"regressor": [[[1.0]]], "ops": {}}')
    with pytest.raises(ValueError, match="is no regressor of costs"):
        load_cost(tmp_path / "model.json")


@pytest.mark.parametrize("space", ["darts", "mobilenet-small"])
def test_latency_darts_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], space: str) -> None:
    """Measured random networks, a regressor, a search with it in the loss of its alphas."""
    sizes = ["--space", space, "--dataset", "digits", "--init-channels", "4", "--layers", "1", "--device", "cpu"]
    table = tmp_path / "model.json"
    assert cli.main(["latency", *sizes, "--samples", "20", "--rounds", "3", "--out", str(table)]) == 0
    assert "error on 4 other networks" in capsys.readouterr().out
    fields = {"space": space, "layers": 1, "init_channels": 4, "epochs": 1, "cost": str(table), "cost_weight": 1.0}
    found = search(tiny_config(tmp_path / "run", method="darts", **fields), tiny_images())
    assert found.metrics[-1]["cost"] > 0
    assert found.metrics[-1]["expected_cost"] > 0
    with pytest.raises(ValueError, match="cost_target must be at least"):
        search(tiny_config(tmp_path / "no", method="darts", **fields, cost_target=1e-6), tiny_images())
    with pytest.raises(ValueError, match="samples must be 0, or at least 20"):
        LatencyConfig(samples=3)
