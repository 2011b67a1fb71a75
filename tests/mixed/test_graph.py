"""Nodes of mixed edges against the sums written out, in float64: values, gradients, draws."""

from collections.abc import Sequence

import formulas
import pytest
import torch
from torch import Tensor, nn

from fastdarts.mixed.graph import nodes_of, rows_by_target
from fastdarts.mixed.mix import Mix
from fastdarts.mixed.mixed_op import MixedOp, read_fused
from fastdarts.spaces.darts.genotype import edges_of

N, C = 4, 8
DROPPED = 0.4  # probability that an edge drops a sample
ONE_INPUT = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
GRAPHS = {
    "two inputs": (2, edges_of(2), ("none", "skip_connect", "max_pool_3x3", "sep_conv_3x3", "dil_conv_3x3")),
    "one input": (1, ONE_INPUT, ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "bare_avg_pool_3x3")),
    "not all pairs": (2, [(0, 2), (1, 2), (0, 3), (2, 3), (3, 4)], ("skip_connect", "sep_conv_3x3")),
}


class Graph:
    """Edges, inputs and op weights of a graph, all random, and what `nodes_of` makes of them."""

    def __init__(self, name: str, backend: str, K: int = 1) -> None:
        inputs, self.ends, self.names = GRAPHS[name]
        self.K = K
        self.edges = [MixedOp(C // K, 1, self.names, backend).double() for _ in self.ends]
        self.inputs = [torch.randn(N, C, 5, 6, dtype=torch.float64, requires_grad=True) for _ in range(inputs)]
        self.weights = torch.rand(len(self.ends), len(self.names), dtype=torch.float64, requires_grad=True)

    def one_an_edge(self, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(len(self.ends), dtype=torch.float64)).requires_grad_()

    def nodes(self, mix: Mix) -> Tensor:
        read = read_fused(self.edges, self.inputs[0], mix.active)
        return nodes_of(self.edges, read, self.ends, self.inputs, mix, self.K)

    def formula(self, mix: Mix, stays: Sequence[Tensor] | None = None) -> Tensor:
        """The nodes, edge by edge; `stays` are each edge's samples that are not dropped."""
        weights, states = mix.weights, list(self.inputs)
        if mix.active is not None:
            runs = torch.zeros_like(weights)
            for row, columns in zip(runs, mix.active, strict=True):
                row[list(columns)] = 1
            weights = weights * runs
        for target in range(len(states), 1 + max(to for _, to in self.ends)):
            terms = []
            for e, (source, to) in enumerate(self.ends):
                if to != target:
                    continue
                x, mine = states[source], C // self.K
                y = formulas.mixed(x[:, :mine], weights[e], self.names, 1, self.edges[e].state_dict())
                if mix.passing is not None and self.K > 1:
                    y = torch.cat([y, mix.passing[e] * x[:, mine:]], dim=1)
                    y = y.view(N, self.K, mine, *y.shape[2:]).transpose(1, 2).flatten(1, 2)
                if stays is not None and mix.drop_path is not None:
                    y = y * (stays[e].double() / (1 - DROPPED)).view(-1, 1, 1, 1)
                if mix.added is not None:
                    y = y + mix.added[e]
                terms.append(y)
            states.append(sum(terms[1:], terms[0]))
        return torch.cat(states[len(self.inputs) :], dim=1)


def assert_same(ours: Tensor, plain: Tensor, inputs: Sequence[Tensor]) -> None:
    """Values and the gradients of a random projection, but for float64 rounding."""
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)
    g = torch.randn_like(plain)
    found = [torch.autograd.grad(y, inputs, g, retain_graph=True) for y in (ours, plain)]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.fixture(params=["reference", "auto"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("name", GRAPHS)
def test_weights_alone(name: str, backend: str) -> None:
    graph = Graph(name, backend)
    mix = Mix(graph.weights)
    assert_same(graph.nodes(mix), graph.formula(mix), [*graph.inputs, graph.weights])


@pytest.mark.parametrize("name", GRAPHS)
def test_only_active_ops_run(name: str, backend: str) -> None:
    graph = Graph(name, backend)
    columns = len(graph.names)
    mix = Mix(graph.weights, [[e % columns, (e + 1) % columns] if e else [] for e in range(len(graph.ends))])
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    if backend == "reference":
        for edge in graph.edges:
            for op in edge._ops:
                op.register_forward_hook(count)
    assert_same(graph.nodes(mix), graph.formula(mix), [*graph.inputs, graph.weights])
    assert calls == (2 * (len(graph.ends) - 1) if backend == "reference" else 0)


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("name", GRAPHS)
def test_added_numbers_reach_every_value_of_the_target(name: str, active: bool, backend: str) -> None:
    graph = Graph(name, backend)
    added = graph.one_an_edge()
    mix = Mix(graph.weights, [[e % len(graph.names)] for e in range(len(graph.ends))] if active else None, added=added)
    assert_same(graph.nodes(mix), graph.formula(mix), [*graph.inputs, graph.weights, added])


def test_zeros_that_are_added_change_no_bit_and_carry_a_gradient(backend: str) -> None:
    graph = Graph("one input", backend)
    zeros = torch.zeros(len(graph.ends), dtype=torch.float64, requires_grad=True)
    ours = graph.nodes(Mix(graph.weights, added=zeros))
    without = graph.nodes(Mix(graph.weights))
    torch.testing.assert_close(ours, without, rtol=1e-12, atol=1e-12)
    last = torch.autograd.grad(ours[:, -C:].sum(), zeros)[0][[e for e, (_, to) in enumerate(graph.ends) if to == 3]]
    assert torch.equal(last, torch.full_like(last, N * C * 5 * 6))


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("name", GRAPHS)
def test_edges_drop_samples_in_their_order(name: str, added: bool, backend: str) -> None:
    graph = Graph(name, backend)
    generator = torch.Generator().manual_seed(5)

    def drop(term: Tensor) -> Tensor:
        return (torch.rand(len(term), generator=generator) >= DROPPED).to(term) / (1 - DROPPED)

    mix = Mix(graph.weights, added=graph.one_an_edge() if added else None, drop_path=drop)
    ours = graph.nodes(mix)
    again = torch.Generator().manual_seed(5)
    stays = [torch.rand(N, generator=again) >= DROPPED for _ in graph.ends]
    assert 0 < int(torch.stack(stays).sum()) < N * len(graph.ends)
    assert torch.equal(again.get_state(), generator.get_state())
    inputs = [*graph.inputs, graph.weights, *([] if mix.added is None else [mix.added])]
    assert_same(ours, graph.formula(mix, stays), inputs)


@pytest.mark.parametrize("K", [2, 4])
@pytest.mark.parametrize("name", GRAPHS)
def test_channels_that_bypass_the_ops(name: str, K: int, backend: str) -> None:
    graph = Graph(name, backend, K)
    passing = graph.one_an_edge()
    mix = Mix(graph.weights, passing=passing)
    assert_same(graph.nodes(mix), graph.formula(mix), [*graph.inputs, graph.weights, passing])


def test_channels_that_bypass_active_ops(backend: str) -> None:
    graph = Graph("two inputs", backend, 4)
    passing = graph.one_an_edge()
    mix = Mix(graph.weights, [[e] for e in range(len(graph.ends))], passing)
    assert_same(graph.nodes(mix), graph.formula(mix), [*graph.inputs, graph.weights, passing])


def test_what_partial_channels_do_not_go_with() -> None:
    graph = Graph("two inputs", "reference", 4)
    passing = graph.one_an_edge()
    with pytest.raises(ValueError, match=r"need mix\.passing"):
        graph.nodes(Mix(graph.weights))
    for more in ({"added": passing}, {"drop_path": torch.ones_like}):
        with pytest.raises(ValueError, match="go together neither with drop_path nor with added"):
            graph.nodes(Mix(graph.weights, passing=passing, **more))


@pytest.mark.parametrize("name", GRAPHS)
def test_modules_are_called_in_the_order_of_the_edges(name: str, backend: str) -> None:
    """Some draw random numbers, which must not depend on what a kernel computes beside them."""
    graph = Graph(name, backend)
    calls: list[int] = []

    class Called(nn.Module):
        def __init__(self, edge: int) -> None:
            super().__init__()
            self.edge = edge

        def forward(self, x: Tensor) -> Tensor:
            calls.append(self.edge)
            return x

    for e, edge in enumerate(graph.edges):
        edge._ops[edge.primitives.index("skip_connect")] = Called(e)
    mix = Mix(graph.weights)
    torch.testing.assert_close(graph.nodes(mix), graph.formula(mix), rtol=1e-9, atol=1e-9)
    assert calls == list(range(len(graph.ends)))


def test_rows_by_target() -> None:
    assert rows_by_target(ONE_INPUT) == [[0], [1, 2], [3, 4, 5]]
    assert rows_by_target(GRAPHS["not all pairs"][1]) == [[0, 1], [2, 3], [4]]
