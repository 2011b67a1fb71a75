"""Flat buffers: the operators against their formulas, weights that stay ordinary, SGD's updates, the CUDA sources."""

import copy
import io
import math
import pickle
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from fastdarts.bilevel.flat import FlatSGD, FlatWeights, as_scalar
from fastdarts.ops import flat_ops

CSRC = Path(__file__).resolve().parents[2] / "csrc"
SIZES = [1, 3, 127, 128, 2047, 2048, 2049, 300_001]  # around a lane, a row, a chunk of the norm; several threads
FLOATS = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def vectors(count: int, n: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    return [torch.randn(n, generator=generator, dtype=torch.float64).to(device, dtype) for _ in range(count)]


def scalar(value: float, device: torch.device) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, device=device)


def assert_rounded(got: Tensor, want: Tensor, terms: int) -> None:
    """`got` is `want` (float64) but for rounding: about one unit of its dtype for each term, each of size a few."""
    scale = want.abs().clamp(min=1.0)
    assert ((got.double() - want).abs() <= 4 * terms * torch.finfo(got.dtype).eps * scale).all()


@FLOATS
def test_gather(dtype: torch.dtype, device: torch.device) -> None:
    a, b = (t.reshape(4, 6) for t in vectors(2, 24, dtype, device))
    tensors = [a, b.T, a[:, ::2], b[0, 0], a[:0], b[1:, 1]]
    out = torch.full((24 + 24 + 12 + 1 + 3,), math.nan, dtype=dtype, device=device)
    assert flat_ops.gather(tensors, out) is out
    assert out.tolist() == [x for t in tensors for x in t.flatten().tolist()]
    for wrong in (out[:-1], torch.zeros(65, dtype=dtype, device=device)):
        with pytest.raises(ValueError, match=f"have {len(wrong)} elements together"):
            flat_ops.gather(tensors, wrong.clone())


@FLOATS
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("with_buffer", [True, False])
def test_virtual_step(n: int, dtype: torch.dtype, with_buffer: bool, device: torch.device) -> None:
    w, g, buffer = vectors(3, n, dtype, device)
    before, saved = w.clone(), torch.full_like(w, math.nan)
    flat_ops.virtual_step(w, saved, g, buffer if with_buffer else None, scalar(0.3, device), 0.9, 0.01)
    assert torch.equal(saved, before)
    momentum = 0.9 * buffer.double() if with_buffer else 0.0
    assert_rounded(w, before.double() - 0.3 * (momentum + g.double() + 0.01 * before.double()), 4)


@FLOATS
@pytest.mark.parametrize("n", [0, *SIZES])
def test_norm(n: int, dtype: torch.dtype, device: torch.device) -> None:
    (v,) = vectors(1, n, dtype, device)
    got = flat_ops.norm(v)
    assert got.dtype == torch.float64
    want = math.sqrt(math.fsum(x * x for x in v.tolist()))
    assert got.item() == pytest.approx(want, rel=1e-15 * max(1, math.log2(max(n, 1))))


def test_norm_is_summed_in_float64(device: torch.device) -> None:
    v = torch.full((1_000_000,), 1e-4, device=device)
    v[0] = 1e4
    # In float32 each 1e-8 would vanish beside 1e8.
    exact = math.sqrt(1e8 + 999_999 * float(torch.tensor(1e-4)) ** 2)
    assert flat_ops.norm(v).item() == pytest.approx(exact, rel=1e-14)
    assert flat_ops.norm(torch.full((5,), 1e30, device=device)).item() == pytest.approx(math.sqrt(5) * 1e30, rel=1e-6)


@FLOATS
def test_any_number_of_threads_gives_the_same_bits(dtype: torch.dtype) -> None:
    w, g, buffer = vectors(3, 300_001, dtype, torch.device("cpu"))
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            virtual, saved, new, moved = (t.clone() for t in (w, w, w, buffer))
            flat_ops.virtual_step(virtual, saved, g, buffer, as_scalar(0.3, w.device), 0.9, 0.01)
            norm = flat_ops.norm(g)
            flat_ops.clipped_sgd(new, moved, g, norm, as_scalar(0.1, w.device), 0.9, 0.01, 5.0)
            results.append([virtual, norm, new, moved])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@FLOATS
