"""Rounding to few bits: levels, gradients, ranges; networks of chains that compute with it."""

import json

import pytest
import torch

from fastdarts.spaces import registry
from fastdarts.spaces.layerwise.architecture import LayerChoices
from fastdarts.spaces.layerwise.discrete import LayerwiseNetwork
from fastdarts.spaces.layerwise.quantisers import Quantiser, calibrate, quantised_activation, quantised_weight

SIX = torch.tensor(6.0)
LAYERS = ("k5 e3", "k3 e6", "skip", "k7 e3", "k3 e3", "k3 e3", "k5 e3")
BITS = ("4468", "6846", "", "8888", "4444", "6666", "8664")


def tiny(bits: tuple[str, ...] = BITS) -> LayerwiseNetwork:
    torch.manual_seed(0)
    architecture = LayerChoices("proxyless", LAYERS, depths=(1, 2, 1, 1, 1, 1), bits=bits)
    return LayerwiseNetwork(architecture, C=8, num_classes=3, in_channels=1)


def test_levels_at_four_bits() -> None:
    x = torch.linspace(-8, 8, 10_001, dtype=torch.float64)
    unsigned = quantised_activation(x, SIX.double(), 4, signed=False).unique()
    torch.testing.assert_close(unsigned, 0.4 * torch.arange(16, dtype=torch.float64))
    signed = quantised_activation(x, SIX.double(), 4, signed=True).unique()
    torch.testing.assert_close(signed, 6 / 7 * torch.arange(-7, 8, dtype=torch.float64))
    assert len(quantised_weight(x, SIX.double(), 4).unique()) == 15


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_rounding_twice_changes_nothing(bits: int) -> None:
    x = 5 * torch.randn(1000, generator=torch.Generator().manual_seed(0))
    once = [quantised_weight(x, SIX, bits), *(quantised_activation(x, SIX, bits, signed) for signed in (True, False))]
    twice = [
        quantised_weight(once[0], SIX, bits),
        quantised_activation(once[1], SIX, bits, True),
        quantised_activation(once[2], SIX, bits, False),
    ]
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))
    assert quantised_activation(SIX, SIX, bits, False) == 6


@pytest.mark.parametrize(
    ("x", "signed", "of_range"),
    [([7.0, 3.0, -1.0], False, 1.0), ([7.0, 3.0, -8.0], True, 0.0)],
)
def test_gradients_pass_the_rounding(x: list[float], signed: bool, of_range: float) -> None:
    inputs, reach = torch.tensor(x, requires_grad=True), SIX.clone().requires_grad_()
    quantised_activation(inputs, reach, 4, signed).sum().backward()
    assert reach.grad == of_range
    assert inputs.grad.tolist() == [0, 1, 0]
    weight, limit = torch.tensor([9.0, 0.3, -7.0], requires_grad=True), SIX.clone().requires_grad_()
    (quantised_weight(weight, limit, 4) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert weight.grad.tolist() == [1, 2, 3]  # clamped ones, too
    assert limit.grad is None


def test_calibration_takes_the_largest_magnitude_or_the_range_of_least_error() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(20_000, generator=generator), torch.randn(20_000, generator=generator)
    for bits, signed in ((8, True), (6, True), (6, False), (4, True), (4, False)):
        quantiser = Quantiser(bits, bits, signed)
        quantiser.calibrates = True
        seen, same = quantiser(x if signed else x.relu(), weight)
        assert same is weight
        largest = seen.abs().max()
        assert (float(quantiser.reach.detach()) == float(largest)) is (bits > 4)
        assert (float(quantiser.clip) == 1) is (bits > 4)
        if bits == 4:
            errors = [
                (quantised_activation(seen, share * largest, 4, signed) - seen).square().mean() for share in (0.3, 1.0)
            ]
            ours = (quantised_activation(seen, quantiser.reach.detach(), 4, signed) - seen).square().mean()
            assert ours < min(errors)
    quantiser = Quantiser(8, 8, True)
    quantiser.calibrates = True
    quantiser(100 * x, weight)
    assert quantiser.reach == 6
    quantiser(0 * x, weight)
    quantiser.calibrates = False
    assert quantiser(0 * x, weight)[0].abs().max() == 0


def test_a_network_computes_with_the_bits_of_its_architecture() -> None:
    """Names of weights stay; 8 bits are nearer to the floats than 4; ranges learn."""
    floats, few = tiny(()), tiny()
    eight, four = (tiny((all_, all_, "", *[all_] * 4)) for all_ in ("8888", "4448"))
    x = torch.randn(16, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(40):  # running statistics near those of the batch
            floats.train()(x)
    for network in (eight, four, few):
        missing = network.load_state_dict(floats.state_dict(), strict=False)
        assert not missing.unexpected_keys
        assert {name.split(".")[-1] for name in missing.missing_keys} == {"reach", "clip"}
        calibrate(network.eval(), x)
    with torch.no_grad():
        exact = floats.eval()(x)
        errors = [float((network(x) - exact).norm() / exact.norm()) for network in (eight, four)]
    assert 2 * errors[0] < errors[1]
    assert 0 < errors[0] < 0.1
    quantiser = few.blocks[2][0].conv_dw.quantiser
    assert (quantiser.weight_bits, quantiser.activation_bits, quantiser.signed) == (4, 6, False)
    assert (few.blocks[1][0].conv_pw.quantiser.weight_bits, few.blocks[1][0].conv_pw.quantiser.signed) == (4, True)
    assert few.conv_stem.quantiser.activation_bits is None
    few.train()(x).square().sum().backward()
    assert all(p.grad is not None for p in few.parameters())
    assert few.classifier.quantiser.reach.grad is not None


def test_quantised_layers_of_the_paper_s_chain() -> None:
    """67 convolutions and the classifier, each with two ranges; one of each learns but the stem's."""
    layers = ("k7 e6",) * 21
    with torch.device("meta"):
        network = LayerwiseNetwork(LayerChoices("proxyless", layers, bits=("8888",) * 21))
    quantisers = [module for module in network.modules() if isinstance(module, Quantiser)]
    assert len(quantisers) == 68
    weights = sum(tensor.numel() for name, tensor in network.named_parameters() if not name.endswith("reach"))
    assert weights == 5_103_336
    assert sum(1 for one in quantisers for _ in (*one.parameters(), *one.buffers())) == 136


def test_json_holds_bits_and_refuses_wrong_ones() -> None:
    architecture = LayerChoices("proxyless", LAYERS, depths=(1, 2, 1, 1, 1, 1), bits=BITS)
    assert registry.read_architecture(architecture.to_json()) == architecture
    assert "bits" not in json.loads(architecture.in_floats().to_json())
    assert "k3 e6 6846 | skip | k7 e3 8888" in str(architecture)
    value = json.loads(architecture.to_json())
    for bits, message in (
        (BITS[:-1], "bits must have a text for each of the 7 layers; got 6"),
        (("4468", "684", *BITS[2:]), r"bits\[1\] must be four of the digits 4, 6, 8; got '684'"),
        (("4468", "6845", *BITS[2:]), r"bits\[1\] must be four of the digits"),
        ((*BITS[:2], "8888", *BITS[3:]), r"bits\[2\] must be empty, as its layer is left out"),
        ((*BITS[:3], "8884", *BITS[4:]), r"bits\[3\] must not be 4 for the inputs of a depthwise kernel of 7"),
    ):
        with pytest.raises(ValueError, match=message):
            registry.read_architecture(json.dumps(value | {"bits": bits}))
