"""Cells that papers have published, as text: `genotype.PUBLISHED` holds them as genotypes.

A node is written as `op:state op:state`, nodes have `/` between; an empty node has no ops. Each entry was read from the
code named in its source, most of it the authors' own. Where that code gives the network's size, the tests compare it.
"""

from typing import NamedTuple

OPS = {
    "max": "max_pool_3x3",
    "avg": "avg_pool_3x3",
    "skip": "skip_connect",
    "sep3": "sep_conv_3x3",
    "sep5": "sep_conv_5x5",
    "sep7": "sep_conv_7x7",
    "dil3": "dil_conv_3x3",
    "dil5": "dil_conv_5x5",
    "c71": "conv_7x1_1x7",
}
_ALL = (2, 3, 4, 5)


class PublishedCell(NamedTuple):
    """A normal and a reduction cell as text, the states that they put out, and where they come from."""

    normal: str
    reduce: str
    source: str
    normal_concat: tuple[int, ...] = _ALL
    reduce_concat: tuple[int, ...] = _ALL


_QUARK = "github.com/quark0/darts cnn/genotypes.py at 8876e79"
_PC = "Xu et al., ICLR 2020 (arXiv:1907.05737); github.com/yuhuixu1993/PC-DARTS genotypes.py at 283b086"
_SNAS = "Xie et al., ICLR 2019 (arXiv:1812.09926); github.com/SNAS-Series/SNAS-Series SNAS/genotypes.py at dea7943"
_FAIR = "Chu et al., ECCV 2020 (arXiv:1911.12126); github.com/xiaomi-automl/FairDARTS fairdarts/genotypes.py at 675a0c8"
_FAIR_DROPPED = f"without its skip from state 3, which has no ops: the code's network leaves it out; {_FAIR}"
_SMOOTH = "Chen and Hsieh, ICML 2020 (arXiv:2002.05283); github.com/xiangning-chen/SmoothDARTS sota/cnn/genotypes.py"

_DRNAS = "Chen et al., ICLR 2021 (arXiv:2006.10355); github.com/xiangning-chen/DrNAS"
_SGAS = "Li et al., CVPR 2020 (arXiv:1912.00195); github.com/lightaime/sgas"

