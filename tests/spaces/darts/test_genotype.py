"""Which cell the alphas stand for; genotypes as JSON; what is said of a wrong one."""

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastdarts.primitives.table import PRIMITIVES
from fastdarts.spaces.darts.genotype import DARTS_V1, DARTS_V2, PUBLISHED, Genotype, derive_cell, edges_of
from fastdarts.spaces.darts.supernet import SearchNetwork

NONE, MAX, AVG, SKIP, SEP3, SEP5, DIL3, DIL5 = range(8)


def cell_of(entries: dict[tuple[int, int], float], steps: int = 4) -> list[tuple[str, int]]:
    """The cell of raw alphas that are 0 but for `entries`, (edge, op) -> alpha."""
    alphas = torch.zeros(len(edges_of(steps)), 8, dtype=torch.float64)
    for (edge, op), value in entries.items():
        alphas[edge, op] = value
    return derive_cell(alphas.softmax(-1), steps, PRIMITIVES)


def test_edges_in_the_order_of_the_alphas() -> None:
    assert edges_of(3) == [(0, 2), (1, 2), (0, 3), (1, 3), (2, 3), (0, 4), (1, 4), (2, 4), (3, 4)]
    assert len(edges_of(4)) == 14


def test_ties_go_to_the_smaller_index() -> None:
    assert cell_of({}) == [("max_pool_3x3", 0), ("max_pool_3x3", 1)] * 4


def test_a_hand_made_cell() -> None:
    # rows of the nodes: 0-1, 2-4, 5-8, 9-13
    strong = {(1, SEP5): 2.0, (0, SKIP): 1.0, (4, DIL3): 1.0, (3, AVG): 3.0}
    strong |= {(6, SEP3): 1.0, (8, DIL5): 1.5, (13, SEP3): 2.0, (11, SKIP): 2.5}
    assert cell_of(strong) == [
        ("sep_conv_5x5", 1),
        ("skip_connect", 0),
        ("avg_pool_3x3", 1),
        ("dil_conv_3x3", 2),
        ("dil_conv_5x5", 3),
        ("sep_conv_3x3", 1),
        ("skip_connect", 2),
        ("sep_conv_3x3", 4),
    ]


def test_none_is_never_chosen_but_weakens_its_edge() -> None:
    demoted = cell_of({(3, SEP3): 1.0, (3, NONE): 1.0, (4, SEP5): 0.9})
    assert demoted[2:4] == [("sep_conv_5x5", 2), ("sep_conv_3x3", 1)]  # without `none` row 3 would lead with its 1.0
    assert cell_of({(3, SEP3): 1.0, (4, SEP5): 0.9})[2:4] == [("sep_conv_3x3", 1), ("sep_conv_5x5", 2)]
    # +1 to `none` alone: the edge loses its tie and falls out
    assert cell_of({(0, NONE): 1.0, (2, NONE): 1.0})[:4] == [
        ("max_pool_3x3", 1),
        ("max_pool_3x3", 0),
        ("max_pool_3x3", 1),
        ("max_pool_3x3", 2),
    ]


def test_equal_ops_of_one_edge_and_equal_edges() -> None:
    # Two equal ops share row 5's softmax, so rows 7 and 8 beat it; of these equals 7 comes first.
    ops = {(5, SEP5): 1.0, (5, DIL3): 1.0, (7, DIL5): 1.0, (8, SKIP): 1.0}
    assert cell_of(ops)[4:6] == [("dil_conv_5x5", 2), ("skip_connect", 3)]
    assert cell_of(ops | {(5, SEP5): 2.0, (5, DIL3): 2.0})[4:6] == [("sep_conv_5x5", 0), ("dil_conv_5x5", 2)]


