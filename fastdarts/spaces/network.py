"""The discrete network of any space: what is trained from scratch after a search."""

from collections.abc import Callable

from torch import nn

from fastdarts.mixed.mixed_op import Backend

Stem = Callable[[int, int], nn.Module]
"""make(in_channels, channels) -> a module from images to a tensor with so many channels."""
Head = Callable[[int, int], nn.Module]
"""make(channels, num_classes) -> a module from the last cell's output to the network's output."""


def imagenet_stem(in_channels: int, channels: int) -> nn.Module:
    """Build first layers of a search network for large images: three strided convolutions divide the sides by 8."""
    half = channels // 2
    return nn.Sequential(
        nn.Conv2d(in_channels, half, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(half),
        nn.ReLU(),
        nn.Conv2d(half, channels, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels),
    )


class DiscreteNetwork(nn.Module):
    """Base of the networks that architectures describe.

    Called with images [N, in_channels, H, W] it returns logits [N, num_classes]; in training a tuple of logits and
    auxiliary logits where it has an auxiliary head.
    """

    in_channels: int
    backend: Backend | None = None
    """Backend of its ops, see `MixedOp`; None if there are plain modules only."""
    drop_path_prob: float = 0.0
    """Probability of dropping an op for one sample in training; a schedule assigns it. Without effect in networks that
    have no drop path."""
