"""The model of what the Triton kernels move, against what their programs touch in Triton's interpreter."""

import os
from typing import Any

import numpy as np
import pytest
import torch
from kernel_cases import BARE, fused, make_case

pytest.importorskip("triton", reason="the kernels need Triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("looks into Triton's interpreter", allow_module_level=True)

from triton.runtime.interpreter import interpreter_builder

from benchmarks.launch_traffic import traffic_of
from benchmarks.traffic import WEIGHT, Counting, Search, launches_to, plain, plain_step
from benchmarks.traffic import fused as fused_steps
from fastdarts.kernels import bank, tiles

OPS = ("max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_3x3")


@pytest.mark.parametrize("ops", [OPS, OPS[1:], BARE], ids=["pools", "no pools", "pixels and bare pools"])
@pytest.mark.parametrize("stride", [1, 2])
def test_launches_touch_what_the_model_says(stride: int, ops: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "tile", lambda channels, *_: tiles.Tile(32, tiles.channel_block(channels), 4))
    touched: dict[tuple[int, ...], list[np.ndarray]] = {}  # by program: addresses, and in their last digits widths

    def watch(ptrs: Any, mask: Any) -> None:
        element = ptrs.get_element_ty()
        if not str(element).startswith("int32"):  # tables are not counted
            addresses = np.broadcast_to(ptrs.data, mask.data.shape)[mask.data.astype(bool)]
            width = element.primitive_bitwidth // 8
            touched.setdefault(interpreter_builder.grid_idx, []).append(addresses.astype(np.int64) * 16 + width)

    load, store = interpreter_builder.create_masked_load, interpreter_builder.create_masked_store
    monkeypatch.setattr(
        interpreter_builder, "create_masked_load", lambda p, m, *rest: (watch(p, m), load(p, m, *rest))[1]
    )
    monkeypatch.setattr(
        interpreter_builder, "create_masked_store", lambda p, v, m, *rest: (watch(p, m), store(p, v, m, *rest))[1]
    )
    started, wrong, names = bank.launch, [], set()

    def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
        touched.clear()
        started(kernel, grid, *args, **constants)
        name = kernel.fn.__name__
        names.add(name)
        real = sum(int((np.unique(np.concatenate(keys)) % 16).sum()) for keys in touched.values())
        said = traffic_of(name, grid, dict(zip(kernel.arg_names, args, strict=False)) | constants)
        if abs(said.bytes[name] - real) > 0.15 * real:
            wrong.append(f"{name} {grid}: {said.bytes[name]} said, {real} touched")

    inputs, nodes = (1, 1) if ops == OPS else (2, 2)  # with two inputs a program takes two edges
    size = (1, 8 * stride, 8 * stride)
    case = make_case(ops, inputs=inputs, nodes=nodes, stride=stride, C=16, size=size).to(torch.bfloat16)
    with launches_to(launch):
        fused(case)
    assert not wrong, "\n".join(wrong)
    assert len(names) == 8 + (stride == 2 and "skip_connect" in ops)  # reductions have a kernel of their own
    # Which of the two adds up a state's gradient depends on its pools.
    assert ("join_gradients_kernel" if ops == OPS[1:] else "pool_backward_kernel") in names


def test_conversions_and_copies_count_and_views_do_not() -> None:
    x = torch.ones(4, 2)
    with Counting() as counting, torch._C._AutoDispatchBelowAutograd():  # as an operator's kernel runs
        for y in (x.view(8), x.t(), x.to(torch.float32), x.contiguous()):
            assert y.data_ptr() == x.data_ptr()
        assert counting.traffic.launches.total() == 0
        x.to(torch.bfloat16), x.t().contiguous()
    assert counting.traffic.launches.total() == 2
    assert counting.traffic.bytes.total() == 8 * (4 + 2) + 8 * (4 + 4)


def test_a_step_moves_less_in_fewer_launches_than_the_plain_one() -> None:
    torch.set_num_threads(1)  # on a busy machine two wait for each other in each of 9,000 tiny operators
    search = Search(C=2, layers=3, batch=6, size=8)
    ours, theirs = fused_steps(search, WEIGHT)[WEIGHT], plain(search, WEIGHT)
    assert theirs.bytes == plain_step(search, WEIGHT, 6).bytes  # a constant and so much for each image
    assert 10 * ours.launches.total() < theirs.launches.total()
    assert ours.bytes["fastdarts::flat_norm"] >= 4 * sum(p.numel() for p in search.network("auto").parameters())
