"""The chains of ProxylessNAS, FBNet and FairNAS: sizes, timm's networks of the same blocks, one-hot op weights."""

import json
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from fastdarts.spaces import registry
from fastdarts.spaces.group import Choice
from fastdarts.spaces.layerwise.architecture import LayerChoices
from fastdarts.spaces.layerwise.blocks import ACTIVATIONS
from fastdarts.spaces.layerwise.chain import CHAINS, SKIP, parse_block
from fastdarts.spaces.layerwise.discrete import LayerwiseNetwork, block_strings
from fastdarts.spaces.layerwise.published import PUBLISHED
from fastdarts.spaces.layerwise.supernet import LayerwiseSupernet


def parameters(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def paper_supernet(space: str) -> LayerwiseSupernet:
    chain = CHAINS[space]
    with torch.device("meta"):
        return LayerwiseSupernet(space, chain, C=chain.stem, num_classes=1000, layers=4, in_channels=3)


def small(space: str = "proxyless", **arguments: object) -> LayerwiseSupernet:
    given = {"C": 8, "num_classes": 3, "layers": 2, "in_channels": 1} | arguments
    return registry.find(space).supernet(**registry.find(space).arguments(), **given).double()


@pytest.mark.parametrize(
    ("space", "weights", "alphas"),
    [
        ("proxyless", 16_034_168, {"optional": (15, 7), "fixed": (6, 6)}),
        ("fbnet", 13_286_008, {"layers": (22, 9)}),
        ("fairnas", 15_992_600, {"layers": (19, 6)}),
    ],
)
def test_supernets_have_the_published_sizes(space: str, weights: int, alphas: dict[str, tuple[int, int]]) -> None:
    network = paper_supernet(space)
    assert parameters(network) == weights
    assert {name: tuple(alpha.shape) for name, alpha in network.alphas.items()} == alphas


def test_stages_that_learn_the_maps_of_efficientnet_b7_have_the_published_sizes() -> None:
    space = registry.find("dna")
    ends = (48, 80, 160, 224, 384, 640)
    with torch.device("meta"):
        network = space.supernet(**space.arguments(), C=32, num_classes=1000, layers=4, in_channels=3, ends=ends)
    sizes = [sum(map(parameters, layers)) for layers in network.stages()]
    assert sizes == [111_372, 663_180, 2_188_320, 4_844_424, 12_371_952, 12_954_432]
    assert parameters(network) == 35_238_816
    with pytest.raises(ValueError, match="ends must be 6 integers of at least 1, for each stage"):
        space.supernet(**space.arguments(), C=32, num_classes=2, layers=4, in_channels=3, ends=ends[1:])


@pytest.mark.parametrize("space", ["dna", "proxyless"])
def test_what_is_handed_over_is_what_the_next_stage_reads(space: str) -> None:
    torch.manual_seed(0)
    network, seen = small(space, ends=(5, 6, 7, 8, 9, 10)), []
    x = torch.randn(2, 1, 32, 32, dtype=torch.float64)
    plain = network(x)

    def hand(stage: int, y: Tensor) -> Tensor:
        seen.append((stage, y.shape[1]))
        return torch.zeros_like(y) if stage == 5 else y

    network.handing = hand
    assert not torch.equal(network(x), plain)
    assert seen == [(stage, 5 + stage) for stage in range(6)]
    assert torch.equal(network(x)[0], network(-x)[1])  # all that was read before is forgotten


@pytest.mark.parametrize(("block", "weights"), [("k7 e6", 5_103_336), ("k3 e3", 3_191_928), (SKIP, 2_154_984)])
def test_chains_of_one_block(block: str, weights: int) -> None:
    layers = [block if block in layer.choices else "k3 e3" for layer in CHAINS["proxyless"].layers()]
    with torch.device("meta"):
        assert parameters(LayerwiseNetwork(LayerChoices("proxyless", tuple(layers)))) == weights


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("FBNet-A", 4_321_464),
        ("FBNet-B", 4_863_288),
        ("FBNet-C", 5_572_200),
        ("FairNAS-A", 4_651_352),
        ("FairNAS-B", 4_506_272),
        ("FairNAS-C", 4_397_864),
    ],
)
def test_published_networks(name: str, weights: int) -> None:
    with torch.device("meta"):
        assert parameters(LayerwiseNetwork(PUBLISHED[name])) == weights
    assert registry.load_architecture(name) == PUBLISHED[name]


