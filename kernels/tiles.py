"""Tile shapes: how many pixels and channels a program works on."""

from dataclasses import dataclass

import triton


@dataclass(frozen=True)
class Tile:
    """Pixels and channels of a tile (powers of 2), and the warps that share it."""

    pixels: int
    channels: int
    warps: int


def channel_block(channels: int) -> int:
    """At least what a matrix instruction takes, at most 64: more would not fit the registers."""
    return min(max(triton.next_power_of_2(channels), 16), 64)


def tile(channels: int, elements: int) -> Tile:
    """A tile of about `elements` elements for tensors of so many channels."""
    block = channel_block(channels)
    return Tile(elements // block, block, 8)


def per_program(image: int, tile: Tile) -> int:
    """Tiles that one program takes one after another: those of an image, so that it shares no edges with others."""
    return max(1, min(8, image // tile.pixels))


# Elements of a tile in each pass. Small enough that with 8 warps two programs' registers fit a multiprocessor.
STAGE_FORWARD = 4096
STAGE_BACKWARD = 2048
MIDDLE_BACKWARD = 4096
STATE_BACKWARD = 2048
MIX = 4096
PARTIAL_SUMS = 2048
SUM_PARTS = 256
STAGE_BACKWARD_TILES = 8  # tiles a program takes one after another: fewer parts of gradients to add up