@pytest.mark.parametrize("n", SIZES)
def test_perturb(n: int, dtype: torch.dtype, device: torch.device) -> None:
    saved, v = vectors(2, n, dtype, device)
    w = torch.full_like(saved, math.nan)
    norm = v.double().norm()
    for r in (0.01, -0.01):
        flat_ops.perturb(w, saved, v, norm, r)
        assert_rounded(w, saved.double() + r / norm * v.double(), 2)
    flat_ops.perturb(w, saved, torch.zeros_like(v), scalar(0.0, device), 0.01)
    assert torch.equal(w, saved)


@FLOATS
def test_combine(dtype: torch.dtype, device: torch.device) -> None:
    direct, plus, minus = (t.reshape(14, 8) for t in vectors(3, 112, dtype, device))
    got = flat_ops.combine(direct, plus, minus, scalar(2.0, device), scalar(0.1, device), 0.5)
    assert got.dtype == dtype
    assert_rounded(got, direct.double() - 0.1 * (plus.double() - minus.double()) / (2 * 0.5 / 2.0), 3)
    got = flat_ops.combine(direct, plus, minus, scalar(0.0, device), scalar(0.1, device), 0.5)
    assert torch.equal(got, direct)


@FLOATS
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("max_norm", [0.5, math.inf])
def test_clipped_sgd(n: int, dtype: torch.dtype, max_norm: float, device: torch.device) -> None:
    w, buffer, g = vectors(3, n, dtype, device)
    w0, b0, g0 = (t.double() for t in (w.clone(), buffer.clone(), g.clone()))
    norm = g0.norm()
    flat_ops.clipped_sgd(w, buffer, g, norm, scalar(0.1, device), 0.9, 0.01, max_norm)
    assert torch.equal(g.double(), g0)
    want = 0.9 * b0 + min(1.0, max_norm / (norm.item() + 1e-6)) * g0 + 0.01 * w0
    assert_rounded(buffer, want, 4)
    assert_rounded(w, w0 - 0.1 * want, 5)


def test_what_is_not_finite_stays_visible(device: torch.device) -> None:
    ones, nan = torch.ones(4, device=device), torch.tensor([1.0, math.nan, 1.0, 1.0], device=device)
    norm = flat_ops.norm(nan)
    assert norm.isnan()
    w = ones.clone()
    flat_ops.perturb(w, ones, nan, norm, 0.01)
    assert w.isnan().all()
    w, buffer = ones.clone(), torch.zeros(4, device=device)
    flat_ops.clipped_sgd(w, buffer, nan, norm, scalar(0.1, device), 0.9, 0.0, 5.0)
    assert w.isnan().all()
    assert flat_ops.combine(ones, ones, ones, norm, scalar(0.1, device), 0.01).isnan().all()


def test_the_operators_are_well_formed(device: torch.device) -> None:
    w, g, buffer = vectors(3, 64, torch.float32, device)
    one = scalar(1.0, device)
    ops = torch.ops.fastdarts
    for operator, arguments in (
        (ops.flat_gather, ([w, g], torch.empty(128, device=device))),
        (ops.flat_virtual_step, (w, w.clone(), g, buffer, one, 0.9, 0.1)),
        (ops.flat_norm, (g,)),
        (ops.flat_perturb, (w, w.clone(), g, one, 0.01)),
        (ops.flat_combine, (w, g, buffer, one, one, 0.01)),
        (ops.flat_clipped_sgd, (w, buffer, g, one, one, 0.9, 0.1, 5.0)),
    ):
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": torch.zeros(4, dtype=torch.bfloat16)}, "float32 or float64; got torch.bfloat16"),
        ({"w": torch.zeros(8)[::2]}, "must be contiguous"),
        ({"g": torch.zeros(5)}, r"gradient must be contiguous torch.float32 \(4,\) on cpu; got torch.float32 \(5,\)"),
        ({"g": torch.zeros(4, dtype=torch.float64)}, "gradient must be"),
        ({"norm": torch.zeros(())}, "norm must be contiguous torch.float64"),
    ],
)
def test_operators_refuse(change: dict[str, Tensor], message: str) -> None:
    at = {"w": torch.zeros(4), "g": torch.zeros(4), "norm": torch.zeros((), dtype=torch.float64)} | change
    with pytest.raises(ValueError, match=message):
        flat_ops.clipped_sgd(
            at["w"], torch.zeros(4), at["g"], at["norm"], as_scalar(0.1, at["g"].device), 0.9, 0.0, 5.0
        )


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2)
    )


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, max_norm: float = math.inf) -> None:
    generator = torch.Generator().manual_seed(3)
    dtype = next(net.parameters()).dtype
    for _ in range(steps):
        x, y = (torch.randn(4, *shape, generator=generator).to(dtype) for shape in ((3, 8, 8), (2,)))
        optimizer.zero_grad()
        mse_loss(net(x), y).backward()
        nn.utils.clip_grad_norm_(net.parameters(), max_norm)
        optimizer.step()


