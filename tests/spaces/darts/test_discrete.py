"""The evaluation network: published counts, names, hand-written formulas, any size, drop path, bad input."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdarts import DARTS_V1, DARTS_V2, EvalNetwork, Genotype
from fastdarts.spaces.darts.discrete import (
    AuxiliaryHead,
    EvalCell,
    count_multiply_adds,
    count_parameters,
    drop_path,
    quarter_means,
)
from fastdarts.spaces.darts.genotype import FoundCell

ALL_SKIP = Genotype([("skip_connect", 0), ("skip_connect", 1)], [2], [("skip_connect", 0), ("skip_connect", 1)], [2])
UNEVEN = Genotype(  # one, three and two ops a node; the concat leaves node 3 out and puts an input out
    normal=[
        [("sep_conv_3x3", 0)],
        [("skip_connect", 0), ("dil_conv_3x3", 2), ("max_pool_3x3", 1)],
        [("none", 3), ("conv_7x1_1x7", 2)],
    ],
    normal_concat=[1, 2, 4],
    reduce=[[("avg_pool_3x3", 0), ("sep_conv_7x7", 1), ("skip_connect", 0)], [("skip_connect", 2)]],
    reduce_concat=[2, 3],
)


# Numbers measured on the published code (C=36, 20 cells on 32x32; C=48, 14 cells on 224x224).
@pytest.mark.parametrize(
    ("genotype", "stem", "parameters", "auxiliary", "multiply_adds"),
    [
        (DARTS_V2, "cifar", 3_349_342, 476_426, 528_359_040),
        (DARTS_V1, "cifar", 3_169_414, 476_426, 500_987_520),
        (DARTS_V2, "imagenet", 4_718_752, 1_260_776, 529_911_552),
        (DARTS_V1, "imagenet", 4_510_432, 1_260_776, None),
    ],
)
def test_published_counts(
    genotype: Genotype, stem: str, parameters: int, auxiliary: int, multiply_adds: int | None
) -> None:
    sizes = {"cifar": (36, 10, 20, 32), "imagenet": (48, 1000, 14, 224)}
    C, classes, layers, size = sizes[stem]
    with torch.device("meta"):
        network = EvalNetwork(genotype, C=C, num_classes=classes, layers=layers, stem=stem)
    assert count_parameters(network) == parameters
    assert sum(weight.numel() for weight in network.parameters()) == parameters + auxiliary
    if multiply_adds is not None:
        assert count_multiply_adds(network, (3, size, size)) == multiply_adds


def test_multiply_adds_leave_the_network_as_it_was() -> None:
    network = EvalNetwork(DARTS_V2, C=4, layers=3).train()
    count_multiply_adds(network, (3, 16, 16))
    assert network.training
    assert all(weight.device.type == "cpu" for weight in network.parameters())


def norm(name: str, C: int) -> dict[str, list[int]]:
    vectors = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{vector}": [C] for vector in vectors} | {f"{name}.num_batches_tracked": []}


def test_names_are_the_originals() -> None:
    genotype = Genotype(
        normal=[("sep_conv_3x3", 0), ("skip_connect", 1)],
        normal_concat=[2],
        reduce=[("skip_connect", 0), ("dil_conv_5x5", 1)],
        reduce_concat=[2],
    )
    network = EvalNetwork(genotype, C=2, num_classes=3, layers=3, in_channels=1)
    expected = {
        "stem.0.weight": [6, 1, 3, 3],
        **norm("stem.1", 6),
        # cell 0, normal, 2 channels
        "cells.0.preprocess0.op.1.weight": [2, 6, 1, 1],
        **norm("cells.0.preprocess0.op.2", 2),
        "cells.0.preprocess1.op.1.weight": [2, 6, 1, 1],
        **norm("cells.0.preprocess1.op.2", 2),
        "cells.0._ops.0.op.1.weight": [2, 1, 3, 3],
        "cells.0._ops.0.op.2.weight": [2, 2, 1, 1],
        **norm("cells.0._ops.0.op.3", 2),
        "cells.0._ops.0.op.5.weight": [2, 1, 3, 3],
        "cells.0._ops.0.op.6.weight": [2, 2, 1, 1],
        **norm("cells.0._ops.0.op.7", 2),
        # cell 1, reduction, 4 channels
        "cells.1.preprocess0.op.1.weight": [4, 6, 1, 1],
        **norm("cells.1.preprocess0.op.2", 4),
        "cells.1.preprocess1.op.1.weight": [4, 2, 1, 1],
        **norm("cells.1.preprocess1.op.2", 4),
        "cells.1._ops.0.conv_1.weight": [2, 4, 1, 1],
        "cells.1._ops.0.conv_2.weight": [2, 4, 1, 1],
        **norm("cells.1._ops.0.bn", 4),
        "cells.1._ops.1.op.1.weight": [4, 1, 5, 5],
        "cells.1._ops.1.op.2.weight": [4, 4, 1, 1],
        **norm("cells.1._ops.1.op.3", 4),
        # cell 2, reduction after a reduction, 8 channels
        "cells.2.preprocess0.conv_1.weight": [4, 2, 1, 1],
        "cells.2.preprocess0.conv_2.weight": [4, 2, 1, 1],
        **norm("cells.2.preprocess0.bn", 8),
        "cells.2.preprocess1.op.1.weight": [8, 4, 1, 1],
        **norm("cells.2.preprocess1.op.2", 8),
        "cells.2._ops.0.conv_1.weight": [4, 8, 1, 1],
        "cells.2._ops.0.conv_2.weight": [4, 8, 1, 1],
        **norm("cells.2._ops.0.bn", 8),
        "cells.2._ops.1.op.1.weight": [8, 1, 5, 5],
        "cells.2._ops.1.op.2.weight": [8, 8, 1, 1],
        **norm("cells.2._ops.1.op.3", 8),
        "auxiliary_head.features.2.weight": [128, 8, 1, 1],
        **norm("auxiliary_head.features.3", 128),
        "auxiliary_head.features.5.weight": [768, 128, 2, 2],
        **norm("auxiliary_head.features.6", 768),
        "auxiliary_head.classifier.weight": [3, 768],
        "auxiliary_head.classifier.bias": [3],
        "classifier.weight": [3, 8],
        "classifier.bias": [3],
    }
    assert {name: list(tensor.shape) for name, tensor in network.state_dict().items()} == expected
    network.load_state_dict({name: torch.zeros(shape) for name, shape in expected.items()}, strict=True)


def test_names_of_the_imagenet_stem_and_head() -> None:
    names = EvalNetwork(ALL_SKIP, C=4, layers=1, stem="imagenet").state_dict().keys()
    assert {name for name in names if name.startswith(("stem", "auxiliary_head")) and name.endswith("weight")} == {
        "stem0.0.weight",
        "stem0.1.weight",
        "stem0.3.weight",
        "stem0.4.weight",
        "stem1.1.weight",
        "stem1.2.weight",
        "auxiliary_head.features.2.weight",
        "auxiliary_head.features.3.weight",
        "auxiliary_head.features.5.weight",  # and no norm behind it: the original's typo
        "auxiliary_head.classifier.weight",
    }
    assert "cells.0.preprocess0.conv_1.weight" in names


# Formulas of their own: convolution as a sum over kernel taps of shifted, zero-padded images.
def conv(x: Tensor, weight: Tensor, stride: int = 1, dilation: int = 1, depthwise: bool = False) -> Tensor:
    kernel = weight.shape[-1]
    pad = dilation * (kernel - 1) // 2
    height, width = (math.ceil(side / stride) for side in x.shape[2:])
    padded = F.pad(x, [pad] * 4)
    y: Tensor | float = 0.0
    for i in range(kernel):
        for j in range(kernel):
            rows = torch.arange(height) * stride + i * dilation
            columns = torch.arange(width) * stride + j * dilation
            tap = padded[:, :, rows][:, :, :, columns]
            tap_weight = weight[:, :, i, j]
            y = y + (
                tap * tap_weight.view(1, -1, 1, 1) if depthwise else torch.einsum("nchw,kc->nkhw", tap, tap_weight)
            )
    assert isinstance(y, Tensor)
    return y


def normalise(x: Tensor, bn: nn.BatchNorm2d) -> Tensor:
    """Batch norm in train mode: statistics of the batch, biased variance."""
    mean = x.mean((0, 2, 3), keepdim=True)
    deviation = ((x - mean).square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
    return (x - mean) / deviation * bn.weight.view(1, -1, 1, 1) + bn.bias.view(1, -1, 1, 1)


def pool(x: Tensor, stride: int, mode: str) -> Tensor:
    y = torch.empty(*x.shape[:2], *(math.ceil(side / stride) for side in x.shape[2:]), dtype=x.dtype)
    for i in range(y.shape[2]):
        for j in range(y.shape[3]):
            top, left = i * stride - 1, j * stride - 1
            window = x[:, :, max(top, 0) : top + 3, max(left, 0) : left + 3]
            y[:, :, i, j] = window.amax((2, 3)) if mode == "max" else window.mean((2, 3))
    return y


def sep_conv(x: Tensor, op: nn.Module, stride: int) -> Tensor:
    parts = op.op
    for first, s in ((1, stride), (5, 1)):
        x = conv(x.clamp(min=0), parts[first].weight, s, depthwise=True)
        x = normalise(conv(x, parts[first + 1].weight), parts[first + 2])
    return x


def dil_conv(x: Tensor, op: nn.Module, stride: int) -> Tensor:
    x = conv(x.clamp(min=0), op.op[1].weight, stride, dilation=2, depthwise=True)
    return normalise(conv(x, op.op[2].weight), op.op[3])


def reduce_by_halves(x: Tensor, op: nn.Module) -> Tensor:
    x = x.clamp(min=0)
    x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    halves = [conv(x[:, :, ::2, ::2], op.conv_1.weight), conv(x[:, :, 1::2, 1::2], op.conv_2.weight)]
    return normalise(torch.cat(halves, 1), op.bn)


def relu_conv_bn(x: Tensor, op: nn.Module) -> Tensor:
    return normalise(conv(x.clamp(min=0), op.op[1].weight), op.op[2])


def randomised(module: nn.Module) -> nn.Module:
    module.double()
    for weight in module.parameters():
        nn.init.normal_(weight)
    return module


def test_normal_cell_equals_formula() -> None:
    genotype = Genotype(
        normal=[
            ("sep_conv_5x5", 1),
            ("skip_connect", 0),
            ("dil_conv_3x3", 2),
            ("avg_pool_3x3", 0),
            ("max_pool_3x3", 3),
            ("none", 2),
        ],
        normal_concat=[4, 2],
        reduce=DARTS_V2.reduce,
        reduce_concat=[2],
    )
    cell = randomised(EvalCell(genotype.cell(0, reduction=False), 6, 5, 4, reduction=False, reduction_prev=True))
    s0, s1 = torch.randn(3, 6, 13, 9, dtype=torch.float64), torch.randn(3, 5, 7, 5, dtype=torch.float64)
    a, b = reduce_by_halves(s0, cell.preprocess0), relu_conv_bn(s1, cell.preprocess1)
    node2 = sep_conv(b, cell._ops[0], 1) + a
    node3 = dil_conv(node2, cell._ops[2], 1) + pool(a, 1, "avg")
    node4 = pool(node3, 1, "max")
    torch.testing.assert_close(cell(s0, s1, 0.0), torch.cat([node4, node2], 1), rtol=1e-10, atol=1e-10)


def test_reduction_cell_equals_formula() -> None:
    genotype = Genotype(
        normal=DARTS_V2.normal,
        normal_concat=[2],
        reduce=[
            ("skip_connect", 0),
            ("dil_conv_5x5", 1),
            ("sep_conv_3x3", 0),
            ("skip_connect", 2),
            ("max_pool_3x3", 1),
            ("avg_pool_3x3", 0),
        ],
        reduce_concat=[2, 3, 4],
    )
    cell = randomised(EvalCell(genotype.cell(0, reduction=True), 3, 5, 4, reduction=True, reduction_prev=False))
    s0, s1 = torch.randn(2, 3, 9, 6, dtype=torch.float64), torch.randn(2, 5, 9, 6, dtype=torch.float64)
    a, b = relu_conv_bn(s0, cell.preprocess0), relu_conv_bn(s1, cell.preprocess1)
    node2 = reduce_by_halves(a, cell._ops[0]) + dil_conv(b, cell._ops[1], 2)
    node3 = sep_conv(a, cell._ops[2], 2) + node2
    node4 = pool(b, 2, "max") + pool(a, 2, "avg")
    torch.testing.assert_close(cell(s0, s1, 0.0), torch.cat([node2, node3, node4], 1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("stem", "size", "stride"), [("cifar", (8, 8), 3), ("imagenet", (7, 7), 2)], ids=["cifar", "imagenet"]
)
def test_auxiliary_head_equals_formula_at_the_originals_size(stem: str, size: tuple[int, int], stride: int) -> None:
    head = randomised(AuxiliaryHead(6, 3, stem))
    x = torch.randn(4, 6, *size, dtype=torch.float64)
    pooled = torch.stack(
        [x.clamp(min=0)[:, :, i : i + 5, j : j + 5].mean((2, 3)) for i in (0, stride) for j in (0, stride)],
        dim=-1,
    ).unflatten(-1, (2, 2))
    features = head.features
    y = normalise(conv(pooled, features[2].weight), features[3]).clamp(min=0)
    y = torch.einsum("ncij,kcij->nk", y, features[5].weight)
    if stem == "cifar":
        y = normalise(y[:, :, None, None], features[6])[:, :, 0, 0]
    y = y.clamp(min=0) @ head.classifier.weight.T + head.classifier.bias
    torch.testing.assert_close(head(x), y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("genotype", [DARTS_V2, UNEVEN, ALL_SKIP], ids=["DARTS_V2", "uneven", "all_skip"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize(
    ("channels", "size"),
    [(3, (1, 1)), (1, (2, 3)), (3, (7, 5)), (1, (8, 8)), (4, (28, 28)), (3, (33, 18)), (3, (64, 96))],
    ids=str,
)
def test_any_size(genotype: Genotype, stem: str, channels: int, size: tuple[int, int]) -> None:
    network = EvalNetwork(genotype, C=4, num_classes=5, layers=3, in_channels=channels, stem=stem)
    x = torch.randn(2, channels, *size)
    logits, auxiliary = network.train()(x)
    assert logits.shape == auxiliary.shape == (2, 5)
    (logits.sum() + auxiliary.sum()).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in network.parameters())
    with torch.no_grad():
        assert network.eval()(x).shape == (2, 5)


@pytest.mark.parametrize("layers", range(1, 7))
def test_any_depth(layers: int) -> None:
    network = EvalNetwork(DARTS_V1, C=4, layers=layers)
    logits, auxiliary = network(torch.randn(2, 3, 8, 8))
    assert logits.shape == auxiliary.shape == (2, 10)
    assert EvalNetwork(DARTS_V1, C=4, layers=layers, auxiliary=False)(torch.randn(2, 3, 8, 8)).shape == (2, 10)


def test_uneven_genotype_is_what_it_says() -> None:
    cell = EvalCell(UNEVEN.cell(0, reduction=False), 6, 6, 4, reduction=False, reduction_prev=False)
    assert cell.out_channels == 12
    preprocessing = 2 * (6 * 4 + 2 * 4)
    sep3, dil3 = 2 * (9 * 4 + 16 + 8), 9 * 4 + 16 + 8
    factored = 2 * 7 * 16 + 8
    assert count_parameters(cell) == preprocessing + sep3 + dil3 + factored
    assert Genotype.from_json(UNEVEN.to_json()) == UNEVEN


def test_drop_path_keeps_the_mean() -> None:
    probability, draws = 0.3, 10_000
    dropped, kept = drop_path(torch.tensor([[probability], [0.0]]), draws)
    torch.testing.assert_close(dropped.unique(), torch.tensor([0, 1 / (1 - probability)]))
    # each draw is 0 or 1/(1-p) with mean 1 and variance p/(1-p); three standard errors of the mean
    assert abs(dropped.mean() - 1) < 3 * math.sqrt(probability / (1 - probability) / draws)
    assert torch.equal(kept, torch.ones(draws))


def test_drop_path_in_a_cell() -> None:
    """Each op but the identity is dropped on its own: four equal ops give a binomial number of survivors."""
    ops = [("max_pool_3x3", 0), ("avg_pool_3x3", 1), ("max_pool_3x3", 1), ("skip_connect", 0), ("avg_pool_3x3", 0)]
    cell = EvalCell(FoundCell([ops], [2]), 2, 2, 2, reduction=False, reduction_prev=False)
    cell.preprocess0 = cell.preprocess1 = nn.Identity()
    ones = torch.ones(2500, 2, 4, 4)
    survivors = (cell(ones, ones, 0.5)[:, 0, 0, 0] - 1) / 2  # the skip gives 1, a survivor 1 / (1 - 0.5)
    counts = torch.bincount(survivors.long(), minlength=5)
    expected = torch.tensor([math.comb(4, k) / 16 for k in range(5)])
    spread = (expected * (1 - expected) * 2500).sqrt()
    assert ((counts - 2500 * expected).abs() < 4 * spread).all(), counts
    assert torch.equal(cell.eval()(ones, ones, 0.5), torch.full_like(ones, 5))


def test_drop_path_of_skips() -> None:
    """At stride 1 a skip is an identity and stays; at stride 2 it is a factorised reduction and is dropped."""
    normal = EvalCell(ALL_SKIP.cell(0, reduction=False), 4, 4, 4, reduction=False, reduction_prev=False)
    x = torch.randn(64, 4, 4, 4)
    assert torch.equal(normal(x, x, 0.9), normal(x, x, 0.0))
    reduction = EvalCell(ALL_SKIP.cell(0, reduction=True), 4, 4, 4, reduction=True, reduction_prev=False)
    zeros = (reduction(x, x, 0.9) == 0).flatten(1).all(1).sum()
    assert 30 < zeros < 64  # 64 samples, both ops dropped with 0.81: 52 expected, standard deviation 3.1


def test_evaluation_is_deterministic_and_follows_no_drop_path() -> None:
    network = EvalNetwork(DARTS_V2, C=4, layers=3, drop_path_prob=0.9).eval()
    x = torch.randn(3, 3, 9, 9)
    with torch.no_grad():
        first = network(x)
        network.drop_path_prob = 0.0
        assert torch.equal(first, network(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"C": 5, "stem": "imagenet"}, "C_out must be even.*got 5"),
        ({"C": 0}, "C must be at least 1; got 0"),
        ({"layers": 0}, "layers must be at least 1; got 0"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"stem": "resnet"}, "stem must be one of cifar, imagenet, or make.*; got 'resnet'"),
        ({"drop_path_prob": 1.0}, r"drop_path_prob must be in \[0, 1\); got 1.0"),
        (
            {"genotype": DARTS_V2._replace(normal=[("warp", 0), ("skip_connect", 1)])},
            "unknown primitive 'warp'; allowed",
        ),
        ({"genotype": DARTS_V2._replace(reduce=[("skip_connect", 0), ("skip_connect", 2)])}, "predecessor.* in 0..1"),
        ({"genotype": DARTS_V2._replace(normal=DARTS_V2.normal[:3])}, "genotype.normal must hold two .* pairs a node"),
        ({"genotype": DARTS_V2._replace(normal=[[]])}, "genotype.normal must hold two .* pairs a node"),
        ({"genotype": DARTS_V2._replace(normal_concat=[2, 6])}, r"normal_concat must name distinct states of 0..5"),
        ({"genotype": DARTS_V2._replace(reduce_concat=[])}, "reduce_concat must name distinct states"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvalNetwork(**({"genotype": DARTS_V2} | arguments))


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (3, 8, 8), (0, 3, 8, 8)], ids=str)
def test_bad_input(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[N, 3, H, W\]"):
        EvalNetwork(DARTS_V2, C=4, layers=1)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "keys normal, normal_concat, reduce, reduce_concat"),
        (json.dumps(DARTS_V2._asdict() | {"normal": [["skip_connect"]]}), r"list of \[primitive, predecessor\] pairs"),
        (json.dumps(DARTS_V2._asdict() | {"normal": [["skip_connect", "0"], ["skip_connect", 1]]}), "pairs"),
        (json.dumps(DARTS_V2._asdict() | {"reduce": [[["skip_connect", 0]], ["skip_connect", 1]]}), "pairs"),
        (json.dumps(DARTS_V2._asdict() | {"reduce": 3}), "genotype.reduce must be a list"),
        (json.dumps(DARTS_V2._asdict() | {"reduce_concat": 3}), "genotype.reduce_concat must be a list"),
    ],
    ids=["json", "object", "pair", "number", "mixed", "cell", "concat"],
)
def test_bad_genotype_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "genotype.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        Genotype.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 2), (4, 5), (7, 1), (9, 8)])
def test_means_of_quarters(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(quarter_means(x), F.adaptive_avg_pool2d(x, 2))
