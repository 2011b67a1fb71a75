"""GDAS and SNAS: samples, what runs, what moves."""

import math

import pytest
import torch
from tiny_method import finish_epoch, network_of, paper_method, tiny_state

from fastdarts.methods import gumbel
from fastdarts.mixed.mix import Mix


@pytest.mark.parametrize("tau", [10.0, 1.0, 0.1])
def test_the_largest_entry_is_distributed_as_the_softmax_whatever_the_temperature(tau):
    p = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    n = 20_000
    z = gumbel.sample(p.log().expand(n, 4), lambda: tau, torch.Generator().manual_seed(0))
    share = z.argmax(1).bincount(minlength=4) / n
    assert ((share - p).abs() <= 3 * (p * (1 - p) / n).sqrt()).all()
    assert torch.allclose(z.sum(1), torch.ones(n, dtype=torch.float64))


def test_hard_samples_have_the_gradient_of_soft_ones():
    alpha = torch.randn(14, 8, dtype=torch.float64, requires_grad=True)
    g = torch.randn(14, 8, dtype=torch.float64)
    z, again = (gumbel.sample(alpha, lambda: 0.7, torch.Generator().manual_seed(1)) for _ in range(2))
    h = gumbel.one_hot(again)
    assert torch.allclose(h, (z == z.max(1, keepdim=True).values).double(), atol=1e-15)
    assert torch.equal(torch.autograd.grad(h, alpha, g)[0], torch.autograd.grad(z, alpha, g)[0])


def test_temperature():
    values = [gumbel.temperature(10, 0.1, epoch, 250) for epoch in (0, 1, 124, 249)]
    assert values == pytest.approx([10, 9.96024, 5.06988, 0.1], abs=1e-5)
    assert paper_method("gdas").config.epochs == 250


def test_one_op_an_edge_runs_and_the_others_stay_as_they_are():
    state = tiny_state("gdas", backend="reference", weight_decay=0.1, alpha_warmup=0.5)  # one pass a step
    calls: dict[str, int] = {}
    ops = {
        name: m
        for name, m in state.network.named_modules()
        if name.split(".")[-2:-1] == ["_ops"] and name.count("_ops") == 2
    }
    for name, op in ops.items():
        op.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls.get(name, 0) + 1))
    before = {name: tensor.clone() for name, tensor in state.network.state_dict().items()}
    x, y = torch.randn(4, 1, 6, 6), torch.tensor([0, 1, 0, 1])
    state.network.train()
    state.search_step.step((x, y), (x, y))
    assert set(calls.values()) == {1}
    assert len(calls) == 3 * 14
    after = state.network.state_dict()
    for name in ops:
        for key in (key for key in after if key.startswith(f"{name}.") and name not in calls):
            assert torch.equal(before[key], after[key]), key
    moved = [name for name in calls if any(True for _ in ops[name].parameters())]
    assert moved
    assert all(not torch.equal(before[f"{name}.{key}"], p) for name in moved for key, p in ops[name].named_parameters())


