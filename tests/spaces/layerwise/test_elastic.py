"""Once-for-all's network: sizes, kernels, sorted channels, parts that are cut out, batch norms of parts."""

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdarts.bilevel.statistics import average_statistics
from fastdarts.spaces import registry
from fastdarts.spaces.elastic import Sides
from fastdarts.spaces.layerwise.architecture import LayerChoices
from fastdarts.spaces.layerwise.blocks import squeezed
from fastdarts.spaces.layerwise.chain import CHAINS, SKIP
from fastdarts.spaces.layerwise.discrete import LayerwiseNetwork, block_strings
from fastdarts.spaces.layerwise.elastic import ElasticResidual
from fastdarts.spaces.layerwise.elastic_supernet import ElasticSupernet
from fastdarts.spaces.space import priced_supernet

SMALL = {"strides": [1, 1, 1, 2, 1, 2], "depths": [2, 2, 2, 2, 2], "least": 1}


def parameters(network: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def small(**options: Any) -> ElasticSupernet:
    """A network of small channels in float64, trained a little, so that no part is like another."""
    torch.manual_seed(0)
    space = registry.find("ofa", None, SMALL | options)
    network = space.supernet(**space.arguments(), C=8, num_classes=3, layers=2, in_channels=1).double()
    generator = torch.Generator().manual_seed(0)
    for layer in network.layers:
        for matrix in layer.shared.transforms:
            matrix.data += 0.1 * torch.randn(matrix.shape, dtype=torch.float64)
    network.train()
    with torch.no_grad():
        for _ in range(3):
            with network.mixing(network.mixes_of(network.random(generator))):
                network(images())
    return network.eval()


def images() -> Tensor:
    x = torch.randn(6, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=torch.channels_last)


def logits(network: ElasticSupernet, part: LayerChoices) -> Tensor:
    with network.mixing(network.mixes_of(part)), torch.no_grad():
        found: Tensor = network(images())
    return found


def test_sizes_at_a_thousand_classes() -> None:
    with torch.device("meta"):
        network = ElasticSupernet("ofa", CHAINS["ofa"], C=16, num_classes=1000, layers=4, in_channels=3)
        assert parameters(network) == 7_678_880
        assert parameters(LayerwiseNetwork(network.largest())) == 7_664_760
        assert parameters(LayerwiseNetwork(network.smallest(network.sides))) == 3_410_792
    matrices = sum(matrix.numel() for layer in network.layers for matrix in layer.shared.transforms)
    assert matrices == 20 * (625 + 81) == 7_678_880 - 7_664_760
    assert {name: group.shape for name, group in network.groups.items()} == {"optional": (10, 10), "fixed": (10, 9)}


def test_identity_matrices_crop_kernels_bit_for_bit() -> None:
    block = ElasticResidual(CHAINS["ofa"].layers()[0], CHAINS["ofa"].blocks, "relu", 1e-5)
    whole = block.conv_dw.weight
    assert torch.equal(block.depthwise(7, 48), whole[:48])
    assert torch.equal(block.depthwise(5, 96), whole[:, :, 1:6, 1:6])
    assert torch.equal(block.depthwise(3, 64), whole[:64, :, 2:5, 2:5])


def test_the_smallest_kernel_goes_through_all_matrices() -> None:
    block = ElasticResidual(CHAINS["ofa"].layers()[0], CHAINS["ofa"].blocks, "relu", 1e-5).double()
    for matrix in block.transforms:
        torch.nn.init.normal_(matrix)
    larger, smaller = block.transforms
    five = block.conv_dw.weight[:48, 0, 1:6, 1:6].reshape(48, 25) @ larger.T
    three = five.view(48, 5, 5)[:, 1:4, 1:4].reshape(48, 9) @ smaller.T
    torch.testing.assert_close(block.depthwise(5, 48).flatten(1), five)
    torch.testing.assert_close(block.depthwise(3, 48).flatten(1), three)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_part_that_is_cut_out_has_the_same_bits(dtype: torch.dtype) -> None:
    network = small().to(dtype)
    x = images().to(dtype)
    generator = torch.Generator().manual_seed(2)
    for part in (network.largest(), network.smallest(network.sides), *(network.random(generator) for _ in range(4))):
        cut = network.cut(part).eval()
        with network.mixing(network.mixes_of(part)), torch.no_grad():
            assert torch.equal(network(x), cut(x))
        space = registry.shaped_like(part)
        built = space.discrete(registry.read_architecture(part.to_json()), C=8, num_classes=3, in_channels=1)
        built.load_state_dict(cut.state_dict())


def test_sorting_leaves_the_whole_network_and_then_the_sets_of_smaller_widths() -> None:
    network = small(expansions=[3, 4, 6])
    before = logits(network, network.largest())
    network.sort_channels(())
    torch.testing.assert_close(logits(network, network.largest()), before, rtol=0, atol=1e-12)
    for layer in network.layers:
        importance = layer.shared.conv_pwl.weight.abs().sum((0, 2, 3))
        assert torch.equal(importance, importance.sort(descending=True).values)

    for layer in network.layers:  # as if it had been trained
        layer.shared.conv_pwl.weight.data.mul_(torch.rand(layer.shared.conv_pwl.weight.shape[1])[:, None, None])
    first = [layer.shared.conv_dw.weight[: 4 * layer.shared.in_channels].clone() for layer in network.layers]
    four = network.smallest(Sides((7,), (4,), 2))
    three = network.smallest(Sides((7,), (3,), 2))
    outputs = {part: logits(network, part) for part in (network.largest(), four, three)}
    network.sort_channels((4,))
    for part in (network.largest(), four):
        torch.testing.assert_close(logits(network, part), outputs[part], rtol=0, atol=1e-12)
    assert (logits(network, three) - outputs[three]).abs().max() > 1e-6
    for layer, old in zip(network.layers, first, strict=True):
        new = layer.shared.conv_dw.weight[: len(old)]
        order = [int((old == row).flatten(1).all(1).nonzero()) for row in new]
        assert sorted(order) == list(range(len(old)))


def test_a_part_moves_the_statistics_of_its_channels_alone() -> None:
    network = small().train()
    norm = network.layers[0].shared.bn1
    before = norm.running_mean.clone()
    with network.mixing(network.mixes_of(network.smallest(network.sides))):
        network(images())
    channels = 3 * network.layers[0].shared.in_channels
    assert (norm.running_mean[:channels] != before[:channels]).all()
    assert torch.equal(norm.running_mean[channels:], before[channels:])
    before = norm.running_mean.clone()
    with network.frozen_statistics(), network.mixing(network.mixes_of(network.largest())):
        network(images())
    assert torch.equal(norm.running_mean, before)


def test_recalibrated_means_are_plain_averages_over_batches() -> None:
    network = small()
    part = network.smallest(network.sides)
    batches = [torch.randn(6, 1, 8, 8, dtype=torch.float64) for _ in range(4)]
    shared = network.layers[0].shared
    seen: list[Tensor] = []
    shared.bn1.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    with network.mixing(network.mixes_of(part)):
        average_statistics(network, lambda batch: network(batch[0]), [(x, x) for x in batches])
    channels = seen[0].shape[1]
    for found, expected in (
        (shared.bn1.running_mean, torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)),
        (shared.bn1.running_var, torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0)),
    ):
        torch.testing.assert_close(found[:channels], expected, rtol=1e-12, atol=1e-14)


