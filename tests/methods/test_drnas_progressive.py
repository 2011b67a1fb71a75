"""The two stages of DrNAS, and what is carried over between them."""

from typing import Any

import pytest
import torch
from tiny_method import finish_epoch, paper_method, tiny_state
from torch.optim import SGD

from fastdarts.bilevel.flat import FlatSGD
from fastdarts.methods.widening import carry_over
from fastdarts.spaces.darts.supernet import SearchNetwork


def test_stages_of_the_published_search() -> None:
    method = paper_method("drnas-progressive")
    config = method.config
    assert (config.init_channels, config.layers, config.batch_size, config.lr, config.lr_min) == (36, 20, 64, 0.1, 0)
    moving, ks = [], []
    for epoch in range(50):
        method.begin_epoch(epoch)
        ks.append(method.network_arguments()["K"])
        if method.alphas_move():
            moving.append(epoch)
    assert ks == [6] * 25 + [4] * 25
    assert moving == [*range(10, 25), *range(35, 50)]


def test_every_edge_keeps_its_strongest_ops_and_the_network_its_weights() -> None:
    options = {"k": (2, 1), "left": 3}
    state = tiny_state("drnas-progressive", epochs=2, alpha_warmup=0.0, method_options=options)
    while state.step < state.steps_per_epoch:
        state.train_step()
    narrow = {name: tensor.clone() for name, tensor in state.network.state_dict().items()}
    alphas = [alpha.detach().clone() for alpha in state.network.arch_parameters()]
    finish_epoch(state)
    wide = state.network.state_dict()
    assert narrow.keys() == wide.keys()
    for name, tensor in narrow.items():
        if "_ops.3.bn" in name:  # of factorised reductions, see below
            continue
        corner = tuple(slice(size) for size in tensor.shape)
        assert torch.equal(wide[name][corner], tensor), name
    pointwise = "cells.0._ops.0._ops.4.op.2.weight"
    assert (narrow[pointwise].shape, wide[pointwise].shape) == ((2, 2, 1, 1), (4, 4, 1, 1))
    assert all(torch.equal(a, b) for a, b in zip(alphas, state.network.arch_parameters(), strict=True))
    for name, kept in state.method.kept.items():
        assert kept.sum(1).tolist() == [3] * 14
        alpha = state.network.alphas[name]
        assert (alpha.masked_fill(~kept, 9).min(1).values >= alpha.masked_fill(kept, -9).max(1).values).all()
    state.network.train()
    mix = state.network.op_weights()["normal"]
    assert (mix.weights > 0).equal(state.method.kept["normal"])
    torch.testing.assert_close(mix.weights.sum(1), torch.ones(14))
    assert mix.passing is None
    finish_epoch(state)


def networks(optimizers: tuple[Any, Any]) -> tuple[SearchNetwork, SearchNetwork, Any, Any]:
    """One of K = 3 and one of K = 2 with their optimizers; the first has taken a step."""
    sizes: dict[str, Any] = {"C": 6, "num_classes": 2, "layers": 3, "in_channels": 1}
    old, new = (SearchNetwork(**sizes, K=K) for K in (3, 2))
    first, second = (
        make(net.parameters(), lr=0.1, momentum=0.9) for make, net in zip(optimizers, (old, new), strict=True)
    )
    for weight in old.parameters():
        weight.grad = torch.randn_like(weight)
    first.step()
    return old, new, first, second


@pytest.mark.parametrize("optimizers", [(SGD, SGD), (FlatSGD, FlatSGD), (FlatSGD, SGD)])
def test_further_channels_copy_old_ones_with_their_momentum(optimizers: tuple[Any, Any]) -> None:
    old, new, first, second = networks(optimizers)
    for buffer in old.buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.randn_like(buffer))
    carry_over(old, new, first, second, torch.Generator().manual_seed(0))
    if isinstance(second, FlatSGD):
        second.attach()
    before, after = dict(old.named_parameters()), dict(new.named_parameters())
    for name, weight in after.items():
        momentum, old_momentum = second.state[weight]["momentum_buffer"], first.state[before[name]]["momentum_buffer"]
        if weight.shape == before[name].shape:
            assert torch.equal(weight, before[name])
            assert torch.equal(momentum, old_momentum)
    # One op: the same old channel for a weight, its momentum and the statistics of its batch norm.
    op, wider = (net.cells[0].edges()[0]._ops[6].op for net in (old, new))  # relu, depthwise, pointwise, norm
    for channel in range(3):
        sources = [c for c in range(2) if torch.equal(wider[1].weight[channel], op[1].weight[c])]
        (source,) = sources
        assert source == channel or channel == 2
        assert wider[3].running_mean[channel] == op[3].running_mean[source]
        assert torch.equal(
            second.state[wider[1].weight]["momentum_buffer"][channel],
            first.state[op[1].weight]["momentum_buffer"][source],
        )
        row = op[2].weight[source, :, 0, 0]
        chosen = 0 if torch.equal(wider[2].weight[channel, 2, 0, 0], row[0]) else 1
        assert torch.equal(wider[2].weight[channel, :, 0, 0], row[torch.tensor([0, 1, chosen])])


def test_halves_of_a_factorised_reduction_stay_halves() -> None:
    old, new, first, second = networks((SGD, SGD))
    carry_over(old, new, first, second, torch.Generator().manual_seed(1))
    reduction, wider = (net.cells[1].edges()[0]._ops[3] for net in (old, new))
    assert (reduction.bn.num_features, wider.bn.num_features) == (4, 6)
    reduction.bn.running_mean.copy_(torch.arange(4.0))
    carry_over(old, new, first, second, torch.Generator().manual_seed(1))
    means = wider.bn.running_mean
    assert set(means[:3].tolist()) == {0, 1}
    assert torch.equal(means[3:], means[:3] + 2)


def test_networks_do_not_become_narrower() -> None:
    old, new, first, second = networks((SGD, SGD))
    with pytest.raises(ValueError, match="cannot become narrower"):
        carry_over(new, old, second, first, torch.Generator())


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"method_options": {}}, "init_channels must be a multiple of the method's k = 6 and 4; got 4"),
        ({"method_options": {"k": (1, 2)}}, "k must not grow"),
        ({"method_options": {"k": (2, 1), "left": 9}}, "left must be at most 8"),
        ({"epochs": 1}, "epochs must be at least 2"),
        ({"prune_below": 0.1}, "prune_below cannot be used"),
    ],
)
def test_stages_that_have_no_meaning(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        tiny_state("drnas-progressive", **fields)