def test_alphas_learn_from_the_chosen_op_alone():
    """dL/dalpha_m = <g, op_k(x)> z_k (1[m = k] - z_m) / tau, from the same noise."""
    method = paper_method("gdas")
    network = network_of(method)
    network.train()
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    noise = method.generator.get_state()
    mixes = network.op_weights()
    with network.mixing(mixes):
        weights = mixes["normal"].weights
        dweights, dalpha = torch.autograd.grad(network(x).square().sum(), [weights, network.alphas_normal])
    generator = torch.Generator()
    generator.set_state(noise)
    z = gumbel.sample(network.alphas_normal, method.tau, generator).detach()
    k = z.argmax(1, keepdim=True)
    chosen = torch.zeros_like(z).scatter(1, k, 1.0)
    assert not dweights[chosen == 0].any()
    expected = dweights.gather(1, k) * z.gather(1, k) * (chosen - z) / method.tau()
    torch.testing.assert_close(dalpha, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("reduction", [False, True])
def test_samples_of_the_other_ops_are_zeros_with_a_gradient(reduction, backend):
    """y = h_k op_k(x) + sum of h_m, m != k, on every edge, from the same noise; the value is that of the drawn op."""
    method = paper_method("gdas", method_options={"others": "samples"})
    network = network_of(method, backend=backend)
    network.train()
    cell, group = network.cells[int(reduction)], "reduce" if reduction else "normal"
    noise = method.generator.get_state()
    mix = network.op_weights()[group]
    s0, s1 = (torch.randn(2, C, 6, 6, dtype=torch.float64) for C in (cell.C_prev_prev, cell.C_prev))
    drawn = [p for (k,), edge in zip(mix.active, cell._ops, strict=True) for p in edge._ops[k].parameters()]
    inputs, g = [network.alphas[group], *drawn], None

    def gradients(y):
        return torch.autograd.grad(y, inputs, g, retain_graph=True)

    ours = cell(s0, s1, *mix[:5])
    g = torch.randn_like(ours)
    of_ours = gradients(ours)
    without = cell(s0, s1, *mix._replace(added=torch.zeros(14, dtype=torch.float64))[:5])
    assert torch.equal(ours, cell(s0, s1, mix.weights, mix.active))
    assert torch.equal(ours, without)
    of_without = gradients(without)

    generator = torch.Generator()
    generator.set_state(noise)
    for alpha in list(network.alphas.values())[: reduction + 1]:
        h = gumbel.one_hot(gumbel.sample(alpha, method.tau, generator))
    states, e = [cell.preprocess0(s0), cell.preprocess1(s1)], 0
    for _ in range(4):
        terms = []
        for x in states:
            k = int(h[e].argmax())
            terms.append(h[e, k] * cell._ops[e]._ops[k](x) + sum(h[e, m] for m in range(8) if m != k))
            e += 1
        states.append(sum(terms))
    plain = torch.cat(states[2:], dim=1)
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)
    for a, b in zip(of_ours, gradients(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(of_without[0], of_ours[0])


def test_an_epoch_with_the_samples_of_the_other_ops():
    state = tiny_state("gdas", method_options={"others": "samples"}, prune_below=0.2)
    before = state.network.alphas_normal.clone()
    metrics = finish_epoch(state)
    assert math.isfinite(metrics["discretisation_error"])
    assert not (before == state.network.alphas_normal).any()


def test_edges_whose_op_is_none_contribute_nothing():
    network = network_of(paper_method("gdas"))
    network.train()
    weights = torch.zeros(14, 8, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    with network.mixing(dict.fromkeys(network.groups, Mix(weights + 1, [[0]] * 14))):  # all cells put out zeros
        y = network(x)
    assert torch.equal(y, network.classifier.bias.expand(2, 2))


def test_snas_learns_from_one_batch_of_all_images():
    state = tiny_state("snas")
    assert len(state.streams) == 1
    x, y = torch.randn(4, 1, 6, 6), torch.tensor([0, 1, 0, 1])
    before = [alpha.clone() for alpha in state.network.alphas.values()]
    result = state.search_step.step((x, y), (torch.full_like(x, math.nan), y))
    assert result.train_loss == result.valid_loss
    assert not any(torch.equal(a, b) for a, b in zip(before, state.network.alphas.values(), strict=True))


def test_snas_resource_counts_the_sampled_weights():
    method = paper_method("snas", method_options={"resource": 0.5})
    network = network_of(method)
    network.train()
    mixes = network.op_weights()
    count = sum(
        mixes["reduce" if cell.reduction else "normal"].weights[e, c].item() * sum(p.numel() for p in op.parameters())
        for cell in network.cells
        for e, edge in enumerate(cell.edges())
        for c, op in enumerate(edge._ops)
    )
    assert method.penalty(network).item() == pytest.approx(0.5 * count / 1000, rel=1e-9)


def test_snas_cells_have_the_likeliest_op_of_every_edge():
    method = paper_method("snas")
    network = network_of(method)
    with torch.no_grad():
        network.alphas_normal.zero_()
        network.alphas_normal[:, 0] = 1  # none
        network.alphas_normal[[0, 5, 6, 12], 4] = 2  # 0->2, 0->4, 1->4 and, from a node that vanishes, 3->5
        network.alphas_normal[7, 3] = 3  # skip 2->4
    genotype = method.genotype(network)
    assert genotype.normal == [
        [("sep_conv_3x3", 0)],
        [],
        [("skip_connect", 2), ("sep_conv_3x3", 0), ("sep_conv_3x3", 1)],
        [],
    ]
    assert genotype.normal_concat == [2, 4]
    assert genotype.validated() is genotype
