"""An auxiliary skip connection with weight 1 on every edge, which found cells keep."""

from pathlib import Path

import pytest
import torch
from tiny_method import finish, tiny_state
from tiny_search import tiny_config, tiny_images

from fastdarts.mixed.mix import Mix
from fastdarts.search import search
from fastdarts.spaces import registry
from fastdarts.spaces.darts.discrete import EvalNetwork, count_parameters
from fastdarts.spaces.darts.genotype import DARTS_V2, Genotype
from fastdarts.spaces.darts.source import ImageFormat, network_source
from fastdarts.spaces.darts.supernet import SearchNetwork

OPTIONS = {"auxiliary_skip": True}
TINY = {"C": 4, "num_classes": 3, "layers": 3, "in_channels": 1}


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_nodes_of_edges_without_ops_add_up_their_inputs(backend: str) -> None:
    torch.set_default_dtype(torch.float64)
    network = SearchNetwork(**TINY, auxiliary_skip=True, backend=backend).eval()
    none = torch.zeros(14, 8)
    none[:, network.primitives.index("none")] = 1
    seen = []
    network.cells[0].register_forward_hook(lambda cell, args, out: seen.append((args, out)))
    with network.mixing({"normal": Mix(none), "reduce": Mix(none)}):
        network(torch.randn(2, 1, 8, 8))
    (args, out), cell = seen[0], network.cells[0]
    states = [cell.preprocess0(args[0]), cell.preprocess1(args[1])]
    for _ in range(4):
        states.append(sum(states[1:], start=states[0]))
    torch.testing.assert_close(out, torch.cat(states[2:], 1), rtol=1e-12, atol=1e-12)


def test_an_edge_that_is_removed_has_no_auxiliary_skip() -> None:
    torch.set_default_dtype(torch.float64)
    network = SearchNetwork(**TINY, auxiliary_skip=True).eval()
    found = network.genotype()
    x, mixes = torch.randn(2, 1, 8, 8), network.mixes_of(found)
    rows = {name: [bool(row) for row in mix.active] for name, mix in mixes.items()}
    assert [sum(kept) for kept in rows.values()] == [8, 8]
    narrow = {name: Mix(mix.weights[:, :8], [row[:1] for row in mix.active]) for name, mix in mixes.items()}
    with network.mixing(mixes):
        expected = network(x)
    with network.mixing(narrow):
        torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12)


def test_a_genotype_tells_that_its_edges_have_one() -> None:
    kept = DARTS_V2.with_auxiliary_skip()
    assert kept.nodes("reduce")[0] == [*DARTS_V2.nodes("reduce")[0], ("skip_connect", 0), ("skip_connect", 1)]
    assert kept.auxiliary_skip
    assert not DARTS_V2.auxiliary_skip
    assert Genotype.from_json(kept.to_json()) == kept
    assert kept.without_auxiliary_skip() == DARTS_V2
    space = registry.find("darts")
    assert space.numbers(kept) == space.numbers(DARTS_V2)


def test_the_found_network_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdarts.report.alphas.draw_alphas", lambda path: None)  # takes longer than the search
    monkeypatch.setattr("fastdarts.report.run_report.write_report", lambda out: None)
    found = search(tiny_config(tmp_path, space_options=OPTIONS, layers=3, epochs=1), tiny_images()).genotype
    assert registry.load_architecture(str(tmp_path)) == found
    assert found.auxiliary_skip
    assert [len(node) for node in found.nodes("normal")] == [4] * 4
    sizes = {"C": 4, "layers": 3, "num_classes": 3, "in_channels": 1, "auxiliary": False}
    network, without = EvalNetwork(found, **sizes), EvalNetwork(found.without_auxiliary_skip(), **sizes)
    # Skips of stride 2 are reductions: two convolutions C -> C/2 and a batch norm of C. C is 8 and 16 in the two cells.
    strided = sum(source < 2 for node in found.without_auxiliary_skip().nodes("reduce") for _, source in node)
    assert count_parameters(network) - count_parameters(without) == strided * sum(C * C + 2 * C for C in (8, 16))
    code = network_source(found, sizes | {"stem": "cifar"}, ImageFormat((1, 8, 8), (0.5,), (0.5,), False), "w.pt")
    module: dict = {}
    exec(code, module)
    exported = module["Network"]().eval()
    exported.load_state_dict(network.state_dict())
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(exported(x), network.eval()((x - 0.5) / 0.5), rtol=1e-4, atol=1e-5)
    assert registry.find("darts").svg(found).count("skip_connect") >= 16


@pytest.mark.parametrize(
    "method",
    ["darts-plus", "gdas", "sgas", "drnas-progressive", "darts-minus", "p-darts", "pc-darts", "snas", "random"],
)
def test_methods_search_with_it(method: str) -> None:
    state = tiny_state(method, space_options=OPTIONS, epochs=3, order=1)
    finish(state)
    assert state.method.stopped is None  # the rule of DARTS+ does not count auxiliary skips
    found = state.method.result(state)
    assert found.auxiliary_skip
    for name, mix in state.network.mixes_of(found).items():
        assert torch.equal(mix.weights[:, -1] > 0, mix.weights[:, : state.network.groups[name].shape[1]].sum(1) > 0)
