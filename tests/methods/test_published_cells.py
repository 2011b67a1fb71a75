"""The cells that the methods' papers publish have the size that their code gives them; so have the search networks."""

import pytest
import torch
from tiny_method import paper_method, paper_size

from fastdarts.spaces.darts.discrete import EvalNetwork, count_multiply_adds, count_parameters
from fastdarts.spaces.darts.genotype import PUBLISHED, Genotype

SHORT = {
    "mp": "max_pool_3x3", "ap": "avg_pool_3x3", "skip": "skip_connect", "sep3": "sep_conv_3x3", "sep5": "sep_conv_5x5",
    "dil3": "dil_conv_3x3", "dil5": "dil_conv_5x5",
}  # fmt: skip

# Normal and reduction cell as op-source pairs; weights with C=36 and 20 cells, and with the ImageNet stem, C=48 and 14.
CELLS = {
    "gdas": (
        "skip-0 skip-1 skip-0 sep5-2 sep3-3 skip-0 sep5-4 sep3-3",
        "sep5-0 sep3-1 sep5-2 sep5-1 dil5-2 sep3-1 sep5-0 sep5-1",
        (3_368_782, 4_969_216),
    ),
    "snas": (
        "sep3-0 sep3-1 skip-0 dil3-1 skip-1 skip-0 skip-0 sep3-1",
        "mp-0 mp-1 mp-1 skip-2 skip-2 mp-1 mp-0 dil5-2",
        (2_661_382, None),
    ),
    "p-darts": (
        "skip-0 dil3-1 skip-0 sep3-1 sep3-1 sep3-3 sep3-0 dil5-4",
        "ap-0 sep5-1 sep3-0 dil5-2 mp-0 dil3-1 dil3-1 dil5-3",
        (3_433_798, 4_944_352),
    ),
    "pc-darts, CIFAR": (
        "sep3-1 skip-0 sep3-0 dil3-1 sep5-0 sep3-1 ap-0 dil3-1",
        "sep5-1 mp-0 sep5-1 sep5-2 sep3-0 sep3-3 sep3-1 sep3-2",
        (3_634_678, 5_270_560),
    ),
    "pc-darts, ImageNet": (
        "skip-1 sep3-0 sep3-0 skip-1 sep3-1 sep3-3 sep3-1 dil5-4",
        "sep3-0 skip-1 dil5-2 mp-1 sep3-2 sep3-1 sep5-0 sep3-3",
        (3_721_510, 5_342_464),
    ),
    "darts-minus, 0": (
        "sep3-0 sep5-1 sep3-1 dil3-2 skip-1 sep3-0 skip-1 sep3-0",
        "sep3-0 mp-1 skip-2 mp-0 skip-2 skip-3 skip-2 skip-3",
        (3_454_318, None),
    ),
    "darts-minus, 3": (
        "sep3-0 sep3-1 sep3-0 sep3-1 sep3-0 dil5-1 skip-1 skip-0",
        "mp-0 mp-1 skip-2 sep5-0 skip-3 skip-2 skip-3 skip-2",
        (3_437_038, None),
    ),
    "sdarts-rs": (
        "sep3-1 sep3-0 sep5-1 skip-0 sep3-3 skip-1 sep3-1 dil3-2",
        "mp-0 sep3-1 skip-2 mp-0 dil5-3 mp-0 sep3-2 sep5-3",
        (3_606_166, None),
    ),
    "sdarts-adv": (
        "sep3-0 sep3-1 sep3-1 skip-0 sep5-0 dil3-3 dil3-4 skip-0",
        "mp-0 sep5-1 skip-2 mp-0 skip-3 skip-2 skip-2 sep5-4",
        (3_344_806, None),
    ),
    "dropnas": (
        "sep3-1 skip-0 sep3-1 sep3-0 sep3-1 sep3-0 dil5-4 dil3-1",
        "mp-0 sep5-1 dil5-2 sep5-1 dil5-3 dil5-2 dil5-3 dil5-4",
        (3_839_230, None),
    ),
}


def genotype(normal: str, reduce: str) -> Genotype:
    cells = []
    for text in (normal, reduce):
        pairs = [pair.split("-") for pair in text.split()]
        cells += [[(SHORT[op], int(source)) for op, source in pairs], [2, 3, 4, 5]]
    return Genotype(*cells).validated()


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("DRNAS_CIFAR", 4_099_294),
        ("DRNAS_IMAGENET", 4_048_750),
        ("SGAS_CRI1", 3_795_166),
        ("SGAS_CRI2", 4_094_110),
        ("OLES", 4_222_414),
    ],
)
def test_weights_of_cells_that_are_known_by_name(name: str, weights: int) -> None:
    with torch.device("meta"):
        assert count_parameters(EvalNetwork(PUBLISHED[name], C=36, layers=20)) == weights


@pytest.mark.parametrize("name", CELLS)
def test_weights_of_published_cells(name: str) -> None:
    normal, reduce, (cifar, imagenet) = CELLS[name]
    with torch.device("meta"):
        assert count_parameters(EvalNetwork(genotype(normal, reduce), C=36, layers=20)) == cifar
        if imagenet is not None:
            large = EvalNetwork(genotype(normal, reduce), C=48, num_classes=1000, layers=14, stem="imagenet")
            assert count_parameters(large) == imagenet


@pytest.mark.parametrize(("name", "multiply_adds"), [("p-darts", 532_174_464), ("pc-darts, CIFAR", 556_670_592)])
def test_multiply_adds_of_published_cells(name: str, multiply_adds: int) -> None:
    with torch.device("meta"):
        network = EvalNetwork(genotype(*CELLS[name][:2]), C=36, layers=20)
    assert count_multiply_adds(network, (3, 32, 32)) == multiply_adds


@pytest.mark.parametrize("name", ["daas", "gdas", "snas"])
def test_these_methods_search_in_the_network_of_darts(name: str) -> None:
    assert paper_size(paper_method(name)) == 1_930_618