def test_left_out_layers_are_the_last_of_their_stage() -> None:
    network = small()
    scores = {name: torch.zeros(group.shape) for name, group in network.groups.items()}
    scores["optional"][:, -1] = 1
    assert network.derive(scores).skips() == 5
    generator = torch.Generator().manual_seed(0)
    depths = {network.random(generator).layers[:2].count(SKIP) for _ in range(20)}
    assert depths == {0, 1}
    assert network.random(generator, max_skips=0).skips() == 0
    with pytest.raises(ValueError, match=r"layers\[3\] must be 'skip', as the layer before it in its stage"):
        LayerChoices("ofa", ("k3 e3", "k3 e3", SKIP, "k3 e3", *["k3 e3"] * 16))
    sides = network.draw(Sides((3,), (4,), 2), generator)
    assert set(sides.layers) == {"k3 e4"}


def test_json_holds_the_choices_of_the_space() -> None:
    network = small(kernels=[3, 5], expansions=[2, 4])
    found = network.random(torch.Generator().manual_seed(0))
    value = json.loads(found.to_json())
    assert (value["kernels"], value["expansions"], value["least"]) == ([3, 5], [2, 4], 1)
    assert registry.read_architecture(found.to_json()) == found
    for change, message in (
        ({"kernels": [3, 4]}, "kernels must be odd integers from 1 on, rising"),
        ({"expansions": [4, 2]}, "expansions must be integers from 1 on, rising"),
        ({"least": 0}, "least must be at least 1"),
        ({"kernels": "3"}, "kernels must be a list of integers"),
        ({"kernels": ["3", "5"]}, "kernels must be a list of integers"),
        ({"widths": [1.5] * 5}, "widths must be a list of integers"),
        ({"least": "2"}, "least must be an integer; got '2'"),
    ):
        with pytest.raises(ValueError, match=message):
            registry.read_architecture(json.dumps(value | change))


def test_costs_are_those_of_networks_that_are_cut_out() -> None:
    """Weights and multiply-adds of a table made of single choices against whole networks."""
    from fastdarts.spaces import cost
    from fastdarts.spaces.darts.discrete import count_multiply_adds

    space = registry.find("ofa", None, SMALL | {"expansions": [3, 4]})
    network = space.supernet(**space.arguments(), C=8, num_classes=3, layers=2, in_channels=1)
    with torch.device("meta"):
        priced = priced_supernet(space, C=8, num_classes=3, layers=2, in_channels=1)
    weights, multiply_adds = cost.parameters(priced, (1, 1, 8, 8)), cost.multiply_adds(priced, (1, 1, 8, 8))
    part = network.random(torch.Generator().manual_seed(4))
    cut = network.cut(part)
    assert weights.of(network, part) == pytest.approx(parameters(cut) / 1e6, rel=1e-9)
    assert multiply_adds.of(network, part) == pytest.approx(count_multiply_adds(cut, (1, 8, 8)) / 1e6, rel=1e-9)


def test_a_copy_computes_with_its_own_weights() -> None:
    network = small()
    twin = copy.deepcopy(network)
    for weight in network.parameters():
        weight.data.zero_()
    assert logits(network, network.largest()).abs().max() == 0
    assert logits(twin, twin.largest()).abs().max() > 0


def test_what_has_no_meaning_is_refused_here() -> None:
    with pytest.raises(ValueError, match="primitives are not chosen in space 'ofa'"):
        registry.find("ofa", ["k3 e3"])
    with pytest.raises(ValueError, match="has no layer behind pooling"):
        block_strings(LayerChoices("ofa", ("k3 e3",) * 20))
    assert [squeezed(channels) for channels in (24, 72, 120, 240, 672, 960)] == [8, 24, 32, 64, 168, 240]