def test_other_primitives_and_more_edges_a_node() -> None:
    weights = torch.tensor([[0.1, 0.9, 0.0], [0.2, 0.3, 0.5], [0.3, 0.3, 0.4], [0.1, 0.1, 0.8], [0.5, 0.4, 0.1]])
    names = ["sep_conv_7x7", "none", "conv_7x1_1x7"]
    assert derive_cell(weights, 2, names) == [
        ("conv_7x1_1x7", 1),
        ("sep_conv_7x7", 0),
        ("conv_7x1_1x7", 1),
        ("sep_conv_7x7", 2),
    ]
    assert len(derive_cell(weights, 2, names, edges_per_node=3)) == 5


@given(st.integers(1, 4), st.data())
def test_kept_edges_are_the_strongest(steps: int, data: st.DataObject) -> None:
    level = st.integers(0, 4)  # few levels: many ties
    rows = [[data.draw(level) / 8 for _ in range(8)] for _ in edges_of(steps)]
    pairs = derive_cell(torch.tensor(rows), steps, PRIMITIVES)
    assert len(pairs) == 2 * steps
    first = 0
    for node in range(steps):
        mine = rows[first : first + 2 + node]
        first += 2 + node
        strengths = [max(row[1:]) for row in mine]
        chosen = pairs[2 * node : 2 * node + 2]
        order = sorted(range(2 + node), key=lambda i: (-strengths[i], i))
        assert [source for _, source in chosen] == order[:2]
        for name, source in chosen:
            assert PRIMITIVES.index(name) == 1 + mine[source][1:].index(strengths[source])


def test_wrong_weights() -> None:
    message = "weights must be [14 edges, 8 ops] for 4 nodes; got (14, 7)"
    with pytest.raises(ValueError, match=re.escape(message)):
        derive_cell(torch.zeros(14, 7), 4, PRIMITIVES)
    with pytest.raises(ValueError, match="primitives holds nothing but 'none'"):
        derive_cell(torch.zeros(14, 1), 4, ["none"])


def test_the_networks_genotype() -> None:
    network = SearchNetwork(C=2, layers=2, steps=3, multiplier=2)
    with torch.no_grad():
        for alpha, op in zip(network.arch_parameters(), (SEP3, SKIP), strict=True):
            alpha.zero_()
            alpha[:, op] = 1
    genotype = network.genotype()
    assert genotype.normal == [("sep_conv_3x3", 0), ("sep_conv_3x3", 1)] * 3
    assert genotype.reduce == [("skip_connect", 0), ("skip_connect", 1)] * 3
    assert genotype.normal_concat == genotype.reduce_concat == [3, 4]


def test_published_cells() -> None:
    sep, skip, pool = "sep_conv_3x3", "skip_connect", "max_pool_3x3"
    v2 = [(sep, 0), (sep, 1), (sep, 0), (sep, 1), (sep, 1), (skip, 0), (skip, 0), ("dil_conv_3x3", 2)]
    assert DARTS_V2.normal == v2
    assert DARTS_V2.reduce == [(pool, 0), (pool, 1), (skip, 2), (pool, 1), (pool, 0), (skip, 2), (skip, 2), (pool, 1)]
    v1 = [(sep, 1), (sep, 0), (skip, 0), (sep, 1), (skip, 0), (sep, 1), (sep, 0), (skip, 2)]
    assert DARTS_V1.normal == v1
    last = [(skip, 2), ("avg_pool_3x3", 0)]
    assert DARTS_V1.reduce == [(pool, 0), (pool, 1), (skip, 2), (pool, 0), (pool, 0), (skip, 2), *last]
    assert all(g.normal_concat == g.reduce_concat == [2, 3, 4, 5] for g in (DARTS_V1, DARTS_V2))


def test_it_is_the_originals_named_tuple() -> None:
    normal, normal_concat, reduce, reduce_concat = DARTS_V2
    assert (normal, normal_concat, reduce, reduce_concat) == DARTS_V2
    assert DARTS_V2._fields == ("normal", "normal_concat", "reduce", "reduce_concat")
    assert DARTS_V2.nodes("normal")[1] == [("sep_conv_3x3", 0), ("sep_conv_3x3", 1)]