@pytest.mark.parametrize(
    "architecture",
    [
        PUBLISHED["FBNet-C"],
        PUBLISHED["FairNAS-A"],
        LayerChoices("fbnet", tuple("k5 e3" if layer.keeps_shape else SKIP for layer in CHAINS["fbnet"].layers())),
        LayerChoices("proxyless", tuple(layer.choices[-1] for layer in CHAINS["proxyless"].layers())),
        LayerChoices("dna", tuple(layer.choices[at % 6] for at, layer in enumerate(CHAINS["dna"].layers()))),
    ],
    ids=["fbnet-c", "fairnas-a", "convolutions that skip", "left-out layers", "squeeze and excitation"],
)
def test_timm_computes_the_same_logits_from_the_same_weights(architecture: LayerChoices) -> None:
    efficientnet = pytest.importorskip("timm.models.efficientnet", reason="timm is not installed")
    builder = pytest.importorskip("timm.models._efficientnet_builder")
    chain = architecture.chain()
    ours = LayerwiseNetwork(architecture, num_classes=5).eval()
    theirs = efficientnet.EfficientNet(
        builder.decode_arch_def(block_strings(architecture)),
        num_classes=5,
        stem_size=chain.stem,
        fix_stem=True,
        num_features=chain.head,
        act_layer=ACTIVATIONS[chain.activation],
        norm_layer=partial(nn.BatchNorm2d, eps=chain.eps),
    ).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("space", CHAINS)
def test_one_hot_op_weights_make_the_discrete_network(space: str) -> None:
    torch.manual_seed(0)
    supernet = small(space)
    architecture = supernet.random(torch.Generator().manual_seed(1))
    network = supernet.cut(architecture)
    x = torch.randn(4, 1, 16, 16, dtype=torch.float64)
    supernet.train()
    network.train()
    network.dropout = 0.0
    with supernet.mixing(supernet.mixes_of(architecture)):
        torch.testing.assert_close(supernet(x), network(x), rtol=1e-12, atol=1e-12)


def test_the_sum_of_a_layer_and_its_alpha_gradients() -> None:
    """A layer is x plus the weighted blocks; "skip" adds nothing and its op weight gets the gradient 0."""
    torch.manual_seed(0)
    layer = small().layers[1].eval()
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    weights = torch.rand(7, dtype=torch.float64, requires_grad=True)
    expected = x + sum(w * op(x) for w, op in zip(weights[:6], layer._ops, strict=False))
    torch.testing.assert_close(layer(x, weights), expected)
    (gradient,) = torch.autograd.grad(layer(x, weights).square().sum(), weights)
    assert gradient[:6].abs().min() > 0
    assert gradient[6] == 0
    torch.testing.assert_close(layer(x, weights, active=[6]), x)


def test_a_layer_that_changes_the_shape_must_run_a_block() -> None:
    layer = small().layers[0]
    with pytest.raises(ValueError, match="active must name a block"):
        layer(torch.randn(1, 4, 4, 4, dtype=torch.float64), torch.ones(6), active=[])


def test_derivation_takes_each_layers_strongest_choice() -> None:
    supernet = small()
    scores = {name: torch.zeros(group.shape) for name, group in supernet.groups.items()}
    scores["fixed"][:, 2] = 1
    scores["optional"][:, 6] = torch.linspace(0.1, 1, len(scores["optional"]))
    scores["optional"][:, 4] = 0.05
    found = supernet.derive(scores)
    assert [name for name in found.layers if name != SKIP] == ["k5 e3"] * 6
    assert found.skips() == 5
    limited = supernet.derive(scores, Choice(max_skips=2))
    assert limited.skips() == 2
    optional = [name for name, layer in zip(limited.layers, limited.chain().layers(), strict=True) if layer.keeps_shape]
    assert optional == ["k7 e3", "k7 e3", "k7 e3", SKIP, SKIP]


