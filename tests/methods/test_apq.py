"""APQ: draws of bits, bit operations, encodings, the predictor that is transferred, a search for few bits."""

import math
from functools import cache
from typing import Any

import pytest
import torch
from tiny_method import tiny_state
from torch import Tensor, nn

from fastdarts.data.images import in_order
from fastdarts.methods.apq import BitSearch
from fastdarts.methods.bit_draws import BitDraws
from fastdarts.methods.bit_predictor import BitPredictor
from fastdarts.methods.samplers import Limit
from fastdarts.methods.scored import Scored
from fastdarts.spaces import registry
from fastdarts.spaces.layerwise.architecture import LayerChoices
from fastdarts.spaces.layerwise.bitops import BitOps
from fastdarts.spaces.layerwise.discrete import LayerwiseNetwork
from fastdarts.spaces.layerwise.encoding import Encoding
from fastdarts.spaces.layerwise.quantisers import Quantiser
from fastdarts.spaces.layerwise.supernet import LayerwiseSupernet

OPTIONS = {"cells": 60, "population": 10, "finalists": 3, "predictor": 6, "sampler": "evolution", "recalibrate": 1}
SPACE = {"kernels": [5, 7], "expansions": [2, 4], "least": 1, "strides": [1, 1, 1, 2, 1, 1]}


@cache
def state() -> Any:
    return tiny_state("ofa", epochs=4, space_options=SPACE, method_options=OPTIONS)


def bit_operations() -> BitOps:
    network = state().network
    space = registry.find("ofa", None, SPACE)
    with torch.device("meta"):
        priced = LayerwiseSupernet(**space.arguments(), C=4, num_classes=2, layers=2, in_channels=1)
    assert priced.choices == network.choices
    return BitOps(priced, (1, 1, 6, 6))


def draws(limit: Limit | None = None) -> BitDraws:
    return BitDraws(state().network, torch.Generator().manual_seed(0), limit=limit)


def with_bits(architecture: LayerChoices, four: str) -> LayerChoices:
    bits = [four if name != "skip" else "" for name in architecture.layers]
    found: LayerChoices = state().network.architecture(architecture.layers, bits)
    return found


def test_bit_operations_are_those_of_the_network_that_is_built() -> None:
    found = draws().random()
    network = LayerwiseNetwork(found, C=4, num_classes=2, in_channels=1).eval()
    total = 0

    def note(layer: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
        nonlocal total
        assert isinstance(layer.quantiser, Quantiser)
        products = layer.weight.numel() * math.prod(out.shape[2:])
        total += products * layer.quantiser.weight_bits * (layer.quantiser.activation_bits or 8)

    for module in network.modules():
        if isinstance(getattr(module, "quantiser", None), Quantiser):
            module.register_forward_hook(note)
    with torch.no_grad():
        network(torch.zeros(1, 1, 6, 6))
    assert bit_operations().of(found) == pytest.approx(total / 1e6, rel=1e-12)


def test_fewer_bits_cost_less() -> None:
    network = state().network
    cost, part = bit_operations(), network.smallest(network.sides)  # of kernel 5
    for place in range(4):
        costs = [cost.of(with_bits(part, "6" * place + digit + "6" * (3 - place))) for digit in "468"]
        assert costs == sorted(set(costs))
    assert cost.lowest() == cost.of(with_bits(part, "4444"))


def test_kernel_seven_never_meets_four_bits_of_depthwise_inputs() -> None:
    """In 10,000 samples, mutations and crossings; the other pairs all occur, and left-out layers have no bits."""
    some, seen = draws(), set()
    parts = [some.random() for _ in range(1_000)]
    for at in range(4_500):
        parts.append(some.crossed(parts[some.choose(len(parts))], parts[at]))
        parts.append(some.mutated(parts[some.choose(len(parts))], 0.3))
    for part in parts:
        for name, four in zip(part.layers, part.bits, strict=True):
            assert (name == "skip") == (four == "")
            if four:
                seen.add((name[:2], four[3]))
    assert seen == {(kernel, digit) for kernel in ("k5", "k7") for digit in "468"} - {("k7", "4")}


def test_what_is_bred_is_within_the_limit_of_bit_operations() -> None:
    cost, part = bit_operations(), state().network.largest()
    most = cost.of(with_bits(part, "4466"))
    some = draws(Limit(cost.of, most))
    parts = [some.random() for _ in range(10)]
    parts += [some.crossed(parts[0], parts[1]), some.mutated(parts[2], 0.5), some.mutated(with_bits(part, "8888"), 0.1)]
    assert max(map(cost.of, parts)) <= most
    assert cost.of(with_bits(part, "8888")) > most


def test_a_predictor_of_floats_knows_bits_after_the_transfer() -> None:
    """Before, it predicts a network of few bits as it does in floats, exactly; then the bits move it."""
    some = draws()
    model = BitPredictor(Encoding(state().network.choices), seed=0)
    parts = list({str(part): part for part in (some.random() for _ in range(160))}.values())

    def large(part: LayerChoices) -> float:
        return sum(name.startswith("k7") for name in part.layers) / len(part.layers)

    def score(part: LayerChoices) -> float:
        return large(part) + sum(int(digit) - 6 for four in part.bits for digit in four[:2]) / 100

    model.fit([Scored(part.in_floats(), large(part)) for part in parts[:100]])
    layers = torch.stack([model.encoding.layers(part) for part in parts])
    bits = torch.stack([model.encoding.bits_of(part) for part in parts])
    assert torch.equal(model(layers, bits), model(layers))
    model.fit_bits([Scored(part, score(part)) for part in parts[:100]])
    rest = parts[100:]
    ranks = [
        torch.tensor(values).argsort().argsort().double()
        for values in ([model.predict(part) for part in rest], [score(part) for part in rest])
    ]
    assert float(torch.corrcoef(torch.stack(ranks))[0, 1]) > 0.7
    few, many = (model.predict(with_bits(rest[0], four)) for four in ("4466", "8866"))
    assert many - few > 0.05


def test_the_search_finds_a_network_of_few_bits_within_the_limit() -> None:
    running, cost = state(), bit_operations()
    limit = Limit(cost.of, cost.of(with_bits(running.network.largest(), "4466")))
    images, _ = next(iter(in_order(running.streams[0].data, 16)))
    search = BitSearch(running.method, running, running.network, running.augment.normalise(images), limit)
    before = {name: tensor.clone() for name, tensor in running.network.state_dict().items()}
    found = search.found(4)
    assert found.cost == cost.of(found.architecture) <= limit.most
    assert found == search.measured(found.architecture, running.validation)
    assert all(torch.equal(tensor, before[name]) for name, tensor in running.network.state_dict().items())