def test_json_there_and_back(tmp_path: Path) -> None:
    for name, genotype in PUBLISHED.items():
        assert Genotype.from_json(genotype.to_json()) == genotype
        assert Genotype.load(name) is genotype
    nested = Genotype([[("none", 0)], [("skip_connect", 1)] * 3], [2, 3], [[("sep_conv_7x7", 0)]], [2])
    assert Genotype.from_json(nested.to_json()) == nested
    file = tmp_path / "genotype.json"
    file.write_text(nested.to_json())
    assert Genotype.load(file) == Genotype.load(str(file)) == nested


PAIRS = [["skip_connect", 0], ["skip_connect", 1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normal": [["skip", 0], ["skip_connect", 1]]}, "unknown primitive 'skip'; allowed are none,"),
        ({"normal": PAIRS[:1]}, "genotype.normal must hold two (primitive, predecessor) pairs a node"),
        ({"normal": []}, "genotype.normal must hold two (primitive, predecessor) pairs a node"),
        ({"normal": [[], []]}, "genotype.normal must hold two (primitive, predecessor) pairs a node"),
        ({"normal": [PAIRS, []], "normal_concat": [2, 3]}, "normal_concat must name states that have ops; got [2, 3]"),
        (
            {"normal": [PAIRS, [], [["skip_connect", 3]]]},
            "('skip_connect', 3) of state 4 has a predecessor without ops",
        ),
        ({"reduce": [["skip_connect", 0], ["skip_connect", 2]]}, "of state 2 must have a predecessor in 0..1"),
        ({"reduce": [["skip_connect", 0], ["skip_connect", -1]]}, "('skip_connect', -1) of state 2"),
        ({"reduce": "skip_connect"}, "genotype.reduce must be a list of [primitive, predecessor] pairs"),
        ({"reduce": [["skip_connect", 0, 1], ["skip_connect", 1]]}, "genotype.reduce must be a list of"),
        ({"reduce": [["skip_connect", True], ["skip_connect", 1]]}, "genotype.reduce must be a list of"),
        ({"normal": [["skip_connect", 0.0], ["skip_connect", 1]]}, "genotype.normal must be a list of"),
        ({"normal": None}, "genotype.normal must be a list of"),
        ({"normal_concat": [3]}, "genotype.normal_concat must name distinct states of 0..2; got [3]"),
        ({"normal_concat": [2, 2]}, "genotype.normal_concat must name distinct states of 0..2; got [2, 2]"),
        ({"reduce_concat": []}, "genotype.reduce_concat must name distinct states of 0..2; got []"),
        ({"reduce_concat": 2}, "genotype.reduce_concat must be a list of state numbers; got 2"),
        ({"reduce_concat": ["2"]}, "genotype.reduce_concat must be a list of state numbers; got ['2']"),
    ],
)
def test_wrong_json(change: dict[str, object], message: str) -> None:
    good = {"normal": PAIRS, "normal_concat": [2], "reduce": PAIRS, "reduce_concat": [2]}
    Genotype.from_json(json.dumps(good))
    with pytest.raises(ValueError, match=re.escape(message)):
        Genotype.from_json(json.dumps(good | change))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "genotype is not JSON"),
        (
            "[1, 2]",
            "genotype must be a JSON object with keys normal, normal_concat, reduce, reduce_concat; got '[1, 2]'",
        ),
        ('{"normal": []}', "genotype must be a JSON object with keys"),
    ],
)
def test_what_is_no_genotype(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Genotype.from_json(text)
    file = tmp_path / "broken.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"{file}: {message}")):  # and which file it was
        Genotype.load(file)


def test_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"genotype 'DARTS_V3' is neither a published name .*did you mean 'DARTS_V"):
        Genotype.load("DARTS_V3")
    with pytest.raises(ValueError, match=r"genotype: there is no file or run.s folder runs/none"):
        Genotype.load("runs/none")
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=re.escape(str(binary))):
        Genotype.load(binary)