def test_json_holds_all_that_the_network_needs() -> None:
    space = registry.find("proxyless", None, {"strides": [1, 1, 1, 2, 1, 2, 1], "widths": [8, 12, 16, 20, 24, 28]})
    supernet = space.supernet(**space.arguments(), C=8, num_classes=2, layers=1, in_channels=3)
    found = supernet.random(torch.Generator().manual_seed(0))
    assert json.loads(found.to_json())["depths"] == [1] * 6
    assert registry.read_architecture(found.to_json()) == found
    assert found.chain().strides == (1, 1, 1, 2, 1, 2, 1)
    assert tuple(space.discrete(found, C=8, num_classes=2, in_channels=3)(torch.randn(2, 3, 8, 8)).shape) == (2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"space": "proxyles"}, "did you mean"),
        ({"layers": ["k3 e3"]}, "layers must name a block for each of the 21 layers; got 1"),
        ({"layers": ["k9 e3"] * 21}, r"layers\[0\] must be one of k3 e3, .*; got 'k9 e3'"),
        ({"strides": [1, 2]}, "strides must be 7 integers from 1 to 2"),
        ({"widths": "wide"}, "widths must be a list of integers"),
        ({"kernel": 3}, "genotype has the key 'kernel'"),
    ],
)
def test_wrong_json_is_refused(change: dict[str, object], message: str) -> None:
    value = {"space": "proxyless", "layers": ["k3 e3"] * 21} | change
    with pytest.raises(ValueError, match=message):
        registry.read_architecture(json.dumps(value))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": [0, 1, 1, 1, 1, 1]}, "depths must be 6 integers of at least 1, for each stage"),
        ({"strides": [1, 3, 1, 1, 1, 1, 1]}, "strides must be 7 integers from 1 to 2, for the stem and each stage"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        registry.find("proxyless", None, options)


def test_the_candidates_can_be_chosen() -> None:
    space = registry.find("proxyless", ["k3 e3", "k5 e6"])
    assert space.groups["layers"].shape == (21, 2)
    with pytest.raises(ValueError, match="primitives must be among"):
        registry.find("fairnas", ["k3 e3", SKIP])
    with pytest.raises(ValueError, match="besides 'skip'"):
        registry.find("proxyless", [SKIP])


@pytest.mark.parametrize("name", ["k4 e3", "k3", "k3 e0", "e3 k3", "k3 e3 g0"])
def test_a_block_name_must_have_the_form(name: str) -> None:
    with pytest.raises(ValueError, match="a block must be named like"):
        parse_block(name)


def test_small_images_keep_their_size_longer() -> None:
    for dataset, side in (("cifar10", 8), ("digits", 2)):
        options = registry.find("proxyless").search_defaults(dataset)["space_options"]
        image = {"cifar10": 32, "digits": 8}[dataset]
        assert CHAINS["proxyless"].changed(options["strides"]).smallest_side(image) == side


def test_pictures() -> None:
    space = registry.find("fbnet")
    svg = space.svg(PUBLISHED["FBNet-A"])
    assert svg.count("<rect") == 1 + 22 + 2
    assert ">k5 e1 g2<" in svg
    assert space.png(PUBLISHED["FBNet-A"]).startswith(b"\x89PNG")


def test_logits_do_not_depend_on_the_memory_format() -> None:
    torch.manual_seed(0)
    network = small(backend="reference").eval()
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    plain: Tensor = network(x)
    network.backend = "auto"
    torch.testing.assert_close(network(x), plain, rtol=1e-12, atol=1e-12)
