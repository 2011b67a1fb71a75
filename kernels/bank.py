"""Launches over a bank: everything that leaves one state at one stride, forward and backward."""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from fastdarts.kernels import tiles
from fastdarts.kernels.backward import stage_backward_kernel
from fastdarts.kernels.joins import join_gradients_kernel, sum_parts_kernel
from fastdarts.kernels.launch import (
    accumulator,
    dot_type,
    launch,
    padded_channels,
)
from fastdarts.kernels.mix import finish_sums_kernel
from fastdarts.kernels.pools import pool_backward_kernel
from fastdarts.kernels.reduction import reduction_backward_kernel
from fastdarts.kernels.stage import join_moments_kernel, stage_forward_kernel
from fastdarts.kernels.tables import TAPS, Bank, Stage, constant, geometries, stage_rows

Image = tuple[Tensor, int]  # [N, C, H, W] and the elements from pixel to pixel


@dataclass(frozen=True)
class Shared:
    """What all banks of a call work with."""

    dw: Tensor  # flat depthwise weights, [taps, C], in the compute type
    pw: Tensor  # flat pointwise weights, as stored
    saved: Tensor  # [tensors, pixels, padded channels]
    stats: Tensor  # [norms, 2, C]
    images: int
    channels: int
    height: int  # of the outputs
    width: int
    training: bool
    eps: float

    @property
    def pixels(self) -> int:
        return self.images * self.height * self.width

    @property
    def pitch(self) -> int:
        return padded_channels(self.channels, self.saved.dtype)

    def tile(self, name: str) -> tiles.Tile:
        """Of a pass over the outputs."""
        return tiles.tile(self.channels, self.height * self.width, self.saved.dtype, name)

    def chunk(self, elements: int, tile: tiles.Tile) -> int:
        """Whole images of about so many elements, which a program takes."""
        return min(max(elements // (self.height * self.width * tile.channels), 1), self.images)

    @property
    def constants(self) -> dict[str, Any]:
        return {"EPS": self.eps, "ACC": accumulator(self.saved.dtype)}


def flat(params: list[Tensor], dtype: torch.dtype, like: Tensor) -> Tensor:
    """Parameters one after another: what they give when they are viewed as rows."""
    if not params:
        return like.new_empty((1, 1), dtype=dtype)
    return (torch.cat(params) if len(params) > 1 else params[0].contiguous()).to(dtype)


def banks_forward(banks: list[tuple[Bank, Image]], s: Shared) -> None:
    """First stages and pools of each, then all second stages: y into `saved`, moments into `stats`."""
    for bank, x in banks:
        _stages_forward(bank.firsts, s, x, bank.stride, normalised=False)
    seconds = [second for bank, _ in banks for second in bank.seconds]
    if seconds:
        _stages_forward(seconds, s, banks[0][1], 1, normalised=True)


def _stages_forward(stages: list[Stage], s: Shared, x: Image, stride: int, normalised: bool) -> None:
    if not stages:
        return
    shape = _input_shape(s, x, normalised)
    tile = s.tile(tiles.STAGE_FORWARD)
    images = s.chunk(tiles.FORWARD_CHUNK, tile)
    count = triton.cdiv(s.images, images)
    rows, _, groups = stage_rows(stages, x[0].device)
    chunk = images * s.height * s.width
    parts = count * triton.cdiv(chunk, tile.pixels)
    moments = s.stats.new_empty((len(stages) if s.training else 0, parts, 2, s.channels))
    grid = count, len(groups), triton.cdiv(s.channels, tile.channels)
    d = s.saved  # not read: d stands where y will
    if grid[2] > 1 and any(stage.geometry in TAPS for stage in stages):
        d = s.saved.new_empty((grid[2], len(groups), s.pixels, s.pitch))
    launch(
        stage_forward_kernel,
        grid,
        *(x[0], s.saved, d, s.dw, s.pw, s.stats, moments, rows, groups, s.pixels),
        **shape,
        **s.constants,
        STRIDE=stride,
        GEOMETRIES=geometries(stages, normalised),
        NORMALISED=normalised,
        TRAINING=s.training,
        IMAGES=images,
        BLOCK_P=tile.pixels,
        BLOCKS=tile.blocks(s.saved.dtype),
        BLOCK_I=tiles.channel_block(shape["C_IN"]),
        BLOCK_O=tile.channels,
        DOT=dot_type(s.saved.dtype),
        num_warps=tile.warps,
    )
    if s.training:  # every edge of a pool has a batch norm of its own, with the same statistics
        pairs = [(i, n) for i, st in enumerate(stages) for n in ([e[2] for e in st.edges] or [st.norm])]
        launch(
            join_moments_kernel,
            (len(pairs), triton.cdiv(s.channels, tile.channels)),
            *(moments, s.stats, constant(tuple(pairs), x[0].device), s.pixels, parts),
            C=s.channels,
            CHUNK=chunk,
            BLOCK_P=tile.pixels,
            BLOCK_T=tiles.PARTIAL_SUMS // tile.channels,
            BLOCK_C=tile.channels,
            ACC=s.constants["ACC"],
            num_warps=4,
        )


def _input_shape(s: Shared, x: Image, normalised: bool) -> dict[str, int]:
    """Sizes of what stages read: the state, or with `normalised` a saved tensor."""
    if normalised:
        c, h, w, pitch = s.channels, s.height, s.width, s.pitch
    else:
        (_, c, h, w), pitch = x[0].shape, x[1]
    return {
        "C_IN": c,
        "C_OUT": s.channels,
        "H": h,
        "W": w,
        "HO": s.height,
        "WO": s.width,
        "X_PITCH": pitch,
        "PITCH": s.pitch,
    }


class Parts:
    """Shares of weights' gradients, [parts, size], that one launch at the end adds up in a fixed order."""

    def __init__(self, flat_weights: Tensor, parts: int, dtype: torch.dtype) -> None:
        self.buffer = flat_weights.new_empty((parts, flat_weights.numel()), dtype=dtype)
        self.rows: list[tuple[int, int, int, int]] = []  # (offset, taps, length, parts) of each weight

    def total(self) -> Tensor:
        """Gradients of the flat weights."""
        total = self.buffer.new_empty(self.buffer.shape[1])
        if self.rows:
            longest = max(length for _, _, length, _ in self.rows)
            launch(
                sum_parts_kernel,
                (len(self.rows), triton.cdiv(longest, tiles.SUM_PARTS)),
                *(self.buffer, total, constant(tuple(self.rows), total.device), total.numel()),
                BLOCK=tiles.SUM_PARTS,
                ACC=accumulator(total.dtype),
                num_warps=4,
            )
        return total


@dataclass(frozen=True)
class Gradients:
    """What the banks of a backward share. The nodes' gradients are [N, nodes * C, H', W'] with one pitch."""

    nodes: Image
    own: Tensor  # like nodes: what has been added to those of nodes that have banks
    weights: Tensor  # op weights
    d_weights: Tensor
    coefficients: Tensor  # [norms, 3, C]
    need_params: bool
    dw_parts: Parts
    pw_parts: Parts


@dataclass(frozen=True)
class Leaving:
    """A bank in the backward: its state, what gradient that has from elsewhere, and where all of it goes, if wanted."""

    bank: Bank
    x: Image
    before: Image | None
    dx: Image | None


def banks_backward(banks: list[Leaving], s: Shared, g: Gradients) -> None:
    """Gradients of what leaves states: of all second stages, then of what reads each state."""
    banks = [leaving for leaving in banks if leaving.dx is not None or g.need_params]
    seconds = [second for leaving in banks for second in leaving.bank.seconds]
    dz = s.saved.new_empty((max((second.dz + 1 for second in seconds), default=0), s.pixels, s.pitch))
    if seconds:
        sums = s.stats.new_empty((backward_parts(s, s.channels), 2 * len(seconds), s.channels))
        _stages_backward(seconds, s, g, banks[0].x, dz, dz, s.pitch, sums, 1, need_x=True)
        finish_sums(s, g, sums, [(2 * i, 2 * i + 1, second.x_norm, -1) for i, second in enumerate(seconds)])
    for leaving in banks:
        _state_backward(leaving, s, g, dz)


def _state_backward(leaving: Leaving, s: Shared, g: Gradients, dz: Tensor) -> None:
    """Gradients of what reads a state, behind whose separable convolutions stands dz."""
    bank, x, before, dx = leaving.bank, leaving.x, leaving.before, leaving.dx
    n, c, h, w = x[0].shape
    if dx is None:
        _stages_backward(bank.convolutions, s, g, x, dz, dz, s.pitch, None, bank.stride, need_x=False)
        _reductions_backward(bank.reductions, s, g, x, dz, s.pitch, bank.stride, need_x=False)
        return
    edges = len({stage.target for stage in bank.edges})
    count = edges + len(bank.reductions)
    parts, pitch = dx
    if bank.pools or count > 1 or before is not None:
        pitch = padded_channels(c, s.saved.dtype)
        parts = s.saved.new_empty((count, n * h * w, pitch))
    _stages_backward(bank.edges, s, g, x, dz, parts, pitch, None, bank.stride, need_x=True)
    _reductions_backward(bank.reductions, s, g, x, parts[edges:], pitch, bank.stride, need_x=True)
    if bank.pools:
        _pools_backward(bank, s, g, x, (parts, pitch), before, dx)
    elif parts is not dx[0]:
        tile = tiles.tile(c, h * w, s.saved.dtype, tiles.JOIN)
        launch(
            join_gradients_kernel,
            (triton.cdiv(n * h * w, tile.pixels), triton.cdiv(c, tile.channels)),
            *(parts, before[0] if before else parts, dx[0], n * h * w, count),
            C=c,
            PITCH=pitch,
            BEFORE_PITCH=before[1] if before else 0,
            DX_PITCH=dx[1],
            HAS_BEFORE=before is not None,
            BLOCK_P=tile.pixels,
            BLOCK_C=tile.channels,
            ACC=s.constants["ACC"],
            num_warps=tile.warps,
        )


def _pools_backward(
    bank: Bank, s: Shared, g: Gradients, x: Image, parts: Image, before: Image | None, dx: Image
) -> None:
    """A state's gradient: its pools', its edges' [parts, pixels, pitch] and `before`."""
    (_, c, h, w), x_pitch = x[0].shape, x[1]
    tile = s.tile(tiles.POOL_BACKWARD)
    images = s.chunk(tiles.BACKWARD_CHUNK, tile)
    rows, edges, _ = stage_rows(bank.pools, x[0].device)
    dd = s.saved.new_empty((s.pixels, s.pitch))
    largest = torch.empty(dd.shape, dtype=torch.int8, device=dd.device)
    launch(
        pool_backward_kernel,
        (triton.cdiv(s.images, images), triton.cdiv(c, tile.channels)),
        *(x[0], g.nodes[0], g.own, parts[0], before[0] if before else parts[0], dx[0], dd, largest, s.stats),
        *(g.coefficients, rows, edges, s.pixels, len(bank.pools), len(parts[0])),
        C=c,
        X_PITCH=x_pitch,
        PITCH=s.pitch,
        PARTS_PITCH=parts[1],
        BEFORE_PITCH=before[1] if before else 0,
        DX_PITCH=dx[1],
        G_PITCH=g.nodes[1],
        H=h,
        W=w,
        HO=s.height,
        WO=s.width,
        STRIDE=bank.stride,
        IMAGES=images,
        HAS_BEFORE=before is not None,
        BLOCK_P=tile.pixels,
        BLOCK_C=tile.channels,
        ACC=s.constants["ACC"],
        num_warps=tile.warps,
    )


def _stages_backward(
    stages: list[Stage],
    s: Shared,
    g: Gradients,
    x: Image,
    dz: Tensor,
    dx: Tensor,
    dx_pitch: int,
    sums: Tensor | None,
    stride: int,
    need_x: bool,
) -> None:
    """First stages' dx, or with `sums` second stages' dz; and parts of the weights' gradients."""
    if not stages:
        return
    normalised = sums is not None
    shape = _input_shape(s, x, normalised)
    channels_in = shape["C_IN"]
    block_i = tiles.channel_block(channels_in)
    tile = _backward_tile(s, channels_in)
    parts = backward_parts(s, channels_in)
    rows, _, groups = stage_rows(stages, x[0].device)
    dd_pitch = padded_channels(channels_in, s.saved.dtype)
    dd = s.saved.new_empty((len(groups), s.pixels, dd_pitch))
    launch(
        stage_backward_kernel,
        (parts, len(groups), triton.cdiv(channels_in, block_i)),
        *(x[0], g.nodes[0], g.own, s.saved, dz, dx, dd, s.dw, s.pw, s.stats, g.coefficients, g.weights),
        *(g.pw_parts.buffer, g.dw_parts.buffer, s.stats if sums is None else sums, rows, groups),
        *(s.pixels, len(stages), s.pw.numel(), s.dw.numel()),
        **shape,
        **s.constants,
        DX_PITCH=dx_pitch,
        DD_PITCH=dd_pitch,
        G_PITCH=g.nodes[1],
        STRIDE=stride,
        GEOMETRIES=geometries(stages, normalised),
        NORMALISED=normalised,
        NEED_X=need_x,
        NEED_PARAMS=g.need_params,
        IMAGES=s.chunk(tiles.BACKWARD_CHUNK, tile),
        BLOCK_P=tile.pixels,
        BLOCKS=tile.blocks(s.saved.dtype),
        BLOCK_I=block_i,
        BLOCK_O=tile.channels,
        DOT=dot_type(s.saved.dtype),
        num_warps=tile.warps,
    )
    for stage in stages:
        if stage.geometry in TAPS:
            taps = TAPS[stage.geometry]
            g.dw_parts.rows.append((stage.dw * s.channels, taps, taps * s.channels, parts))
            _expect_pointwise(stage, s, g, channels_in, parts)


def _reductions_backward(
    stages: list[Stage], s: Shared, g: Gradients, x: Image, dx: Tensor, dx_pitch: int, stride: int, need_x: bool
) -> None:
    """dx of stages without windows, and parts of their weights' gradients."""
    if not stages:
        return
    shape = _input_shape(s, x, False)
    channels_in = shape["C_IN"]
    block_i = tiles.channel_block(channels_in)
    tile = _backward_tile(s, channels_in)
    parts = backward_parts(s, channels_in)
    launch(
        reduction_backward_kernel,
        (parts, len(stages), triton.cdiv(channels_in, block_i)),
        *(x[0], g.nodes[0], g.own, s.saved, dx, s.pw, s.stats, g.coefficients, g.pw_parts.buffer),
        *(stage_rows(stages, x[0].device)[0], s.pixels, s.pw.numel()),
        **shape,
        ACC=s.constants["ACC"],
        DX_PITCH=dx_pitch,
        G_PITCH=g.nodes[1],
        STRIDE=stride,
        NEED_X=need_x,
        NEED_PARAMS=g.need_params,
        IMAGES=s.chunk(tiles.BACKWARD_CHUNK, tile),
        BLOCK_P=tile.pixels,
        BLOCK_I=block_i,
        BLOCK_O=tile.channels,
        DOT=dot_type(s.saved.dtype),
        num_warps=tile.warps,
    )
    for stage in stages:
        _expect_pointwise(stage, s, g, channels_in, parts)


def _expect_pointwise(stage: Stage, s: Shared, g: Gradients, channels_in: int, parts: int) -> None:
    """Notes for which pointwise weight a launch has left its parts."""
    matrix = s.channels * channels_in
    g.pw_parts.rows.append((stage.pw * matrix, 1, matrix, parts))


def backward_parts(s: Shared, channels_in: int) -> int:
    """Programs that share a backward's images, and so parts of the weights' gradients."""
    return triton.cdiv(s.images, s.chunk(tiles.BACKWARD_CHUNK, _backward_tile(s, channels_in)))


def _backward_tile(s: Shared, channels_in: int) -> tiles.Tile:
    """A tile of the outputs, of fewer pixels where there are more channels on the side of the inputs."""
    tile = s.tile(tiles.STAGE_BACKWARD)
    wider = max(1, tiles.channel_block(channels_in) // tile.channels)
    return tiles.Tile(max(tile.pixels // wider, 16), tile.channels, tile.warps)


def finish_sums(s: Shared, g: Gradients, sums: Tensor, entries: list[tuple[int, int, int, int]]) -> None:
    """Joins tiles' sums [tiles, sums, C]: entries say (sum of g, sum of g * t, batch norm, op weight)."""
    block = tiles.channel_block(s.channels)
    launch(
        finish_sums_kernel,
        (len(entries),),
        *(sums, s.stats, g.weights, g.coefficients, g.d_weights, constant(tuple(entries), sums.device)),
        *(sums.shape[0], sums.shape[1], s.pixels),
        **s.constants,
        C=s.channels,
        TRAINING=s.training,
        BLOCK_T=tiles.PARTIAL_SUMS // block,
        BLOCK_C=block,
        num_warps=4,
    )
