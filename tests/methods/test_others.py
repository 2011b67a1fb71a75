"""DARTS-, SDARTS, P-DARTS, random search, one level."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from tiny_method import finish_epoch, network_of, paper_method, paper_size, tiny_state
from torch.nn.functional import cross_entropy

from fastdarts.methods.p_darts import DroppedSkip, without_weakest
from fastdarts.methods.sdarts_rs import project
from fastdarts.mixed.mix import Mix
from fastdarts.primitives.table import PRIMITIVES
from fastdarts.spaces.darts.derivation import skips
from fastdarts.spaces.darts.genotype import edges_of

SKIP = PRIMITIVES.index("skip_connect")


def at_epochs(method, epochs, value):
    values = []
    for epoch in epochs:
        method.begin_epoch(epoch)
        values.append(value())
    return values


# DARTS-


def test_auxiliary_skips_of_darts_minus():
    assert paper_size(paper_method("darts-minus")) == 1_930_618 + 8 * 32**2 + 8 * 64**2


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({}, [1, 0.5, 0.02]),
        ({"decay": "cosine"}, [1, 0.5, (1 + math.cos(0.98 * math.pi)) / 2]),
        ({"decay": "slow-cosine"}, [1, math.cos(math.pi / 4), math.cos(0.49 * math.pi)]),
        ({"decay": "none"}, [1, 1, 1]),
        ({"start": 0.5}, [1, 1, 1 / 25]),
        ({"stop": 0.5}, [1, 0.5, 0.5]),
    ],
)
def test_the_factor_decays(options, values):
    method = paper_method("darts-minus", method_options=options)
    assert at_epochs(method, (0, 25, 49), method.factor) == pytest.approx(values)


def test_without_the_factor_it_is_darts_and_with_it_none_is_the_identity():
    method = paper_method("darts-minus")
    network = network_of(method)
    network.train()
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    method.begin_epoch(50)  # where the factor is 0
    ours = network(x)
    with (
        network.mixing({g: Mix(a.softmax(-1), [range(8)] * 14) for g, a in network.alphas.items()}),
        pytest.raises(ValueError, match="9 ops"),
    ):
        network(x)
    zero = {
        group: Mix(torch.cat([alpha.softmax(-1), torch.zeros(14, 1)], 1), [range(8)] * 14)
        for group, alpha in network.alphas.items()
    }
    with network.mixing(zero):
        torch.testing.assert_close(ours, network(x), rtol=1e-9, atol=1e-12)
    edge = network.cells[0].edges()[0]
    one_hot = torch.eye(9, dtype=torch.float64)[0] + torch.eye(9, dtype=torch.float64)[8]
    y = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    assert torch.equal(edge(y, one_hot), y)
    gradient = torch.autograd.grad(network(x).square().sum(), network.alphas_normal)[0]
    assert gradient[:, SKIP].any()


# SDARTS


def test_projection():
    a = torch.rand(30, 8, dtype=torch.float64).softmax(-1)
    p = project(a + torch.randn(30, 8, dtype=torch.float64), a)
    assert (p >= 0).all()
    torch.testing.assert_close(p.sum(1), torch.ones(30, dtype=torch.float64))
    assert torch.equal(project(a - 2, a).argmax(1), a.argmax(1))
    assert torch.equal(project(a - 2, a).max(1).values, torch.ones(30, dtype=torch.float64))


@pytest.mark.parametrize("name", ["sdarts-rs", "sdarts-adv"])
def test_epsilon_grows_and_zero_is_darts(name):
    method = paper_method(name)
    assert at_epochs(method, (0, 25, 49), method.eps) == pytest.approx([0.03, 0.165, 0.2946])
    x, y = torch.randn(4, 1, 6, 6), torch.tensor([0, 1, 0, 1])
    plain = tiny_state("darts", order=1)
    ours = tiny_state(name, method_options={"eps_min": 0, "eps_max": 0})
    for state in (plain, ours):
        state.network.train()
        state.search_step.step((x, y), (x, y))
    theirs = plain.network.state_dict()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.network.state_dict().items())


def test_the_weight_step_is_that_of_the_perturbed_op_weights():
    """From the same noise, by the plain modules: the gradient's norm, and alphas that only the alpha step moves."""
    torch.set_default_dtype(torch.float64)
    state, twin = (tiny_state("sdarts-rs", alpha_warmup=0.5, backend=backend) for backend in ("auto", "reference"))
    x, y = torch.randn(4, 1, 6, 6), torch.tensor([0, 1, 0, 1])
    twin.network.train()
    perturbed = {
        group: Mix(project(a + 0.03 * (2 * torch.rand(14, 8, generator=twin.method.generator) - 1), a))
        for group, a in ((group, alpha.detach().softmax(-1)) for group, alpha in twin.network.alphas.items())
    }
    with twin.network.mixing(perturbed):
        gradients = torch.autograd.grad(cross_entropy(twin.network(x), y), list(twin.network.parameters()))
    state.network.train()
    before = [alpha.clone() for alpha in state.network.alphas.values()]
    result = state.search_step.step((x, y), (x, y))
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    torch.testing.assert_close(result.gradient_norm, norm, rtol=1e-9, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(before, state.network.alphas.values(), strict=True))


