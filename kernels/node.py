"""Launches over a node: its terms mixed, and their sums against its gradient."""

import triton
from torch import Tensor

from fastdarts.kernels import tiles
from fastdarts.kernels.bank import Gradients, Shared, States, finish_sums
from fastdarts.kernels.launch import launch
from fastdarts.kernels.mix import TOGETHER, mix_forward_kernel, term_sums_kernel
from fastdarts.kernels.strips import STRIP
from fastdarts.kernels.tables import SOURCE, Term, constant
from fastdarts.kernels.tiles import Tile


def strip_tiles(s: Shared, tile: Tile) -> int:
    """Tiles of whole strips, STRIP pixels below each other, that cover all outputs."""
    return triton.cdiv(s.images * triton.cdiv(s.height, STRIP.value) * s.width, tile.pixels // STRIP.value)


def saved_together(terms: list[Term]) -> int:
    """Return how many of the saved tensors, which come first, kernels load some at a time."""
    saved = sum(term[SOURCE.value] == 0 for term in terms)
    return saved - saved % TOGETHER.value


def mix(terms: list[Term], node: int, s: Shared, inputs: States, out: Tensor, weights: Tensor) -> None:
    """The node that these terms make, into its channels of `out`."""
    tile = s.tile(tiles.MIX)
    factors, op_weights = s.factors_or(weights)
    launch(
        mix_forward_kernel,
        (strip_tiles(s, tile), triton.cdiv(s.channels, tile.channels)),
        tuple(x for x, _ in inputs),
        *(out, s.saved, s.norms, weights, factors, constant(tuple(terms), out.device)),
        *(node, len(terms), saved_together(terms), s.pixels),
        **s.constants,
        C=s.channels,
        PITCH=s.pitch,
        OUT_PITCH=out.shape[1],
        STATES=tuple((pitch, *x.shape[2:]) for x, pitch in inputs),
        HO=s.height,
        WO=s.width,
        FACTORS=op_weights,
        BLOCK_P=tile.pixels,
        BLOCK_C=tile.channels,
        num_warps=tile.warps,
    )


def sum_terms(
    terms: list[Term], node: int, s: Shared, g: Gradients, inputs: States, out: Tensor, gradient: Tensor
) -> None:
    """Gradients of a node's op weights, and the coefficients of the batch norms that enter it."""
    tile = s.tile(tiles.MIX)
    if not terms:
        return
    count = strip_tiles(s, tile)
    factors, op_weights = s.factors_or(g.weights)
    sums = s.stats.new_empty((count, 2 * len(terms) if op_weights else 1 + len(terms), s.channels))
    launch(
        term_sums_kernel,
        (count, triton.cdiv(s.channels, tile.channels)),
        tuple(x for x, _ in inputs),
        *(
            out,
            s.saved,
            s.norms,
            gradient,
            factors,
            constant(tuple(terms), out.device),
            sums,
            node,
            len(terms),
            saved_together(terms),
            s.pixels,
        ),
        **s.constants,
        C=s.channels,
        PITCH=s.pitch,
        OUT_PITCH=out.shape[1],
        STATES=tuple((pitch, *x.shape[2:]) for x, pitch in inputs),
        HO=s.height,
        WO=s.width,
        FACTORS=op_weights,
        BLOCK_P=tile.pixels,
        BLOCK_C=tile.channels,
        num_warps=tile.warps,
    )
    places = [(2 * i, 2 * i + 1) if op_weights else (0, 1 + i) for i in range(len(terms))]
    finish_sums(s, g, sums, [(*at, norm, weight) for at, (_, _, norm, weight, _) in zip(places, terms, strict=True)])
