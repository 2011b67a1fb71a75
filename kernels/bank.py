"""Launches over a bank: everything that leaves one state at one stride, forward and backward."""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from fastdarts.kernels import tiles
from fastdarts.kernels.backward import (
    middle_backward_kernel,
    stage_backward_kernel,
    state_backward_kernel,
    sum_parts_kernel,
)
from fastdarts.kernels.launch import (
    accumulator,
    compute_dtype,
    dot_type,
    launch,
    padded_channels,
)
from fastdarts.kernels.mix import finish_sums_kernel
from fastdarts.kernels.stage import join_moments_kernel, stage_forward_kernel
from fastdarts.kernels.tables import POOLS, TAPS, Bank, Stage, constant, geometries, stage_rows

Image = tuple[Tensor, int]  # [N, C, H, W] and the elements from pixel to pixel


@dataclass(frozen=True)
class Shared:
    """What all banks of a call work with."""

    dw: Tensor  # flat depthwise weights
    pw: Tensor  # flat pointwise weights
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

    @property
    def constants(self) -> dict[str, Any]:
        return {"EPS": self.eps, "ACC": accumulator(self.saved.dtype)}


def flat(params: list[Tensor], like: Tensor) -> Tensor:
    """Parameters one after another, in the compute type."""
    dtype = compute_dtype(like.dtype)
    if not params:
        return like.new_zeros(1, dtype=dtype)
    return torch.cat([p.reshape(-1) for p in params]).to(dtype)


def bank_forward(bank: Bank, s: Shared, x: Image) -> None:
    """First stages and pools, then second stages: y into `saved`, moments into `stats`."""
    _stages_forward(bank.firsts, s, x, bank.stride, normalised=False)
    _stages_forward(bank.seconds, s, x, 1, normalised=True)