def test_the_adversary_finds_no_smaller_loss_and_touches_nothing():
    state = tiny_state("sdarts-adv", method_options={"eps_min": 0.3})
    x, y = torch.randn(4, 1, 6, 6), torch.tensor([0, 1, 0, 1])
    before = {name: tensor.clone() for name, tensor in state.network.state_dict().items()}
    weights = {group: alpha.detach().softmax(-1) for group, alpha in state.network.alphas.items()}
    state.network.train()
    attacked = state.method.perturb(state.search_step, (x, y), weights)
    assert state.network.training
    after = state.network.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    state.network.eval()
    with torch.no_grad():
        losses = [state.method._loss(state.search_step, (x, y), w) for w in (attacked, weights)]
    assert losses[0] > losses[1]
    assert all(p.requires_grad for p in state.network.parameters())


# P-DARTS


@pytest.mark.parametrize(("stage", "depth"), [(0, 5), (1, 11), (2, 17)])
def test_stages_of_p_darts(stage, depth):
    method = paper_method("p-darts")
    rates = at_epochs(method, range(25 * stage, 25 * stage + 25), method.skip_dropout)
    first = method.options.skip_dropout[stage]
    assert [round(rate / first, 3) for rate in rates] == [
        0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72, 0.68, 0.64, 0.6, 1.0, 0.819, 0.67, 0.549, 0.449, 0.368, 0.301, 0.247,
        0.202, 0.165, 0.135, 0.111, 0.091, 0.074, 0.061,
    ]  # fmt: skip
    moving = at_epochs(method, (25 * stage + 9, 25 * stage + 10), method.alphas_move)
    assert moving == [False, True]
    assert at_epochs(method, [25 * stage], method.learning_rate) == [0.025]
    assert method.network_arguments()["layers"] == depth


def test_sizes_of_p_darts():
    method = paper_method("p-darts")
    assert paper_size(method) == 1_275_834
    method.begin_epoch(25)
    assert paper_size(method) == 2_585_146
    method.begin_epoch(74)
    method.candidates = dict.fromkeys(method.candidates, (("skip_connect", "sep_conv_3x3", "dil_conv_3x3"),) * 14)
    assert paper_size(method) == 1_861_402


def test_ops_leave_and_a_new_network_begins():
    state = tiny_state("p-darts", epochs=3)
    lengths, first = [], []
    for _ in range(3):
        lengths.append({len(names) for group in state.network.groups.values() for names in group.ops})
        first.append(state.network.stem[0].weight.clone())
        finish_epoch(state)
    assert lengths == [{8}, {5}, {3}]
    assert len({id(w) for w in first}) == 3
    assert not torch.equal(first[0], first[1])
    assert state.history[-1]["normal"].isfinite().sum() == 3 * 14
    assert len(state.network.cells) == 4
    assert skips(state.method.result(state).nodes("normal")) <= 2


def test_the_weakest_leave_ties_to_the_first():
    names = (("none", "skip_connect", "sep_conv_3x3", "dil_conv_3x3"),)
    assert without_weakest(torch.tensor([[0.2, 0.1, 0.1, 0.6]]), names, 2) == (("none", "dil_conv_3x3"),)


def test_dropout_on_skip_connections_drops_elements():
    method = paper_method("p-darts")
    method.begin_epoch(60)  # stage 3, its tenth epoch
    skip = DroppedSkip(method)
    x = torch.ones(10, 4, 30, 30)
    y = skip(x)
    n = x.numel()
    assert abs(float((y == 0).double().mean()) - 0.7) <= 4 * (0.21 / n) ** 0.5
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / 0.3))
    assert skip.eval()(x) is x
    network = network_of(method)
    dropped = [e for e, edge in enumerate(network.cells[1].edges()) if isinstance(edge._ops[SKIP], DroppedSkip)]
    assert dropped == [e for e, (source, _) in enumerate(edges_of(4)) if source >= 2]  # a reduction cell's stride 1