CELLS: dict[str, PublishedCell] = {
    "DARTS_V1": PublishedCell(
        "sep3:1 sep3:0 / skip:0 sep3:1 / skip:0 sep3:1 / sep3:0 skip:2",
        "max:0 max:1 / skip:2 max:0 / max:0 skip:2 / skip:2 avg:0",
        f"first order; Liu et al., arXiv:1806.09055v1; {_QUARK}",
    ),
    "DARTS_V2": PublishedCell(
        "sep3:0 sep3:1 / sep3:0 sep3:1 / sep3:1 skip:0 / skip:0 dil3:2",
        "max:0 max:1 / skip:2 max:1 / max:0 skip:2 / skip:2 max:1",
        "second order; Liu et al., ICLR 2019 (arXiv:1806.09055); "
        "github.com/yuhuixu1993/PC-DARTS genotypes.py at 283b086",
    ),
    "PC_DARTS_CIFAR": PublishedCell(
        "sep3:1 skip:0 / sep3:0 dil3:1 / sep5:0 sep3:1 / avg:0 dil3:1",
        "sep5:1 max:0 / sep5:1 sep5:2 / sep3:0 sep3:3 / sep3:1 sep3:2",
        f"found on CIFAR-10; {_PC}",
    ),
    "PC_DARTS_IMAGENET": PublishedCell(
        "skip:1 sep3:0 / sep3:0 skip:1 / sep3:1 sep3:3 / sep3:1 dil5:4",
        "sep3:0 skip:1 / dil5:2 max:1 / sep3:2 sep3:1 / sep5:0 sep3:3",
        f"found on ImageNet; {_PC}",
    ),
    "P_DARTS": PublishedCell(
        "skip:0 dil3:1 / skip:0 sep3:1 / sep3:1 sep3:3 / sep3:0 dil5:4",
        "avg:0 sep5:1 / sep3:0 dil5:2 / max:0 dil3:1 / dil3:1 dil5:3",
        "Chen et al., ICCV 2019 (arXiv:1904.12760); github.com/chenxin061/pdarts genotypes.py at b1575e1",
    ),
    "GDAS_V1": PublishedCell(
        "skip:0 skip:1 / skip:0 sep5:2 / sep3:3 skip:0 / sep5:4 sep3:3",
        "sep5:0 sep3:1 / sep5:2 sep5:1 / dil5:2 sep3:1 / sep5:0 sep5:1",
        "Dong and Yang, CVPR 2019 (arXiv:1910.04465); github.com/D-X-Y/AutoDL-Projects "
        "lib/nas_infer_model/DXYs/genotypes.py at bb2f405",
    ),
    "SNAS_MILD": PublishedCell(
        "sep3:0 sep3:1 / skip:0 dil3:1 / skip:0 skip:1 / skip:0 sep3:1",
        "max:0 max:1 / max:1 skip:2 / max:1 skip:2 / max:0 dil5:2",
        f"mild constraint; {_SNAS}",
    ),
    "SNAS_MODERATE": PublishedCell(
        "dil5:0 skip:1 / sep3:0 skip:1 / skip:0 skip:1 / sep3:0 dil5:1",
        "max:0 max:1 / sep5:0 dil5:1 / sep5:0 sep5:1 / sep5:0 sep5:1",
        f"moderate constraint; {_SNAS}",
    ),
    "FAIRDARTS_A": PublishedCell(
        "sep3:0 sep5:1 / / max:0 / sep3:0",
        "max:0 avg:1 / avg:0 dil5:1 / avg:0 sep5:1 / skip:0 skip:1",
        _FAIR,
        normal_concat=(2, 4, 5),
    ),
    "FAIRDARTS_B": PublishedCell(
        "sep3:0 sep3:1 / sep3:1 / dil3:0 sep5:1 / dil5:1",
        "skip:0 dil3:1 / skip:0 dil3:1 / max:0 sep3:1 / skip:2 max:0",
        _FAIR,
    ),
    "FAIRDARTS_C": PublishedCell(
        "max:0 sep5:1 / / dil3:0 dil5:2 / sep3:0",
        "dil3:1 dil5:0 / dil3:0 sep3:1 / sep5:0 sep5:3 / sep5:0 skip:1",
        _FAIR_DROPPED,
        normal_concat=(2, 4, 5),
    ),
    "FAIRDARTS_D": PublishedCell(
        "sep3:0 sep5:1 / dil3:1 max:0 / dil3:0 dil3:1 / sep3:0 dil5:1",
        "max:0 sep5:1 / avg:0 dil5:2 / dil3:3 avg:0 / avg:0 skip:3",
        _FAIR,
    ),
    "FAIRDARTS_E": PublishedCell(
        "sep3:0 sep3:1 / / dil3:1 dil3:2 / dil3:0 dil5:1",
        "max:1 max:0 / max:1 max:0 / sep5:1 max:0 / avg:0 dil5:1",
        _FAIR,
        normal_concat=(2, 4, 5),
    ),
    "FAIRDARTS_F": PublishedCell(
        "max:0 sep3:1 / dil3:1 / sep5:1 / sep3:0 sep3:1",
        "max:0 max:1 / max:0 dil3:1 / dil3:2 max:0 / max:0 sep3:1",
        _FAIR,
    ),
    "FAIRDARTS_G": PublishedCell(
        "sep3:0 sep3:1 / / sep5:1 / dil3:0 sep3:1",
        "avg:1 skip:0 / skip:2 max:1 / sep5:3 max:0 / dil3:1 dil3:4",
        _FAIR_DROPPED,
        normal_concat=(2, 4, 5),
    ),
    "SDARTS_RS": PublishedCell(
        "sep3:1 sep3:0 / sep5:1 skip:0 / sep3:3 skip:1 / sep3:1 dil3:2",
        "max:0 sep3:1 / skip:2 max:0 / dil5:3 max:0 / sep3:2 sep5:3",
        f"random smoothing, space s5, CIFAR-10; {_SMOOTH} at c16eed5 (c10_s5_random)",
    ),
    "SDARTS_ADV": PublishedCell(
        "sep3:0 sep3:1 / sep3:1 skip:0 / sep5:0 dil3:3 / dil3:4 skip:0",
        "max:0 sep5:1 / skip:2 max:0 / skip:3 skip:2 / skip:2 sep5:4",
        f"adversarial, space s5, CIFAR-10; {_SMOOTH} at c16eed5 (c10_s5_pgd)",
    ),
    "DRNAS_CIFAR": PublishedCell(
        "sep3:0 sep5:1 / sep3:1 sep3:2 / skip:0 sep3:1 / sep3:2 dil5:3",
        "max:0 sep5:1 / dil5:2 sep5:1 / sep5:1 dil5:3 / skip:4 sep5:1",
        f"found on CIFAR-10; {_DRNAS}",
    ),
    "DRNAS_IMAGENET": PublishedCell(
        "sep3:1 sep3:0 / sep3:0 sep3:1 / sep3:0 dil3:3 / skip:0 sep3:1",
        "max:0 sep3:1 / sep3:0 skip:2 / sep3:0 sep3:2 / sep3:3 sep3:1",
        f"found on ImageNet; {_DRNAS}",
    ),
    "SGAS_CRI1": PublishedCell(
        "sep3:0 dil3:1 / sep3:0 sep3:1 / sep5:1 sep5:3 / skip:0 dil5:2",
        "max:0 dil5:1 / sep3:0 skip:2 / sep3:1 skip:2 / max:0 max:1",
        f"criterion 1, best of ten on CIFAR-10; {_SGAS}",
    ),
    "SGAS_CRI2": PublishedCell(
        "sep3:0 sep3:1 / sep3:0 sep3:2 / max:0 sep3:3 / sep3:2 sep3:3",
        "sep3:0 max:1 / dil3:0 max:1 / max:0 sep3:2 / max:0 sep5:2",
        f"criterion 2, best of ten on CIFAR-10; {_SGAS}",
    ),
    "OLES": PublishedCell(
        "sep3:1 sep3:0 / sep5:0 sep3:1 / sep3:0 sep5:1 / sep3:0 dil3:1",
        "max:0 sep3:1 / avg:0 skip:2 / skip:2 avg:0 / skip:2 skip:3",
        "Jiang et al., NeurIPS 2023 (arXiv:2305.06409); github.com/PasaLab/oles",
    ),
    "NASNET_A": PublishedCell(
        "sep5:1 sep3:0 / sep5:0 sep3:0 / avg:1 skip:0 / avg:0 avg:0 / sep3:1 skip:1",
        "sep5:1 sep7:0 / max:1 sep7:0 / avg:1 sep5:0 / skip:3 avg:2 / sep3:2 max:1",
        f"Zoph et al., CVPR 2018 (arXiv:1707.07012), as DARTS trains it; {_QUARK}",
        normal_concat=(2, 3, 4, 5, 6),
        reduce_concat=(4, 5, 6),
    ),
    "AMOEBANET_A": PublishedCell(
        "avg:0 max:1 / sep3:0 sep5:2 / sep3:0 avg:3 / sep3:1 skip:1 / skip:0 avg:1",
        "avg:0 sep3:1 / max:0 sep7:2 / sep7:0 avg:1 / max:0 max:1 / c71:0 sep3:5",
        f"Real et al., AAAI 2019 (arXiv:1802.01548), as DARTS trains it; {_QUARK}",
        normal_concat=(4, 5, 6),
        reduce_concat=(3, 4, 6),
    ),
    "ENAS": PublishedCell(
        "sep3:1 skip:1 / sep5:1 skip:0 / avg:0 sep3:1 / sep3:0 avg:1 / sep5:1 avg:0",
        "sep5:0 sep3:1 / sep3:1 avg:1 / sep3:1 avg:1 / avg:1 sep5:4 / sep3:5 sep5:0",
        "Pham et al., ICML 2018 (arXiv:1802.03268), as FairDARTS trains it; github.com/xiaomi-automl/FairDARTS "
        "fairdarts/genotypes.py at 675a0c8",
        normal_concat=(2, 3, 4, 5, 6),
        reduce_concat=(2, 3, 4, 5, 6),
    ),
}

