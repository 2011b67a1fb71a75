"""The Triton kernels against the plain formulas in float64; without a GPU in Triton's interpreter, on CPU tensors."""

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from criterion import rounded_at_random
from kernel_cases import BARE, EPS, Case, assert_no_worse, fused, make_case, plain
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from fastdarts.ops import operators
from fastdarts.ops.plan import MixedPlan, PlannedEdge, edge_ops

pytest.importorskip("triton", reason="the kernels need Triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("with a GPU at hand test_gpu.py tests the compiled kernels", allow_module_level=True)

from fastdarts.kernels import bank, node, tables, tiles
from fastdarts.kernels.mixed_sum import mixed_sum, mixed_sum_backward
from fastdarts.kernels.project import project, project_backward

SMALL = ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_3x3")
FEW = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3")  # of many edges: a pool, a skip connection, two stages


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """32 pixels, so that small images have several tiles, the last one not full; several images to a program."""
    monkeypatch.setattr(tiles, "tile", lambda channels, *_: tiles.Tile(32, tiles.channel_block(channels), 4))
    monkeypatch.setattr(tiles, "PROGRAMS", 1)
    monkeypatch.setattr(tiles, "multiprocessors", lambda: 1)


def check(case: Case, dtype: torch.dtype) -> None:
    case = case.to(dtype)
    assert_no_worse(fused(case), plain(case, dtype), plain(case, torch.float64), torch.finfo(dtype).eps)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_an_edge_with_every_op(dtype: torch.dtype, stride: int) -> None:
    check(make_case(stride=stride), dtype)


@pytest.mark.parametrize("training", [True, False], ids=["batch", "running"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_norms_that_learn_and_factors_of_samples(dtype: torch.dtype, stride: int, training: bool) -> None:
    """As in found networks; scales may be negative, and some samples are dropped."""
    case = make_case((*SMALL, *BARE), stride=stride, training=training, size=(3, 5, 6), found=True)
    case.affine[:, 0, 1] *= -1
    check(case, dtype)


def test_a_found_cell() -> None:
    ops = ("sep_conv_3x3", "bare_max_pool_3x3", "skip_connect")
    check(make_case(ops, inputs=2, nodes=2, C=3, size=(3, 5, 4), found=True), torch.float64)


@pytest.mark.parametrize("stride", [1, 2])
def test_programs_that_take_one_image_each(stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there are, where a GPU has more multiprocessors than a batch has images."""
    monkeypatch.setattr(tiles, "multiprocessors", lambda: 132)
    grids = []
    real = bank.launch
    monkeypatch.setattr(
        bank, "launch", lambda k, grid, *a, **c: (grids.append((k.fn.__name__, grid)), real(k, grid, *a, **c))
    )
    check(make_case(FEW, stride=stride, size=(3, 4, 4)), torch.float64)
    over_images = ("stage_forward_kernel", "stage_backward_kernel", "pool_backward_kernel")
    assert {grid[0] for name, grid in grids if name in over_images} == {3}


def test_programs_that_take_a_half_of_an_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each leaves a share of its state's gradient."""
    monkeypatch.setattr(tiles, "multiprocessors", lambda: 8)
    case = make_case(("skip_connect", "sep_conv_3x3", "dil_conv_3x3"), inputs=2, size=(2, 2, 3))
    stages = [stage for bank_ in tables.tables(tuple(case.plan.encoded), 3).banks for stage in bank_.edges]
    assert [len(group) for group in bank.programs(stages, 2, True)] == [2, 1] * 2
    check(case, torch.float64)


def test_programs_are_as_many_as_fill_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case((*FEW, "dil_conv_3x3", "sep_conv_5x5"), inputs=1, nodes=2)
    stages = tables.tables(tuple(case.plan.encoded), 6).banks[0].edges  # four of each of two edges
    sizes = {}
    for count in (1, 2, 4, 8, 100):
        monkeypatch.setattr(tiles, "multiprocessors", lambda count=count: count)
        sizes[count] = [len(group) for group in bank.programs(stages, 1, True)]
    assert sizes == {1: [8], 2: [4, 4], 4: [2] * 4, 8: [1] * 8, 100: [1] * 8}


@pytest.mark.slow
@pytest.mark.parametrize("stride", [1, 2])
def test_a_cell(stride: int) -> None:
    check(make_case(SMALL, inputs=2, nodes=3, stride=stride), torch.float64)


@pytest.mark.parametrize("spread", [0.0, 1e-2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_channels_that_are_constant_over_the_batch(dtype: torch.dtype, stride: int, spread: float) -> None:
    """Or nearly so: there a batch norm multiplies what its statistics do not know of its input's rounding by up to 316.

    Some gradients are what roundings leave of sums that vanish: chance, of which only many channels and ops tell.
    """
    ops = (*("skip_connect", "nor_conv_1x1") * 3, "max_pool_3x3", "avg_pool_3x3", "dil_conv_3x3")
    case = make_case(ops, stride=stride, C=16, size=(2, 5, 4))
    case.states = [0.7 + spread * torch.randn(state.shape) for state in case.states]
    case, eps = case.to(dtype), torch.finfo(dtype).eps
    moved = []
    for seed in range(4 if spread else 0):  # what is nearly constant depends on the last bits of all that it is made of
        states, params = (
            [rounded_at_random(t.double(), eps, torch.Generator().manual_seed(seed)) for t in tensors]
            for tensors in (case.states, case.params)
        )
        moved.append(plain(replace(case, states=states, params=params), torch.float64))
    results = [fused(case), plain(case, dtype), plain(case, torch.float64)]
    for found in (*results, *moved):
        of_params = [name for name in found if name.startswith("d_param")]
        found["d_params"] = torch.cat([found.pop(name).flatten() for name in of_params])
    assert_no_worse(*results, eps, moved)


def test_gradients_of_two_values_are_sums_of_what_is_stored() -> None:
    """A norm makes -1 and 1 of any two values: all of a gradient cancels but float32's rounding of its terms, which are
    as large as the gradient with the same statistics held. Sums of unrounded numbers would leave bfloat16's."""
    case = make_case(("sep_conv_3x3",), C=8, size=(1, 2, 1))
    case = replace(case, states=[100 * s for s in case.states], params=[2 * p for p in case.params]).to(torch.bfloat16)
    _, _, stats = mixed_sum(case.states, case.weights, case.params, None, case.plan.encoded, EPS)
    held, true, ours = plain(replace(case, running=stats), torch.float64), plain(case, torch.float64), fused(case)
    for name in ("d_state_0", "d_param_0", "d_param_1"):
        error = (ours[name].double() - true[name]).abs().max().item()
        assert error <= torch.finfo(torch.float32).eps * held[name].abs().max().item(), name


def test_running_statistics() -> None:
    check(make_case((*SMALL, *BARE), stride=2, training=False), torch.float64)


@pytest.mark.parametrize("C", [2, 3, 17, 70])
def test_channels_that_fill_no_block_or_several(C: int) -> None:
    ops = ("sep_conv_3x3", "nor_conv_1x1", "avg_pool_3x3", "bare_max_pool_3x3")
    check(make_case(ops, C=C, size=(1, 4, 5)), torch.float64)


def test_the_largest_kernel() -> None:
    check(make_case(("sep_conv_7x7", "dil_conv_5x5"), C=2, size=(1, 5, 9)), torch.float64)


def test_stages_without_windows_in_several_blocks() -> None:
    check(make_case(("skip_connect", "nor_conv_1x1"), stride=2, C=80, size=(1, 5, 3)), torch.float64)


@pytest.mark.parametrize("ops", [BARE[:1], BARE[1:], (*BARE, "max_pool_3x3", "skip_connect")], ids="+".join)
@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_convolutions_and_pools_without_norm(stride: int, ops: tuple[str, ...]) -> None:
    """Alone, and where a state's pools have a norm on some edges; of two nodes."""
    check(make_case(ops, inputs=2, nodes=2, stride=stride, size=(2, 5, 6)), torch.float64)


@pytest.mark.parametrize("pool", ["max_pool_3x3", "bare_max_pool_3x3"])
def test_the_first_of_equal_values_takes_the_gradient_of_a_maximum(pool: str) -> None:
    case = make_case((pool,), nodes=1).to(torch.float64)
    case.states = [state.round() for state in case.states]
    check(case, torch.float64)


def test_not_a_number_is_a_maximum() -> None:
    case = make_case(("max_pool_3x3", "bare_max_pool_3x3"), training=False)
    case.states[0][0, 0, 2, 2] = float("nan")
    case = case.to(torch.float64)
    out, _, _ = mixed_sum(case.states, case.weights, case.params, case.running, case.plan.encoded, EPS)
    assert torch.equal(out.isnan(), plain(case, torch.float64)["out"].isnan())


@pytest.mark.parametrize("stride", [1, 2])
def test_not_a_number_reaches_all_gradients_that_it_reaches_in_modules(stride: int) -> None:
    """Through the maximum that it is, and through each relu."""
    for name in ("max_pool_3x3", "sep_conv_3x3", "dil_conv_3x3", "nor_conv_1x1", "skip_connect"):
        case = make_case((name,), stride=stride, nodes=1).to(torch.float64)
        case.states[0][0, 0, 2, 2] = float("nan")
        want, got = plain(case, torch.float64), fused(case)
        for key, values in want.items():
            assert not got[key][~values.isfinite()].isfinite().any(), f"{key} of {name}"


def test_edges_may_differ_in_their_ops_and_layouts() -> None:
    ops = ("skip_connect", "sep_conv_3x3", "dil_conv_3x3", *BARE)
    edges = (
        PlannedEdge(0, 2, 1, edge_ops(ops, (0, 2))),
        PlannedEdge(1, 2, 1, edge_ops(ops, (1, 5))),
        PlannedEdge(2, 3, 1, edge_ops(ops, (0, 3, 4))),
        PlannedEdge(1, 3, 1, edge_ops(ops, ())),
    )
    case = make_case(("sep_conv_3x3",), inputs=2)
    sep, dil, pixel = case.params[:4], case.params[4:6], case.params[5:6]
    wide = torch.randn(2, 6, 5, 12).permute(0, 3, 1, 2)  # channels-last, of which state 0 is a slice
    case = Case(
        MixedPlan(2, 2, edges),
        [wide[:, 4:8], case.states[1]],
        torch.rand(4, len(ops)),
        [*dil, *sep, *pixel],
        None,
        wide[:, :8],
    )
    check(case, torch.float64)


def test_only_what_is_needed() -> None:
    case = make_case((*FEW, "nor_conv_1x1"), inputs=2, nodes=2, size=(1, 7, 6)).to(torch.float64)
    out, saved, stats = mixed_sum(case.states, case.weights, case.params, None, case.plan.encoded, EPS)
    rest = case.states, case.weights, case.params, out, saved, stats, case.plan.encoded, True, EPS
    true = plain(case, torch.float64)
    d_weights, d_states, d_params, _ = mixed_sum_backward(case.grad, *rest, [0, 1], False)
    assert [d.numel() for d in d_states] == [0, case.states[1].numel()]
    assert not any(d.numel() for d in d_params)
    torch.testing.assert_close(d_weights, true["d_weights"])
    torch.testing.assert_close(d_states[1], true["d_state_1"])
    _, d_states, d_params, _ = mixed_sum_backward(case.grad, *rest, [0, 0], True)
    assert not any(d.numel() for d in d_states)
    torch.testing.assert_close(d_params, [true[f"d_param_{i}"] for i in range(len(d_params))])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.states.append(c.states[0]), "1 inputs; got 2"),
        (lambda c: c.params.pop(), "elements"),
        (lambda c: c.params.pop(0), "elements"),
        (lambda c: setattr(c, "weights", c.weights[:, :2]), "no column 2"),
        (lambda c: setattr(c, "states", [c.states[0][:, :, :0]]), "states must be"),
        (lambda c: setattr(c, "plan", replace(c.plan, K=2)), "no GPU kernel for partial channels"),
    ],
)
def test_wrong_sizes_are_refused(change, message: str) -> None:
    case = make_case(("skip_connect", "nor_conv_1x1", "dil_conv_3x3"))
    change(case)
    with pytest.raises(ValueError, match=message):
        mixed_sum(case.states, case.weights, case.params, None, case.plan.encoded, EPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_a_gpu_is_never_waited_for(stride: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """On fake CUDA tensors, which have no values to look at; the results are what the operators' fakes promise."""
    started = []
    monkeypatch.setattr(bank, "launch", lambda kernel, *_, **__: started.append(kernel))
    monkeypatch.setattr(node, "launch", lambda kernel, *_, **__: started.append(kernel))
    monkeypatch.setattr(
        tables,
        "_copied",
        lambda rows, device, dtype, stream: torch.empty(rows and (len(rows), len(rows[0])), dtype=dtype, device=device),
    )
    # Without a driver torch cannot say.
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    case = make_case((*SMALL, *BARE), inputs=2, nodes=2, stride=stride).to(dtype)
    with FakeTensorMode():
        on_gpu = [
            torch.empty(t.shape, dtype=t.dtype, device="cuda") for t in (*case.states, case.weights, *case.params)
        ]
        states, weights, params = on_gpu[:2], on_gpu[2], on_gpu[3:]
        args = states, weights, params
        ours = mixed_sum(*args, None, case.plan.encoded, EPS)
        _assert_alike(ours, torch.ops.fastdarts.mixed_sum(*args, None, case.plan.encoded, EPS))
        grad = torch.empty(case.grad.shape, dtype=dtype, device="cuda")
        rest = (grad, *args, *ours, case.plan.encoded, True, EPS, [1, 0], True)
        _assert_alike(mixed_sum_backward(*rest), torch.ops.fastdarts.mixed_sum_backward(*rest))
        halves = [torch.empty(4 // stride, 4, 1, 1, device="cuda") for _ in range(stride)]
        ours = project(states[0], halves, None, EPS)
        _assert_alike(ours, torch.ops.fastdarts.project(states[0], halves, None, EPS))
        rest = (torch.empty_like(ours[0]), states[0], halves, *ours[1:], True, EPS, True, True)
        _assert_alike(project_backward(*rest), torch.ops.fastdarts.project_backward(*rest))
    assert len(started) > 20


def _assert_alike(ours: object, promised: object) -> None:
    for mine, theirs in zip(tree_leaves(ours), tree_leaves(promised), strict=True):
        assert (mine.shape, mine.dtype, mine.device) == (theirs.shape, theirs.dtype, theirs.device)
        assert mine.stride() == theirs.stride() or 1 in mine.shape or not mine.numel()


def plain_projection(x: Tensor, params: list[Tensor], running: Tensor | None) -> Tensor:
    x = F.relu(x)
    if len(params) == 1:
        y = F.conv2d(x, params[0])
    else:
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        y = torch.cat([F.conv2d(x, params[0], stride=2), F.conv2d(x[:, :, 1:, 1:], params[1], stride=2)], dim=1)
    mean, var = (None, None) if running is None else running[0]
    return F.batch_norm(y, mean, var, training=running is None, eps=EPS)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("stride", "C_in", "C"), [(1, 6, 4), (2, 3, 8), (1, 70, 66), (2, 20, 70)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_project(dtype: torch.dtype, stride: int, C_in: int, C: int, training: bool) -> None:
    for found in (False, True):
        check_projection(torch.randn(2, C_in, 5, 7).to(dtype), stride, C, training, found)


@pytest.mark.parametrize("spread", [0.0, 1e-2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_project_of_channels_that_are_constant_over_the_batch(dtype: torch.dtype, stride: int, spread: float) -> None:
    check_projection((0.7 + spread * torch.randn(2, 6, 6, 8)).to(dtype), stride, 16, True)


def check_projection(x: Tensor, stride: int, C: int, training: bool, found: bool = False) -> None:
    dtype, C_in = x.dtype, x.shape[1]
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    params = [(torch.randn(C // stride, C_in, 1, 1) / C_in**0.5).to(compute) for _ in range(stride)]
    running = None if training else torch.stack([0.1 * torch.randn(1, C), 0.5 + torch.rand(1, C)], dim=1).to(compute)
    size = [-(-n // stride) for n in x.shape[2:]]
    grad = torch.randn(2, C, *size).to(dtype)
    affine = torch.randn(1, 2, C).to(compute) if found else None

    def plain_in(kind: torch.dtype) -> dict[str, Tensor]:
        learned = [] if affine is None else [affine]
        inputs = [t.to(kind).requires_grad_() for t in (x, *params, *learned)]
        out = plain_projection(inputs[0], inputs[1 : 1 + stride], None if running is None else running.to(kind))
        if learned:
            out = out * inputs[-1][0, 0, :, None, None] + inputs[-1][0, 1, :, None, None]
        return dict(enumerate([out.detach(), *torch.autograd.grad(out, inputs, grad.to(kind))]))

    out, saved, stats = project(x, params, running, EPS, affine)
    dx, d_params, d_affine = project_backward(grad, x, params, saved, stats, training, EPS, True, True, affine)
    learned = [] if affine is None else [d_affine]
    ours = dict(enumerate([out, dx, *d_params, *learned]))
    assert_no_worse(ours, plain_in(dtype), plain_in(torch.float64), torch.finfo(dtype).eps)


@pytest.mark.slow
def test_a_network_through_the_kernels_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastdarts import SearchNetwork

    monkeypatch.setattr(tiles, "tile", lambda channels, *_: tiles.Tile(128, tiles.channel_block(channels), 4))
    kinds = {"C": 4, "num_classes": 3, "layers": 3, "steps": 1, "multiplier": 1, "primitives": FEW}
    network = SearchNetwork(**kinds, backend="auto").double()
    reference = SearchNetwork(**kinds, backend="reference").double()
    reference.load_state_dict(network.state_dict())
    for ours, theirs in zip(network.arch_parameters(), reference.arch_parameters(), strict=True):
        theirs.data.copy_(ours.data)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    calls = []

    def counted(name: str, kernel):
        def run(*args):
            calls.append(name)
            return kernel(*args)

        return run

    library = torch.library.Library("fastdarts", "IMPL")
    kernels = {
        "mixed_sum": mixed_sum,
        "mixed_sum_backward": mixed_sum_backward,
        "project": project,
        "project_backward": project_backward,
    }
    monkeypatch.setattr(operators, "unavailable", lambda *_: None)
    try:
        for name, kernel in kernels.items():
            library.impl(name, counted(name, kernel), "CPU", allow_override=True)
        results = []
        for net in (network, reference):
            loss = net(x).square().sum()
            grads = torch.autograd.grad(loss, [*net.arch_parameters(), *net.parameters()])
            results.append([loss.detach(), *grads, *net.buffers()])
    finally:
        library._destroy()
    assert calls.count("mixed_sum") == calls.count("mixed_sum_backward") == 3
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
