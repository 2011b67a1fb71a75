"""The size of a genotype's network, from shapes alone."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fastdarts.spaces.darts.discrete import EvalNetwork, count_multiply_adds, count_parameters
from fastdarts.spaces.darts.genotype import Genotype


class Size(NamedTuple):
    """Parameters without the auxiliary head, and multiply-adds of convolutions and linear layers for one image."""

    parameters: int
    multiply_adds: int


def size_of(
    genotype: Genotype,
    C: int = 36,
    num_classes: int = 10,
    layers: int = 20,
    image_shape: Sequence[int] = (3, 32, 32),
    stem: str = "cifar",
) -> Size:
    """Return the size of the network that papers report for a genotype; by default that of CIFAR-10.

    Args:
        genotype: the two cells.
        C, num_classes, layers, stem: see `EvalNetwork`; ImageNet's are 48, 1000, 14 and "imagenet".
        image_shape: [in_channels, H, W].
    """
    with torch.device("meta"):
        network = EvalNetwork(
            genotype, C, num_classes, layers, auxiliary=False, in_channels=image_shape[0], stem=stem
        ).eval()
    return Size(count_parameters(network), count_multiply_adds(network, image_shape))