def _stages_forward(stages: list[Stage], s: Shared, x: Image, stride: int, normalised: bool) -> None:
    if not stages:
        return
    shape = _input_shape(s, x, normalised)
    tile = s.tile(tiles.STAGE_FORWARD)
    count = triton.cdiv(s.pixels, tile.pixels)
    rows, _, groups = stage_rows(stages, x[0].device)
    per_program = tiles.per_program(s.height * s.width, tile)
    moments = s.stats.new_empty((len(stages) if s.training else 0, count, 2, s.channels))
    launch(
        stage_forward_kernel,
        (triton.cdiv(count, per_program), len(groups), triton.cdiv(s.channels, tile.channels)),
        *(x[0], s.saved, s.dw, s.pw, s.stats, moments, rows, groups, s.pixels, count),
        **shape,
        **s.constants,
        STRIDE=stride,
        GEOMETRIES=geometries(stages),
        NORMALISED=normalised,
        TRAINING=s.training,
        TILES=per_program,
        BLOCK_P=tile.pixels,
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
            *(moments, s.stats, constant(tuple(pairs), x[0].device), s.pixels, count),
            C=s.channels,
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

    def __init__(self, flat_weights: Tensor, parts: int) -> None:
        self.buffer = flat_weights.new_empty((parts, flat_weights.numel()))
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


def bank_backward(bank: Bank, s: Shared, g: Gradients, x: Image, before: Image | None, dx: Image | None) -> None:
    """Gradients of what leaves a state, with `before` what it has from elsewhere; dx None: not wanted."""
    if dx is None and not g.need_params:
        return
    dtype, device = s.saved.dtype, s.saved.device
    channels_in = x[0].shape[1]
    dd_pitch = padded_channels(channels_in, dtype)
    dd = s.saved.new_empty((bank.dd_slots, s.pixels, dd_pitch))
    dz = s.saved.new_empty((len(bank.seconds), s.pixels, s.pitch))
    largest = torch.empty((s.pixels, s.pitch) if bank.pools else (0,), dtype=torch.int8, device=device)

    if bank.seconds:
        _stages_backward(bank.seconds, s, g, x, dz, dd, largest, 1, normalised=True)
        tile = s.tile(tiles.MIDDLE_BACKWARD)
        count = triton.cdiv(s.pixels, tile.pixels)
        per_program = tiles.per_program(s.height * s.width, tile)
        programs = triton.cdiv(count, per_program)
        rows, _, _ = stage_rows(bank.seconds, device)
        sums = s.stats.new_empty((count, 2 * len(bank.seconds), s.channels))
        launch(
            middle_backward_kernel,
            (programs, len(bank.seconds), triton.cdiv(s.channels, tile.channels)),
            *(s.saved, dd, dz, s.dw, g.dw_parts.buffer, s.stats, sums, rows),
            *(s.pixels, len(bank.seconds), count, s.dw.numel()),
            **s.constants,
            C=s.channels,
            PITCH=s.pitch,
            DD_PITCH=dd_pitch,
            HO=s.height,
            WO=s.width,
            GEOMETRIES=geometries(bank.seconds),
            NEED_PARAMS=g.need_params,
            TILES=per_program,
            BLOCK_P=tile.pixels,
            BLOCK_C=tile.channels,
            num_warps=tile.warps,
        )
        finish_sums(s, g, sums, [(2 * i, 2 * i + 1, second.x_norm, -1) for i, second in enumerate(bank.seconds)])
        _expect_depthwise(bank.seconds, g, programs, s.channels)

    _stages_backward(bank.firsts if dx else bank.convolutions, s, g, x, dz, dd, largest, bank.stride, normalised=False)

    if dx is None and not any(stage.geometry in TAPS for stage in bank.convolutions):
        return
    n, _, h, w = x[0].shape
    tile = tiles.tile(channels_in, h * w, dtype, tiles.STATE_BACKWARD)
    per_program = tiles.per_program(h * w, tile)
    programs = triton.cdiv(n * h * w, tile.pixels * per_program)
    rows, _, _ = stage_rows(bank.firsts, device)
    launch(
        state_backward_kernel,
        (programs, triton.cdiv(channels_in, tile.channels)),
        *(
            x[0],
            g.nodes[0],
            g.own,
            before[0] if before else x[0],
            dx[0] if dx else x[0],
            dd,
            largest,
            s.dw,
            g.dw_parts.buffer,
            g.weights,
        ),
        *(rows, constant(tuple(bank.skips), device), n * h * w, len(bank.convolutions), len(bank.pools)),
        *(len(bank.skips), s.pixels, s.dw.numel()),
        C=channels_in,
        X_PITCH=x[1],
        G_PITCH=g.nodes[1],
        BEFORE_PITCH=before[1] if before else 0,
        DX_PITCH=dx[1] if dx else 0,
        DD_PITCH=dd_pitch,
        H=h,
        W=w,
        HO=s.height,
        WO=s.width,
        STRIDE=bank.stride,
        GEOMETRIES=geometries(bank.firsts),
        HAS_BEFORE=before is not None,
        NEED_X=dx is not None,
        NEED_PARAMS=g.need_params,
        TILES=per_program,
        BLOCK_P=tile.pixels,
        BLOCK_C=tile.channels,
        ACC=s.constants["ACC"],
        num_warps=tile.warps,
    )
    _expect_depthwise(bank.convolutions, g, programs, s.channels)


def _expect_depthwise(stages: list[Stage], g: Gradients, parts: int, channels: int) -> None:
    """Notes which depthwise weights a launch has left its parts for."""
    for stage in stages:
        if stage.geometry in TAPS:
            taps = TAPS[stage.geometry]
            g.dw_parts.rows.append((stage.dw, taps, taps * channels, parts))


def _stages_backward(
    stages: list[Stage],
    s: Shared,
    g: Gradients,
    x: Image,
    dz: Tensor,
    dd: Tensor,
    largest: Tensor,
    stride: int,
    normalised: bool,
) -> None:
    """dd of every stage, and parts of the pointwise weights' gradients."""
    if not stages:
        return
    shape = _input_shape(s, x, normalised)
    channels_in = shape["C_IN"]
    block_i = tiles.channel_block(channels_in)
    tile = _stage_backward_tile(s, channels_in)
    parts = stage_backward_parts(s, channels_in)
    rows, edges, groups = stage_rows(stages, x[0].device)
    launch(
        stage_backward_kernel,
        (parts, len(groups), triton.cdiv(channels_in, block_i) * triton.cdiv(s.channels, tile.channels)),
        *(x[0], g.nodes[0], g.own, s.saved, dz, dd, largest, s.dw, s.pw, s.stats, g.coefficients),
        *(g.pw_parts.buffer, rows, groups, edges, s.pixels, s.pw.numel()),
        **shape,
        **s.constants,
        DD_PITCH=dd.shape[2],
        G_PITCH=g.nodes[1],
        STRIDE=stride,
        GEOMETRIES=geometries(stages),
        NORMALISED=normalised,
        NEED_PARAMS=g.need_params,
        TILES=tiles.STAGE_BACKWARD_TILES,
        BLOCK_P=tile.pixels,
        BLOCK_I=block_i,
        BLOCK_O=tile.channels,
        DOT=dot_type(s.saved.dtype),
        num_warps=tile.warps,
    )
    for stage in stages:
        if stage.geometry not in POOLS:
            g.pw_parts.rows.append((stage.pw, 1, s.channels * channels_in, parts))


def stage_backward_parts(s: Shared, channels_in: int) -> int:
    """Parts of the pointwise weights' gradients."""
    return triton.cdiv(s.pixels, _stage_backward_tile(s, channels_in).pixels * tiles.STAGE_BACKWARD_TILES)


def _stage_backward_tile(s: Shared, channels_in: int) -> tiles.Tile:
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
