"""The measurement of latencies, on passes whose time is known; the command on a tiny space."""

import json
from pathlib import Path

import pytest
import torch
from tiny_search import tiny_config, tiny_images

from fastdarts import cli, latency
from fastdarts.latency import Latencies, measure
from fastdarts.runs import timing
from fastdarts.runs.latency_config import LatencyConfig
from fastdarts.search import search
from fastdarts.spaces.cost import CostTable

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