def test_the_limit_of_skips_is_monotone():
    method = paper_method("p-darts", max_skips=None)
    network = network_of(method)
    scores = {group: torch.rand(14, 8, dtype=torch.float64).softmax(-1) for group in network.groups}
    scores["normal"][:, SKIP] += 0.5
    genotypes = [network.derive(scores, replace(method.choice, max_skips=limit)) for limit in range(9)]
    assert [skips(g.nodes("normal")) for g in genotypes] == list(range(9))
    assert len({str(g.reduce) for g in genotypes}) == 1
    for genotype, node in itertools.product(genotypes, range(4)):
        sources = [source for _, source in genotype.nodes("normal")[node]]
        assert sources == sorted(set(sources))
        assert len(sources) == 2


# Random search


def test_random_cells_have_two_sources_a_node_and_any_op():
    network = network_of(paper_method("random"))
    generator = torch.Generator().manual_seed(0)
    drawn = [network.random(generator) for _ in range(400)]
    ops = [op for genotype in drawn for op, _ in genotype.normal]
    counts = torch.tensor([ops.count(name) for name in PRIMITIVES], dtype=torch.float64)
    n = len(ops)
    assert ((counts / n - 1 / 8).abs() <= 4 * (7 / 64 / n) ** 0.5).all()
    for genotype in drawn:
        for state, node in enumerate(genotype.nodes("reduce"), start=2):
            assert len({source for _, source in node if source < state}) == 2
    pairs = {tuple(source for _, source in genotype.nodes("normal")[3]) for genotype in drawn}
    assert pairs == set(itertools.combinations(range(5), 2))


def test_eight_edges_run_and_no_alpha_moves():
    state = tiny_state("random")
    state.network.train()
    mixes = state.network.op_weights()
    assert [sum(len(columns) for columns in mix.active) for mix in mixes.values()] == [8, 8]
    before = [alpha.clone() for alpha in state.network.alphas.values()]
    result = state.search_step.step(*[(torch.randn(4, 1, 6, 6), torch.tensor([0, 1, 0, 1]))] * 2)
    assert math.isnan(result.valid_loss)
    assert all(torch.equal(a, b) for a, b in zip(before, state.network.alphas.values(), strict=True))


def test_the_best_random_cell_is_chosen():
    state = tiny_state("random", method_options={"cells": 6, "batches": 1, "finalists": 6})
    finish_epoch(state)
    generator = torch.Generator()
    generator.set_state(state.method.generator.get_state())
    cells = [state.network.random(generator) for _ in range(6)]
    accuracies = [state.validate(lambda: None, state.method.discrete(state.network, cell))[1] for cell in cells]
    result = state.method.result(state)
    assert accuracies[cells.index(result)] == max(accuracies)


# One level


def test_one_level_has_one_batch_and_one_backward():
    torch.set_default_dtype(torch.float64)
    state = tiny_state("single-level", arch_weight_decay=0.0)
    assert len(state.streams) == 1
    x, y = torch.randn(4, 1, 6, 6), torch.tensor([0, 1, 0, 1])
    state.network.train()
    loss = cross_entropy(state.network(x), y)
    gradients = torch.autograd.grad(loss, list(state.network.alphas.values()))
    for _ in range(1):
        result = state.search_step.step((x, y), (x * math.nan, y))
    torch.testing.assert_close(result.train_loss, loss.detach(), rtol=1e-9, atol=0)
    torch.testing.assert_close(result.alpha_gradient_norm, torch.cat(gradients).norm(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("steps", ["simultaneous", "alternating"])
def test_without_a_learning_rate_of_alphas_it_is_plain_training(steps):
    x, y = torch.randn(4, 1, 6, 6), torch.tensor([0, 1, 0, 1])
    states = [tiny_state("single-level", alpha_warmup=warmup, method_options={"steps": steps}) for warmup in (0.0, 0.8)]
    for state in states:
        state.network.train()
        for group in state.architect.optimizer.param_groups:
            group["lr"] = 0.0
        state.search_step.step((x, y), (x, y))
    theirs = states[1].network.state_dict()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in states[0].network.state_dict().items())