def assert_same(a: nn.Module, b: nn.Module, tolerance: float = 0.0) -> None:
    for (name, ours), theirs in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_weights_become_views_and_keep_values_and_memory_formats(memory_format: torch.memory_format) -> None:
    net = network().to(memory_format=memory_format)
    before = copy.deepcopy(net)
    strides = [p.stride() for p in net.parameters()]
    flat = FlatWeights(net.parameters())
    assert_same(net, before)
    assert [p.stride() for p in net.parameters()] == strides
    assert flat.buffer.shape == (sum(p.numel() for p in net.parameters()),)
    with torch.no_grad():
        flat.buffer.zero_()
    assert all((p == 0).all() and p.is_leaf and type(p) is nn.Parameter for p in net.parameters())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gather_and_views_are_inverse_whatever_the_memory_format(memory_format: torch.memory_format) -> None:
    net = network().to(memory_format=memory_format)
    flat = FlatWeights(net.parameters())
    tensors = [torch.randn_like(p).contiguous() for p in net.parameters()]
    for got, want in zip(flat.views(flat.gather(tensors)), tensors, strict=True):
        assert torch.equal(got, want)
    assert torch.equal(flat.gather([p.detach() for p in net.parameters()]), flat.buffer)
    for missing in ({0, 1}, {1}, {len(tensors) - 1}, set(range(len(tensors)))):
        some = [None if i in missing else t for i, t in enumerate(tensors)]
        zeros = [torch.zeros_like(t) if i in missing else t for i, t in enumerate(tensors)]
        assert torch.equal(flat.gather(some), flat.gather(zeros))


def test_a_second_holder_takes_the_same_memory() -> None:
    net = network()
    first, second = FlatWeights(net.parameters()), FlatWeights(net.parameters())
    assert first.attach().data_ptr() == second.attach().data_ptr()
    net.double()
    assert first.attach().dtype == torch.float64
    assert first.buffer.data_ptr() == second.attach().data_ptr()


def _through_torch_save(net: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _through_state_dict(net: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    fresh = network()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)), _through_torch_save, _through_state_dict],
    ids=["deepcopy", "pickle", "torch.save", "state_dict"],
)
def test_copies_are_ordinary_and_independent(duplicate: Callable[[nn.Module], nn.Module]) -> None:
    net = network()
    flat = FlatWeights(net.parameters())
    twin = duplicate(net)
    assert_same(net, twin)
    assert [p.requires_grad for p in twin.parameters()] == [True] * len(flat.weights)
    with torch.no_grad():
        flat.buffer.zero_()
    assert all((p != 0).any() for name, p in twin.named_parameters() if name.endswith("0.weight"))


def test_pickles_do_not_grow() -> None:
    net, plain = network(), network()
    optimizer = FlatSGD(net.parameters(), 0.1)
    train(net, optimizer, 1)
    train(plain, ordinary := torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9), 1)
    assert len(pickle.dumps(net)) < 1.1 * len(pickle.dumps(plain))
    assert len(pickle.dumps(optimizer)) < 1.1 * len(pickle.dumps(ordinary))


