"""Recurrent cells: text forms, derivation, networks, gates, and the search cell against the found one."""

import json

import pytest
import torch
from torch import nn

from fastdarts.ops.cell_plan import CellPlan, Term
from fastdarts.spaces.group import Choice
from fastdarts.spaces.recurrent.architecture import PRIMITIVES, PUBLISHED, RecurrentCell
from fastdarts.spaces.recurrent.cell import CellMasks, RecurrentCore
from fastdarts.spaces.recurrent.discrete import RecurrentNetwork
from fastdarts.spaces.recurrent.space import Recurrent
from fastdarts.spaces.recurrent.supernet import ENDS, RecurrentSearchNetwork
from fastdarts.spaces.registry import load_architecture, read_architecture

V2 = PUBLISHED["RNN_DARTS_V2"]


def count(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def test_published_sizes() -> None:
    """The totals of the original code: the search on Penn Treebank, and evaluations there and on WikiText-2."""
    with torch.device("meta"):
        search = RecurrentSearchNetwork(10_000, 300)
        assert count(search) == 4_810_000
        assert count(RecurrentNetwork(V2, 10_000, 850)) == 22_960_000
        assert count(RecurrentNetwork(PUBLISHED["RNN_ENAS"], 10_000, 850)) == 27_295_000
        assert count(RecurrentNetwork(V2, 33_278, 700)) == 33_127_878
    assert search.alphas["cell"].shape == (36, 5)
    assert {"encoder.weight", "decoder.weight", "decoder.bias", "rnns.0._W0", "rnns.0._Ws.7"} <= set(
        search.state_dict()
    )


@pytest.mark.parametrize("cell", PUBLISHED.values(), ids=PUBLISHED)
def test_text_forms(cell: RecurrentCell) -> None:
    original = f"Genotype(recurrent={list(cell.nodes)}, concat={list(cell.states)})"
    assert RecurrentCell.parse(str(cell)) == load_architecture(str(cell)) == cell
    assert read_architecture(cell.to_json()) == load_architecture(original) == cell
    assert "Recurrent cell" in Recurrent().svg(cell)


def test_the_original_range_is_read() -> None:
    text = f"Genotype(recurrent={list(V2.nodes)}, concat=range(1, 9))"
    assert load_architecture(text) == V2 == load_architecture("RNN_DARTS_V2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("relu-0 sine-1", r"recurrent\[1\] must be one of tanh, relu"),
        ("relu-1", r"recurrent\[0\] must have a predecessor from 0 to 0; got 1"),
        ("relu-0 : 2", "concat must be distinct states from 0 to 1"),
        ("relu-0 : 1 1", "concat must be distinct states"),
        ("relu-0 tanh", "must be written as"),
        ("Genotype(recurrent=__import__('os'), concat=[1])", "must be written as|malformed"),
    ],
)
def test_wrong_cells_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecurrentCell.parse(text)


def test_derivation_takes_the_strongest_activation_ties_to_the_first() -> None:
    network = RecurrentSearchNetwork(5, 4)
    scores = torch.full((36, 5), 0.2)
    assert network.derive({"cell": scores}).nodes == (("tanh", 0),) * 8
    scores[:, 0] = 0.9  # `none` does not compete
    scores[1, 4], scores[2, 2] = 0.5, 0.6  # rows 1 and 2 enter node 1
    assert network.derive({"cell": scores}).nodes[1] == ("relu", 1)
    ranked = Choice(ranking=lambda group, values: -values)
    assert network.derive({"cell": scores}, ranked).nodes[1] == ("tanh", 0)


def test_rows_are_grouped_by_target() -> None:
    assert ENDS[:6] == ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    group = Recurrent().groups["cell"]
    assert group.shape == (36, 5)
    assert group.ops[0] == PRIMITIVES


