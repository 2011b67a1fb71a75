"""Where the Triton kernels read and write, watched in Triton's interpreter."""

import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from kernel_cases import EPS, Case, fused, make_case, plain
from torch import Tensor

pytest.importorskip("triton", reason="the kernels need Triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("looks into Triton's interpreter", allow_module_level=True)

from triton.runtime.interpreter import interpreter_builder

from fastdarts.kernels import bank, node, tiles
from fastdarts.kernels.project import project, project_backward

OPS = ("max_pool_3x3", "bare_avg_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_3x3", "nor_conv_1x1")
GUARD = 256  # elements on either side of a buffer
POISON = 77  # of integers


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "tile", lambda channels, *_: tiles.Tile(16, tiles.channel_block(channels), 4))


@pytest.fixture(params=[1, 2], ids=["stride1", "stride2"])
def case(request: pytest.FixtureRequest) -> Case:
    return make_case(OPS, stride=request.param, C=6, size=(1, 7, 5)).to(torch.float64)


class Buffers:
    """Hands out memory full of NaN between guards full of NaN."""

    def __init__(self) -> None:
        self.flat: list[Tensor] = []

    def new(self, shape: Any, dtype: torch.dtype) -> Tensor:
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        count = math.prod(shape)
        value = float("nan") if dtype.is_floating_point else POISON
        self.flat.append(torch.full((count + 2 * GUARD,), value, dtype=dtype))
        return self.flat[-1][GUARD : GUARD + count].view(shape)

    def copy(self, t: Tensor) -> Tensor:
        return self.new(t.shape, t.dtype).copy_(t)

    def assert_guards(self) -> None:
        for flat in self.flat:
            for guard in (flat[:GUARD], flat[-GUARD:]):
                assert (guard.isnan() if flat.is_floating_point() else guard == POISON).all()


@pytest.fixture
def buffers(monkeypatch: pytest.MonkeyPatch) -> Buffers:
    made = Buffers()

    def new_empty(self: Tensor, shape: Any, dtype: torch.dtype | None = None, device: object = None) -> Tensor:
        return made.new(shape, dtype or self.dtype)

    def empty(shape: Any, dtype: torch.dtype, device: object = None) -> Tensor:
        return made.new(shape, dtype)

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    monkeypatch.setattr(torch, "empty", empty)
    return made


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Fails where two programs of a launch write to one address; holds the number of addresses each launch wrote."""
    written: dict[int, Any] = {}
    counts: list[int] = []
    store = interpreter_builder.create_masked_store

    def watched_store(ptrs: Any, value: Any, mask: Any, *args: Any) -> Any:
        program = interpreter_builder.grid_idx
        for address in np.broadcast_to(ptrs.data, mask.data.shape)[mask.data.astype(bool)].tolist():
            assert written.setdefault(address, program) == program, (
                f"{written[address]} and {program} write one element"
            )
        return store(ptrs, value, mask, *args)

    def watched_launch(*args: Any, **constants: Any) -> None:
        written.clear()
        launch(*args, **constants)
        counts.append(len(written))

    launch = bank.launch
    monkeypatch.setattr(interpreter_builder, "create_masked_store", watched_store)
    monkeypatch.setattr(bank, "launch", watched_launch)
    monkeypatch.setattr(node, "launch", watched_launch)
    return counts


def test_nothing_outside_the_buffers_is_touched_and_everything_inside_is_written_once(
    case: Case, buffers: Buffers, writers: list[int]
) -> None:
    true = plain(case, torch.float64)
    case.states = [buffers.copy(state) for state in case.states]
    case.params = [buffers.copy(param) for param in case.params]
    case.weights, case.grad = buffers.copy(case.weights), buffers.copy(case.grad)
    ours = fused(case)
    buffers.assert_guards()
    for name, t in true.items():
        torch.testing.assert_close(ours[name], t, msg=name)
    assert len(writers) > 10
    assert all(writers)


def projected(stride: int, buffers: Buffers | None = None) -> dict[str, Tensor]:
    """Output and gradients of a cell's preprocessing."""
    torch.manual_seed(1)
    weights = [torch.randn(6 // stride, 5, 1, 1).double() for _ in range(stride)]
    x, grad = torch.randn(1, 5, 13, 11).double(), torch.randn(1, 6, -(-13 // stride), -(-11 // stride)).double()
    if buffers is not None:
        x, grad, weights = buffers.copy(x), buffers.copy(grad), [buffers.copy(w) for w in weights]
    out, saved, stats = project(x, weights, None, EPS)
    dx, d_weights, _ = project_backward(grad, x, weights, saved, stats, True, EPS, True, True)
    return {"out": out, "d_x": dx} | {f"d_weight_{i}": d for i, d in enumerate(d_weights)}


@pytest.mark.parametrize("stride", [1, 2])
def test_preprocessing_writes_its_buffers_once_and_nothing_else(stride: int, request: pytest.FixtureRequest) -> None:
    true = projected(stride)
    buffers, writers = request.getfixturevalue("buffers"), request.getfixturevalue("writers")
    ours = projected(stride, buffers)
    buffers.assert_guards()
    for name, t in true.items():
        assert torch.equal(ours[name], t), name
    assert len(writers) > 5
    assert all(writers)


@pytest.fixture
def shuffled(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Programs run in another order; whether each has moved."""
    set_grid_idx = interpreter_builder.set_grid_idx
    moved: list[bool] = []

    def shuffle(x: int, y: int, z: int) -> None:
        nx, ny, nz = interpreter_builder.grid_dim
        order = np.random.default_rng(nx * ny * nz).permutation(nx * ny * nz)
        at = int(order[(x * ny + y) * nz + z])
        moved.append(at != (x * ny + y) * nz + z)
        set_grid_idx(at // (ny * nz), at // nz % ny, at % nz)

    monkeypatch.setattr(interpreter_builder, "set_grid_idx", shuffle)
    return moved


def assert_order_does_not_matter(run: Callable[[], dict[str, Tensor]], request: pytest.FixtureRequest) -> None:
    before = run()
    moved = request.getfixturevalue("shuffled")
    after = run()
    assert any(moved)
    for name, t in before.items():
        assert torch.equal(after[name], t), name


@pytest.mark.parametrize("stride", [1, 2])
def test_the_order_of_preprocessing_programs_does_not_matter(stride: int, request: pytest.FixtureRequest) -> None:
    assert_order_does_not_matter(lambda: projected(stride), request)


def test_the_order_of_programs_does_not_matter(case: Case, request: pytest.FixtureRequest) -> None:
    assert_order_does_not_matter(lambda: fused(case), request)