def test_loading_and_other_optimizers_write_through() -> None:
    net, other, plain = network(), network(), network()
    flat = FlatWeights(net.parameters())
    net.load_state_dict(other.state_dict())
    plain.load_state_dict(other.state_dict())
    assert torch.equal(flat.attach(), flat.gather([p.detach() for p in other.parameters()]))
    train(net, torch.optim.AdamW(net.parameters(), 0.01), 3)
    train(plain, torch.optim.AdamW(plain.parameters(), 0.01), 3)
    assert_same(net, plain)
    assert torch.equal(flat.buffer, flat.gather([p.detach() for p in plain.parameters()]))


def test_mixed_weights_are_refused() -> None:
    net = network()
    net[4].double()
    with pytest.raises(ValueError, match=r"got torch\.float32 on cpu, torch\.float64 on cpu"):
        FlatWeights(net.parameters())
    with pytest.raises(ValueError, match=r"torch\.bfloat16 on cpu"):
        FlatWeights(network().bfloat16().parameters())
    with pytest.raises(ValueError, match="weights is empty"):
        FlatWeights([])


@pytest.mark.parametrize("max_norm", [0.1, math.inf])
@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.9, 3e-4), (0.0, 0.0)])
def test_flat_sgd_makes_the_updates_of_clipping_and_sgd(max_norm: float, momentum: float, weight_decay: float) -> None:
    net = network().double()
    plain = copy.deepcopy(net)
    ours = FlatSGD(net.parameters(), 0.05, momentum, weight_decay)
    theirs = torch.optim.SGD(plain.parameters(), 0.05, momentum=momentum, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        x, y = (torch.randn(4, *shape, generator=generator, dtype=torch.float64) for shape in ((3, 8, 8), (2,)))
        gradients = torch.autograd.grad(mse_loss(net(x), y), list(net.parameters()))
        ours.step(gradient=ours.flat.gather(gradients), max_norm=max_norm)
        theirs.zero_grad()
        mse_loss(plain(x), y).backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), max_norm)
        theirs.step()
        assert ours.gradient_norm.item() == pytest.approx(norm.item(), rel=1e-13)
    assert_same(net, plain, 1e-12)


def test_momentum_may_come_and_go() -> None:
    ours, theirs = (torch.linspace(-1, 1, 7).requires_grad_() for _ in range(2))
    flat, sgd = FlatSGD([nn.Parameter(ours.detach())], lr=0.1, momentum=0.0), torch.optim.SGD([theirs], 0.1)
    (weight,) = flat.flat.weights
    for momentum in (0.0, 0.9, 0.9, 0.0, 0.5):
        gradient = torch.randn(7)
        for optimizer, parameter in ((flat, weight), (sgd, theirs)):
            optimizer.param_groups[0]["momentum"] = momentum
            parameter.grad = gradient.clone()
            optimizer.step()
        assert torch.allclose(weight, theirs, rtol=1e-6, atol=1e-6), momentum


def test_flat_sgd_is_an_ordinary_optimizer() -> None:
    net = network().double()
    plain = copy.deepcopy(net)
    ours = FlatSGD(net.parameters(), 0.05, weight_decay=0.01)
    theirs = torch.optim.SGD(plain.parameters(), 0.05, momentum=0.9, weight_decay=0.01)
    for optimizer, model in ((ours, net), (theirs, plain)):
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
        for _ in range(3):
            train(model, optimizer, 2, max_norm=0.1)
            schedule.step()
    assert_same(net, plain, 1e-12)
    assert ours.step(lambda: 3.0) == 3.0


@pytest.mark.parametrize("direction", ["from torch", "to torch", "to itself"])
def test_state_dicts_of_flat_sgd_and_sgd_load_into_each_other(direction: str) -> None:
    def made(model: nn.Module, kind: str) -> torch.optim.Optimizer:
        if kind == "torch":
            return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.01)
        return FlatSGD(model.parameters(), 0.05, weight_decay=0.01)

    first, second = {"from torch": ("torch", "flat"), "to torch": ("flat", "torch"), "to itself": ("flat", "flat")}[
        direction
    ]
    net = network().double()
    optimizer = made(net, first)
    train(net, optimizer, 2)
    twin = copy.deepcopy(net)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    continued = made(twin, second)
    continued.load_state_dict(torch.load(file, weights_only=True))
    train(net, optimizer, 3)
    train(twin, continued, 3)
    assert_same(net, twin, 1e-12)