@pytest.mark.parametrize("backend", ["reference", "fused"])
def test_a_one_hot_search_cell_is_the_found_cell(backend: str) -> None:
    torch.set_default_dtype(torch.float64)
    search = RecurrentSearchNetwork(11, 6, backend)
    found = RecurrentNetwork(V2, 11, 6, backend)
    found.load_state_dict({name: value for name, value in search.state_dict().items() if ".bn." not in name})
    search.rnns[0].bn = nn.Identity()
    words = torch.randint(11, (3, 4))
    mixes = search.mixes_of(V2)
    assert mixes["cell"].weights[:, 0].sum() == 28  # unused rows put their weight on `none`
    with search.mixing({"cell": mixes["cell"]._replace(active=None)}):
        weights, plan = search.relaxed()
        x = torch.nn.functional.embedding(words, search.encoder.weight)
        plan = CellPlan(plan.nodes, plan.outputs, norm=False)
        ours = search.rnns[0](x, torch.zeros(4, 6), None, weights, plan)
    torch.testing.assert_close(ours, found(words), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("code", "expected"), [("tanh", 0.5), ("relu", 0.5), ("identity", 0.5), ("sigmoid", 0.5 + 0.25 / 3.0)]
)
def test_a_gate_without_weights_is_half_open(code: str, expected: float) -> None:
    """With W_i = 0 the gate is 1/2 and the candidate f(0): half the state, and a quarter more for the sigmoid."""
    core = RecurrentCore(2, 1, norm=False).double()
    for weight in core.parameters():
        weight.data.zero_()
    hidden = torch.full((1, 2), 6.0, dtype=torch.float64)  # s_0 = 3
    names = ("none", "tanh", "relu", "sigmoid", "identity")
    plan = CellPlan(((Term(0, names.index(code), 0),),), (1,), norm=False)
    read = core(torch.zeros(1, 1, 2).double(), hidden, None, torch.ones(1).double(), plan)
    torch.testing.assert_close(read, torch.full_like(read, 3 * expected), rtol=1e-15, atol=0)


def test_none_gets_a_gradient_though_nothing_is_computed() -> None:
    network = RecurrentSearchNetwork(7, 5)
    with torch.no_grad():
        network.alphas["cell"].zero_()
    weights, _ = network.relaxed()
    torch.testing.assert_close(weights, torch.full_like(weights, 0.2))
    loss = network.nll(network(torch.randint(7, (4, 3))), torch.randint(7, (4, 3)))
    (gradient,) = torch.autograd.grad(loss, network.arch_parameters())
    assert (gradient[:, 0] != 0).all()


def test_all_steps_share_the_masks() -> None:
    """A word's coordinates that are masked never matter, at any step."""
    core = RecurrentCore(4, 2, norm=False)
    plan = CellPlan(((Term(0, 1, 0),), (Term(1, 2, 1),)), (1, 2), norm=False)
    x, hidden = torch.randn(3, 2, 4), torch.randn(2, 4)
    masks = CellMasks(torch.tensor([[1.0, 0, 2, 0]]).expand(2, 4), torch.ones(2, 4))
    other = x.clone()
    other[..., 1] += 1
    read = core(x, hidden, masks, torch.ones(2), plan)
    assert torch.equal(read, core(other, hidden, masks, torch.ones(2), plan))
    other[..., 2] += 1
    assert not torch.equal(read, core(other, hidden, masks, torch.ones(2), plan))


def test_evaluation_mode_does_not_mix_columns() -> None:
    network = RecurrentSearchNetwork(9, 5, "reference").eval()
    words = torch.randint(9, (4, 6))
    whole = network(words)
    torch.testing.assert_close(whole[:, 2:3], network(words[:, 2:3]), rtol=1e-5, atol=1e-6)


def test_numbers_and_json() -> None:
    assert Recurrent().numbers(PUBLISHED["RNN_DARTS_V1"]) == {"depth": 6}
    assert json.loads(V2.to_json())["space"] == "recurrent"
    with pytest.raises(ValueError, match="primitives must be among none, tanh"):
        Recurrent(("none", "swish"))