ALIASES = {
    "DARTS": "DARTS_V2",
    "PC_DARTS": "PC_DARTS_CIFAR",
    "DrNAS": "DRNAS_CIFAR",
    "PC_DARTS_image": "PC_DARTS_IMAGENET",
    "GDAS": "GDAS_V1",
    "SNAS": "SNAS_MILD",
    "NASNet": "NASNET_A",
    "AmoebaNet": "AMOEBANET_A",
    "ENASNet": "ENAS",
}
"""Other names in use, most of them in the authors' code."""


def read_nodes(text: str) -> list[list[tuple[str, int]]]:
    """Return the (primitive, predecessor) pairs of each node that a cell's text lists."""
    nodes = [[pair.partition(":") for pair in node.split()] for node in text.split("/")]
    return [[(OPS[op], int(state)) for op, _, state in node] for node in nodes]


SIZES: dict[str, tuple[int, int]] = {
    "DARTS_V1": (3_169_414, 500_987_520),
    "DARTS_V2": (3_349_342, 528_359_040),
    "PC_DARTS_CIFAR": (3_634_678, 556_670_592),
    "PC_DARTS_IMAGENET": (3_721_510, 570_466_944),
    "P_DARTS": (3_433_798, 532_174_464),
    "GDAS_V1": (3_368_782, 519_428_736),
    "SNAS_MILD": (2_661_382, 422_218_368),
    "SNAS_MODERATE": (2_847_358, 440_687_232),
    "FAIRDARTS_A": (2_360_782, 371_455_200),
    "FAIRDARTS_B": (3_407_878, 536_487_552),
    "FAIRDARTS_C": (2_598_814, 399_987_936),
    "FAIRDARTS_D": (3_365_542, 532_506_240),
    "FAIRDARTS_E": (2_643_742, 414_696_672),
    "FAIRDARTS_F": (3_151_054, 497_614_464),
    "FAIRDARTS_G": (2_899_054, 453_376_224),
    "SDARTS_RS": (3_606_166, 562_393_728),
    "SDARTS_ADV": (3_344_806, 526_755_456),
    "DRNAS_CIFAR": (4_099_294, 635_135_616),
    "DRNAS_IMAGENET": (4_048_750, 617_938_560),
    "SGAS_CRI1": (3_795_166, 601_653_888),
    "SGAS_CRI2": (4_094_110, 631_679_616),
    "OLES": (4_222_414, 668_423_808),
    "NASNET_A": (3_830_950, 603_452_448),
    "AMOEBANET_A": (3_145_078, 488_931_552),
    "ENAS": (4_020_166, 622_142_496),
}
"""Parameters and multiply-adds of each CIFAR-10 network (C=36, 20 cells), as `sizes.size_of` computes them."""
