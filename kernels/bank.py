"""Launches over a bank: everything that leaves one state at one stride, forward and backward."""

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from fastdarts.kernels import planes, tiles
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
from fastdarts.kernels.second import Second
from fastdarts.kernels.stage import join_moments_kernel, learned_norms_kernel, stage_forward_kernel
from fastdarts.kernels.tables import PIXEL, SKIP, TAPS, Bank, Stage, constant, geometries, grouped, stage_rows

Image = tuple[Tensor, int]  # [N, C, H, W] and the elements from pixel to pixel
States = tuple[Image, ...]  # the inputs, or one node


@dataclass(frozen=True)
class Shared:
    """Hold the tensors that all banks of a call share."""

    dw: Tensor  # flat depthwise weights, [taps, C], in the compute type
    pw: Tensor  # flat pointwise weights, as stored
    saved: Tensor  # [tensors, pixels, padded channels]
    stats: Tensor  # [norms, 2, C]
    affine: Tensor | None  # batch norms' weights and biases [norms, 2, C]
    norms: Tensor  # what kernels normalise by: `stats`, or of norms that learn means, scales and shifts [norms, 3, C]
    factors: Tensor | None  # of images and op weights [N, op weights]
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
        """Return the tile of a pass over the outputs."""
        return tiles.tile(self.channels, self.height * self.width, self.saved.dtype, name)

    def chunk(self, elements: int, tile: tiles.Tile) -> int:
        """Whole images of about so many elements, which a program takes; fewer if the GPU would not be full."""
        most = min(elements // (self.height * self.width * tile.channels), self.images)
        return max(min(most, self.images // (tiles.PROGRAMS * tiles.multiprocessors())), 1)

    @property
    def constants(self) -> dict[str, Any]:
        return {"EPS": self.eps if self.affine is None else None, "ACC": accumulator(self.saved.dtype)}

    def factors_or(self, other: Tensor) -> tuple[Tensor, int]:
        """Factors and op weights that they are of; a tensor that no kernel reads and 0 without factors."""
        return (other, 0) if self.factors is None else (self.factors, self.factors.shape[1])

    def learn(self, norms: list[int]) -> None:
        """Make `norms` of these batch norms from their statistics, if they learn."""
        if self.affine is None or not norms:
            return
        block = tiles.channel_block(self.channels)
        pairs = constant(tuple((0, norm) for norm in norms), self.stats.device)
        launch(
            learned_norms_kernel,
            (len(norms), triton.cdiv(self.channels, block)),
            *(self.stats, self.affine, self.norms, pairs),
            C=self.channels,
            EPS=self.eps,
            BLOCK_C=block,
            num_warps=4,
        )


def flat(params: list[Tensor], dtype: torch.dtype, like: Tensor) -> Tensor:
    """Parameters one after another: what they give when they are viewed as rows."""
    if not params:
        return like.new_empty((1, 1), dtype=dtype)
    return (torch.cat(params) if len(params) > 1 else params[0].contiguous()).to(dtype)


def banks_forward(banks: list[Bank], s: Shared, states: States) -> None:
    """First stages and pools, then second stages: y into `saved`, moments into `stats`."""
    seconds: list[Stage] = []  # of banks that csrc/cuda does not serve
    served: list[tuple[list[Bank], list[Stage]]] = []
    for together in alike(banks, states):
        stages, paired = [stage for bank in together for stage in bank.firsts], len(together) > 1
        if planes.serve(s, [states[bank.state] for bank in together], together[0].stride):
            convolutions, stages = planes.split(stages)
            _planes_forward(convolutions, [], s, states, paired)
            served.append((together, convolutions))
        else:
            seconds += [second for bank in together for second in bank.seconds]
        _stages_forward(stages, s, states, together[0], paired)
    for together, firsts in served:
        _planes_forward([second for bank in together for second in bank.seconds], firsts, s, states, len(together) > 1)
    _stages_forward(seconds, s, states, None, False)


def programs(stages: list[Stage], parts: int, paired: bool) -> list[list[Stage]]:
    """The stages of each of the programs that share the images in so many parts.

    Two edges of an input, or one, unless the GPU would stay half empty: then a half or a quarter of an edge, for which
    the state is read and its gradient left once more.
    """
    enough = tiles.PROGRAMS * tiles.multiprocessors() * tiles.FULL
    for together, pieces in ((paired, 1), (False, 1), (False, 2)):
        groups = grouped(stages, together, pieces)
        if parts * len(groups) >= enough:
            return groups
    return grouped(stages, False, 4)


def alike(banks: list[Bank], states: States) -> list[list[Bank]]:
    """Banks that one launch serves: of one stride, from states of one layout."""
    found: dict[Any, list[Bank]] = {}
    for bank in banks:
        x, pitch = states[bank.state]
        found.setdefault((bank.stride, x.shape, pitch), []).append(bank)
    return list(found.values())


def _stages_forward(stages: list[Stage], s: Shared, states: States, bank: Bank | None, paired: bool) -> None:
    """First stages of banks like this one, or without one second stages."""
    if not stages:
        return
    normalised, device = bank is None, s.saved.device
    shape = _input_shape(s, states[bank.state] if bank else None)
    tile = s.tile(tiles.STAGE_FORWARD)
    images = s.chunk(tiles.FORWARD_CHUNK, tile)
    count = triton.cdiv(s.images, images)
    rows, _, groups = stage_rows(programs(stages, count, paired), device)
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
        tuple(x for x, _ in (states if bank else states[:1])),
        *(s.saved, d, s.dw, s.pw, s.norms, moments, rows, groups, s.pixels),
        **shape,
        **s.constants,
        STRIDE=bank.stride if bank else 1,
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
    _join_moments(stages, s, moments, chunk, tile.pixels)


def _planes_forward(stages: list[Stage], firsts: list[Stage], s: Shared, states: States, paired: bool) -> None:
    """The same of convolutions by csrc/cuda: first stages, or the second ones that continue `firsts`."""
    if not stages:
        return
    images = planes.images_of_program(s)
    count = triton.cdiv(s.images, images)
    rows, groups = planes.tables(programs(stages, count, paired), firsts, s.saved.device)
    moments = s.stats.new_empty((len(stages) if s.training else 0, count, 2, s.channels))
    launch(
        planes.forward_kernel,
        (count, len(groups)),
        [x for x, _ in states],
        *(s.saved, s.dw, s.pw, s.stats, moments, rows, groups),
        images=s.images,
        channels=s.channels,
        width=s.width,
        x_pitch=states[stages[0].state][1],
        images_of_program=images,
        eps=s.eps,
        num_warps=planes.WARPS,
    )
    _join_moments(stages, s, moments, images * s.height * s.width, images * s.height * s.width)


def _join_moments(stages: list[Stage], s: Shared, moments: Tensor, chunk: int, tile: int) -> None:
    """Statistics of stages' batch norms from moments of programs over `chunk` pixels, each in tiles."""
    if not s.training:
        return
    # every edge of a pool has a batch norm of its own, with the same statistics
    pairs = [(i, n) for i, st in enumerate(stages) for n in ([e[2] for e in st.edges if e[2] >= 0] or [st.norm])]
    block = tiles.channel_block(s.channels)
    launch(
        join_moments_kernel,
        (len(pairs), triton.cdiv(s.channels, block)),
        *(moments, s.stats, constant(tuple(pairs), s.stats.device), s.pixels, moments.shape[1]),
        C=s.channels,
        CHUNK=chunk,
        BLOCK_P=tile,
        BLOCK_T=tiles.PARTIAL_SUMS // block,
        BLOCK_C=block,
        ACC=s.constants["ACC"],
        num_warps=tiles.SUM_WARPS,
    )
    s.learn([norm for _, norm in pairs])


def _input_shape(s: Shared, x: Image | None) -> dict[str, int]:
    """Sizes of what stages read: a state, or a saved tensor."""
    if x is None:
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
    """Programs' shares of weights' gradients, which one launch at the end adds up in a fixed order.

    dw, pw: those of depthwise and of pointwise weights, rows `pitch` elements apart; total_dw, total_pw: their sums.
    """

    def __init__(self, dw: Tensor, pw: Tensor, parts: int, dtype: torch.dtype) -> None:
        first = -(-dw.numel() // 16) * 16  # where pointwise weights begin, aligned
        self.pitch = first + pw.numel()
        self._buffer = dw.new_empty((parts, self.pitch), dtype=dtype)
        self._total = self._buffer.new_empty(self.pitch if parts else 0)
        self.dw, self.pw = self._buffer[:, :first], self._buffer[:, first:]
        self.total_dw, self.total_pw = self._total[: dw.numel()], self._total[first:]
        self._first = first
        self._rows: list[tuple[int, int, int, int]] = []  # (offset, taps, length, parts) of each weight

    def expect_depthwise(self, offset: int, taps: int, channels: int, parts: int) -> None:
        """Note that a launch leaves shares for the depthwise weight at this offset of the flat ones."""
        self._rows.append((offset, taps, taps * channels, parts))

    def expect_pointwise(self, offset: int, length: int, parts: int) -> None:
        """Note that a launch leaves shares for the pointwise weight at this offset of the flat ones."""
        self._rows.append((self._first + offset, 1, length, parts))

    def add_up(self) -> None:
        """Make the totals, gradients of the flat weights."""
        if not self._rows:
            return
        longest = max(length for _, _, length, _ in self._rows)
        launch(
            sum_parts_kernel,
            (len(self._rows), triton.cdiv(longest, tiles.SUM_PARTS)),
            *(self._buffer, self._total, constant(tuple(self._rows), self._total.device), self.pitch),
            BLOCK=tiles.SUM_PARTS,
            ACC=accumulator(self._total.dtype),
            num_warps=4,
        )


@dataclass(frozen=True)
class Gradients:
    """Hold what the banks of a backward share. The nodes' gradients are [N, nodes * C, H', W'] with one pitch."""

    nodes: Image
    own: Tensor  # like nodes: what has been added to those of nodes that have banks
    weights: Tensor  # op weights
    d_weights: Tensor
    coefficients: Tensor  # [norms, 4, C]
    d_affine: Tensor  # [norms, 2, C] where they learn
    need_params: bool
    parts: Parts
    second: Second | None  # streams for weights' gradients beside those of states; None: one launch makes both

    def launched(self, need_x: bool, dz: Tensor, launch_for: Callable[[bool, bool], None]) -> None:
        """Call launch_for(need_x, need_params): once, or with a second stream for each, weights' gradients beside.

        dz: what these read and nothing else keeps until the second stream has joined.
        """
        if self.second is None or not self.need_params:
            launch_for(need_x, self.need_params)
            return
        self.second.begin(dz)
        if need_x:
            launch_for(True, False)
        with self.second.beside():
            launch_for(False, True)

    def add_up(self) -> None:
        """Make weights' gradients, if they are needed, of their shares; the last of an operator's launches."""
        if self.second is None or not self.need_params:
            if self.need_params:
                self.parts.add_up()
            return
        self.second.begin()
        with self.second.beside():
            self.parts.add_up()
        self.second.join()


@dataclass(frozen=True)
class Leaving:
    """A bank in the backward: what gradient its state has from elsewhere, and where all of it goes, if wanted."""

    bank: Bank
    before: Image | None
    dx: Image | None


def banks_backward(leaving: list[Leaving], s: Shared, g: Gradients, states: States) -> None:
    """Gradients of what leaves states: of all second stages, then of what reads the states."""
    wanted = {id(a.bank): a for a in leaving if a.dx is not None or g.need_params}
    seconds = [second for a in wanted.values() for second in a.bank.seconds]
    dz = s.saved.new_empty((max((second.dz + 1 for second in seconds), default=0), s.pixels, s.pitch))
    if seconds:
        sums = s.stats.new_empty((backward_parts(s, s.channels), 2 * len(seconds), s.channels))
        _stages_backward(seconds, s, g, states, None, dz, dz, s.pitch, sums, need_x=True)
        finish_sums(s, g, sums, [(2 * i, 2 * i + 1, second.x_norm, -1) for i, second in enumerate(seconds)])
    for need_x in (True, False):
        banks = [a.bank for a in wanted.values() if (a.dx is not None) == need_x]
        for together in alike(banks, states):
            _states_backward([wanted[id(bank)] for bank in together], s, g, states, dz, need_x)


def _states_backward(leaving: list[Leaving], s: Shared, g: Gradients, states: States, dz: Tensor, need_x: bool) -> None:
    """Gradients of what reads states of one layout, behind whose separable convolutions stands dz."""
    first, paired = leaving[0].bank, len(leaving) > 1
    if not need_x:
        convolutions = [stage for a in leaving for stage in a.bank.convolutions]
        _stages_backward(convolutions, s, g, states, first, dz, dz, s.pitch, None, False, paired)
        for a in leaving:
            _reductions_backward(a.bank, s, g, states[a.bank.state], dz, s.pitch, need_x=False)
        return
    n, c, h, w = states[first.state][0].shape
    edges = [stage for a in leaving for stage in a.bank.edges]
    of_states = Counter(group[0].state for group in programs(edges, backward_parts(s, c), paired))
    groups = [of_states[a.bank.state] for a in leaving]
    counts = [count + len(a.bank.reductions) for count, a in zip(groups, leaving, strict=True)]
    assert leaving[0].dx is not None
    parts, pitch = leaving[0].dx
    if paired or first.pools or counts[0] > 1 or leaving[0].before is not None:
        pitch = padded_channels(c, s.saved.dtype)
        parts = s.saved.new_empty((sum(counts), n * h * w, pitch))
    begins = dict(zip((a.bank.state for a in leaving), itertools.accumulate(counts, initial=0), strict=False))
    _stages_backward(edges, s, g, states, first, dz, parts, pitch, None, True, paired, begins)
    for a, count, own in zip(leaving, counts, groups, strict=True):
        begin, x = begins[a.bank.state], states[a.bank.state]
        _reductions_backward(a.bank, s, g, x, parts[begin + own :], pitch, need_x=True)
        if a.bank.pools:
            _pools_backward(a, s, g, x, (parts[begin : begin + count], pitch))
        elif a.dx is not None and parts is not a.dx[0]:
            _join(a, s, x, (parts[begin : begin + count], pitch))


def _join(leaving: Leaving, s: Shared, x: Image, parts: Image) -> None:
    """The gradient of a state without pools."""
    n, c, h, w = x[0].shape
    before, dx = leaving.before, leaving.dx
    assert dx is not None
    tile = tiles.tile(c, h * w, s.saved.dtype, tiles.JOIN)
    launch(
        join_gradients_kernel,
        (triton.cdiv(n * h * w, tile.pixels), triton.cdiv(c, tile.channels)),
        *(parts[0], before[0] if before else parts[0], dx[0], n * h * w, len(parts[0])),
        C=c,
        PITCH=parts[1],
        BEFORE_PITCH=before[1] if before else 0,
        DX_PITCH=dx[1],
        HAS_BEFORE=before is not None,
        BLOCK_P=tile.pixels,
        BLOCK_C=tile.channels,
        ACC=s.constants["ACC"],
        num_warps=tile.warps,
    )


def _pools_backward(leaving: Leaving, s: Shared, g: Gradients, x: Image, parts: Image) -> None:
    """A state's gradient: its pools', its edges' [parts, pixels, pitch] and what it has from elsewhere."""
    bank, before, dx = leaving.bank, leaving.before, leaving.dx
    assert dx is not None
    (_, c, h, w), x_pitch = x[0].shape, x[1]
    tile = s.tile(tiles.POOL_BACKWARD)
    images = s.chunk(tiles.BACKWARD_CHUNK, tile)
    rows, edges, _ = stage_rows([bank.pools], x[0].device)
    dd = s.saved.new_empty((s.pixels, s.pitch))
    largest = torch.empty(dd.shape, dtype=torch.int8, device=dd.device)
    factors, op_weights = s.factors_or(g.weights)
    launch(
        pool_backward_kernel,
        (triton.cdiv(s.images, images), triton.cdiv(c, tile.channels)),
        *(x[0], g.nodes[0], g.own, parts[0], before[0] if before else parts[0], dx[0], dd, largest),
        *(g.coefficients, g.weights, factors, rows, edges, s.pixels, len(bank.pools), len(parts[0])),
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
        FACTORS=op_weights,
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
    states: States,
    bank: Bank | None,
    dz: Tensor,
    dx: Tensor,
    dx_pitch: int,
    sums: Tensor | None,
    need_x: bool,
    paired: bool = False,
    begins: dict[int, int] | None = None,
) -> None:
    """First stages' dx of banks like this one, or without one second stages' dz; and parts of weights' gradients."""
    if not stages:
        return
    normalised = bank is None
    shape = _input_shape(s, states[bank.state] if bank else None)
    channels_in = shape["C_IN"]
    block_i = tiles.channel_block(channels_in)
    tile = _backward_tile(s, channels_in)
    parts = backward_parts(s, channels_in)
    dd_pitch = padded_channels(channels_in, s.saved.dtype)
    factors, op_weights = s.factors_or(g.weights)

    def launch_for(need_x: bool, need_params: bool) -> None:
        mine = stages if need_x else [stage for stage in stages if stage.geometry != SKIP.value]
        if not mine:
            return
        rows, _, groups = stage_rows(programs(mine, parts, paired), s.saved.device, begins)
        dd = s.saved.new_empty((len(groups), s.pixels, dd_pitch))
        launch(
            stage_backward_kernel,
            (parts, len(groups), triton.cdiv(channels_in, block_i)),
            tuple(x for x, _ in (states if bank else states[:1])),
            *(g.nodes[0], g.own, s.saved, dz, dx, dd, s.dw, s.pw, s.norms, g.coefficients, g.weights, factors),
            *(g.parts.pw, g.parts.dw, s.stats if sums is None else sums, rows, groups),
            *(s.pixels, len(mine), g.parts.pitch),
            **shape,
            **s.constants,
            DX_PITCH=dx_pitch,
            DD_PITCH=dd_pitch,
            G_PITCH=g.nodes[1],
            STRIDE=bank.stride if bank else 1,
            FACTORS=op_weights,
            GEOMETRIES=geometries(mine, normalised),
            NORMALISED=normalised,
            NEED_X=need_x,
            NEED_PARAMS=need_params,
            IMAGES=s.chunk(tiles.BACKWARD_CHUNK, tile),
            BLOCK_P=tile.pixels,
            BLOCKS=tile.blocks(s.saved.dtype),
            BLOCK_I=block_i,
            BLOCK_O=tile.channels,
            DOT=dot_type(s.saved.dtype),
            num_warps=tile.warps,
        )

    if normalised:  # read twice they would cost more than they save
        launch_for(need_x, g.need_params)
    else:
        g.launched(need_x, dz, launch_for)
    for stage in stages:
        if stage.geometry in TAPS:
            taps = TAPS[stage.geometry]
            g.parts.expect_depthwise(stage.dw * s.channels, taps, s.channels, parts)
        if stage.geometry in TAPS or stage.geometry == PIXEL.value:
            _expect_pointwise(stage, s, g, channels_in, parts)


def _reductions_backward(
    bank: Bank, s: Shared, g: Gradients, x: Image, dx: Tensor, dx_pitch: int, need_x: bool
) -> None:
    """dx of stages without windows, and parts of their weights' gradients."""
    stages = bank.reductions
    if not stages:
        return
    shape = _input_shape(s, x)
    channels_in = shape["C_IN"]
    block_i = tiles.channel_block(channels_in)
    tile = _backward_tile(s, channels_in)
    parts = backward_parts(s, channels_in)
    factors, op_weights = s.factors_or(g.weights)

    launch(
        reduction_backward_kernel,
        (parts, len(stages), triton.cdiv(channels_in, block_i)),
        *(x[0], g.nodes[0], g.own, s.saved, dx, s.pw, g.coefficients, factors, g.parts.pw),
        *(stage_rows([stages], x[0].device)[0], s.pixels, g.parts.pitch),
        **shape,
        ACC=s.constants["ACC"],
        DX_PITCH=dx_pitch,
        G_PITCH=g.nodes[1],
        STRIDE=bank.stride,
        FACTORS=op_weights,
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
    g.parts.expect_pointwise(stage.pw * matrix, matrix, parts)


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
        *(sums, s.stats, s.norms, g.weights, g.coefficients, g.d_weights, g.d_affine),
        *(constant(tuple(entries), sums.device), sums.shape[0], sums.shape[1], s.pixels),
        **s.constants,
        STATS_EPS=s.eps,
        C=s.channels,
        TRAINING=s.training,
        BLOCK_T=tiles.PARTIAL_SUMS // block,
        BLOCK_C=block,
        num_warps=tiles.SUM_WARPS,
    )
