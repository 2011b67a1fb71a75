"""FairDARTS: sigmoids, the zero-one loss, thresholds, cells with fewer nodes."""

import pytest
import torch
from tiny_method import network_of, paper_method, paper_size

from fastdarts.spaces.darts.discrete import EvalNetwork, count_parameters
from fastdarts.spaces.darts.genotype import Genotype

SHORT = {
    "mp": "max_pool_3x3", "ap": "avg_pool_3x3", "skip": "skip_connect", "sep3": "sep_conv_3x3", "sep5": "sep_conv_5x5",
    "dil3": "dil_conv_3x3", "dil5": "dil_conv_5x5",
}  # fmt: skip


def published(normal: str, reduce: str) -> Genotype:
    """From the paper's triples, op target<-source."""
    cells = []
    for text in (normal, reduce):
        nodes: list[list[tuple[str, int]]] = [[], [], [], []]
        for triple in text.split(", "):
            op, ends = triple.split()
            target, source = map(int, ends.split("<-"))
            nodes[target - 2].append((SHORT[op], source))
        cells += [nodes, [state for state, node in enumerate(nodes, start=2) if node]]
    return Genotype(*cells).validated()


@pytest.mark.parametrize(
    ("normal", "reduce", "weights"),
    [
        (
            "sep3 2<-0, sep5 2<-1, mp 4<-0, sep3 5<-0",
            "mp 2<-0, ap 2<-1, ap 3<-0, dil5 3<-1, ap 4<-0, sep5 4<-1, skip 5<-0, skip 5<-1",
            2_360_782,
        ),
        (
            "sep3 2<-0, sep3 2<-1, sep3 3<-1, dil3 4<-0, sep5 4<-1, dil5 5<-1",
            "skip 2<-0, dil3 2<-1, skip 3<-0, dil3 3<-1, mp 4<-0, sep3 4<-1, skip 5<-2, mp 5<-0",
            3_407_878,
        ),
        (
            "sep3 2<-0, sep5 2<-1, dil3 3<-1, mp 3<-0, dil3 4<-0, dil3 4<-1, sep3 5<-0, dil5 5<-1",
            "mp 2<-0, sep5 2<-1, ap 3<-0, dil5 3<-2, dil3 4<-3, ap 4<-0, ap 5<-0, skip 5<-3",
            3_365_542,
        ),
    ],
)
def test_published_cells(normal, reduce, weights):
    with torch.device("meta"):
        network = EvalNetwork(published(normal, reduce), C=36, layers=20)
    assert count_parameters(network) == weights


@pytest.fixture
def method():
    return paper_method("fairdarts")


def test_the_search_network(method):
    assert paper_size(method) == 1_930_618
    network = network_of(method)
    assert {group: tuple(a.shape) for group, a in network.alphas.items()} == {"normal": (14, 7), "reduce": (14, 7)}
    assert all((mix.weights == 0.5).all() for mix in network.op_weights().values())
    with torch.no_grad():
        network.alphas_normal[:, 2] += 1  # one op's gain is no other's loss
    weights = network.op_weights()["normal"].weights
    assert (weights[:, [0, 1, 3, 4, 5, 6]] == 0.5).all()


@pytest.mark.parametrize(
    ("alphas", "form", "loss"), [(0.0, "l2", 0.0), (50.0, "l2", -0.25), (-50.0, "l2", -0.25), (50.0, "l1", -0.5)]
)
def test_zero_one_loss(alphas, form, loss):
    method = paper_method("fairdarts", method_options={"form": form})
    network = network_of(method)
    with torch.no_grad():
        for alpha in network.alphas.values():
            alpha.fill_(alphas)
    value = method.zero_one_loss(network)
    assert float(value) == pytest.approx(loss, abs=1e-9)
    assert float(method.penalty(network)) == pytest.approx(10 * loss, abs=1e-9)
    if alphas == 0:
        assert not torch.autograd.grad(value, list(network.alphas.values()))[0].any()


def test_zero_one_loss_of_a_mixture(method):
    network = network_of(method)
    with torch.no_grad():
        network.alphas_normal.fill_(torch.logit(torch.tensor(0.9, dtype=torch.float64)))
    assert float(method.zero_one_loss(network)) == pytest.approx(-0.08, abs=1e-9)


def derived(sigmoids: dict[int, list[float]], derivation: str) -> Genotype:
    """The cells of an all-low normal cell but for some edges' first ops; the reduction cell is all high."""
    method = paper_method("fairdarts", method_options={"derivation": derivation})
    network = network_of(method)
    scores = {group: torch.full((14, 7), value) for group, value in (("normal", 0.1), ("reduce", 0.99))}
    for edge, values in sigmoids.items():
        scores["normal"][edge, : len(values)] = torch.tensor(values)
    return network.derive(scores, method.choice)


def test_sparse_derivation():
    genotype = derived({0: [0.9, 0.84], 1: [0.84, 0.8], 9: [0.9], 10: [0.95], 11: [0.96, 0.97]}, "sparse")
    assert genotype.normal[:2] == [[("max_pool_3x3", 0)], []]
    assert genotype.normal[3] == [("avg_pool_3x3", 2), ("max_pool_3x3", 1)]  # never more than two edges
    assert genotype.normal_concat == [2, 5]
    assert len(genotype.nodes("reduce")) == 4


def test_edge_derivation_keeps_two_ops_an_edge():
    genotype = derived({0: [0.9, 0.95, 0.86], 9: [0.9], 10: [0.95], 11: [0.96]}, "edge")
    assert genotype.normal[0] == [("avg_pool_3x3", 0), ("max_pool_3x3", 0)]
    assert len(genotype.normal[3]) == 3


def test_a_node_without_sources_vanishes():
    genotype = derived({0: [0.9], 8: [0.9]}, "edge")  # 0 -> 2, and 3 -> 4 where nothing makes 3
    assert genotype.normal == [[("max_pool_3x3", 0)], [], [], []]
    assert genotype.normal_concat == [2]
    network = EvalNetwork(genotype, C=4, layers=3, auxiliary=False).eval()
    assert network.cells[0].out_channels == 4
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 10)


def test_a_cell_below_the_threshold_is_derived_as_darts():
    genotype = derived({}, "sparse")
    assert len(genotype.normal) == 8
    assert genotype.normal_concat == [2, 3, 4, 5]