def test_a_fresh_state_of_sgd_loads_as_zero_momentum() -> None:
    net = network()
    optimizer = FlatSGD(net.parameters(), 0.05)
    train(net, optimizer, 1)
    optimizer.load_state_dict(torch.optim.SGD(network().parameters(), 0.05, momentum=0.9).state_dict())
    assert (optimizer.momentum == 0).all()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_flat_sgd_copies_with_its_network(duplicate: Callable[..., tuple[nn.Module, FlatSGD]]) -> None:
    net = network().double()
    optimizer = FlatSGD(net.parameters(), 0.05)
    train(net, optimizer, 2)
    twin, theirs = duplicate((net, optimizer))
    train(twin, theirs, 2)
    train(net, optimizer, 2)
    assert_same(net, twin)


def test_flat_sgd_follows_its_network() -> None:
    net = network()
    optimizer = FlatSGD(net.parameters(), 0.05)
    train(net, optimizer, 2)
    twin, theirs = copy.deepcopy((net, optimizer))
    net.double().to(memory_format=torch.channels_last)
    train(net, optimizer, 2)
    assert optimizer.momentum.dtype == torch.float64
    train(twin, theirs, 2)
    # float32 rounding over two steps
    assert_same(net.float(), twin, 1e-5)


def test_flat_sgd_refuses() -> None:
    net = network()
    with pytest.raises(ValueError, match="Invalid learning rate"):
        FlatSGD(net.parameters(), -1.0)
    state = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True).state_dict()
    with pytest.raises(ValueError, match="offers no nesterov"):
        FlatSGD(net.parameters(), 0.1).load_state_dict(state)


def test_the_cuda_sources_compile_without_spills(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not on PATH")
    source = tmp_path / "kernels.cu"
    passes = [
        f"{name}Pass<{t}>" for name in ("VirtualStep", "Perturb", "Combine", "ClippedSgd") for t in ("float", "double")
    ]
    launches = [
        f"template void launch_pass<{width}>(int64_t, const {name}&, cudaStream_t);"
        for name in passes
        for width in (1, 4 if "float" in name else 2)
    ] + [
        f"template void launch_norm<{t}, {width}>(int64_t, const {t}*, double*, double*, cudaStream_t);"
        for t, width in (("float", 4), ("float", 1), ("double", 2), ("double", 1))
    ]
    source.write_text(
        f'#include "{CSRC / "cuda" / "flat_kernels.cuh"}"\nnamespace fastdarts::flat {{\n'
        + "\n".join(launches)
        + "\n}\n"
    )
    targets = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in (80, 90, 100)]
    command = [nvcc, "-std=c++17", "-O3", "-Xptxas=-v", *targets, "-c", str(source), "-o", str(tmp_path / "kernels.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    # Each pass, and both stages of the norm, on three devices; the second stage is one kernel.
    assert len(spills) == 3 * (len(launches) + 1)
    assert set(spills) == {("0", "0")}


def test_a_weight_turned_in_its_own_memory_is_noticed() -> None:
    start = torch.randn(3, 3, dtype=torch.float64)
    gradient = torch.randn(3, 3, dtype=torch.float64)
    weights = [nn.Parameter(start.clone()) for _ in range(2)]
    for kind, weight in zip((FlatSGD, torch.optim.SGD), weights, strict=True):
        optimizer = kind([weight], 0.1, momentum=0.9)
        for step in range(3):
            if step == 1:
                weight.data = weight.data.t()
            weight.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(weights[0], weights[1])


def test_one_group_of_distinct_weights() -> None:
    weight, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match="weights holds a parameter more than once"):
        FlatWeights([weight, other, weight])
    with pytest.raises(ValueError, match="FlatSGD has one parameter group"):
        FlatSGD([weight], 0.1).add_param_group({"params": [other]})
