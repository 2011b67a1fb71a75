"""`mbconv_sum`: all blocks of a layer at once, against the layer's own modules."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastdarts.ops import mbconv
from fastdarts.spaces.layerwise import choice
from fastdarts.spaces.layerwise.blocks import InvertedResidual
from fastdarts.spaces.layerwise.chain import CHAINS, Chain, Layer
from fastdarts.spaces.layerwise.choice import ChoiceLayer

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(
    mbconv.unavailable(CPU, torch.float32) is not None, reason="needs fastdarts._C, which is not built"
)

FBNET, PROXYLESS = CHAINS["fbnet"], CHAINS["proxyless"]
# in and out channels, stride, (N, H, W), chain
LAYERS = {
    "shortcut": (24, 24, 1, (3, 14, 14), FBNET),
    "whole lines": (16, 16, 1, (2, 16, 9), PROXYLESS),
    "wider": (16, 24, 1, (2, 7, 7), FBNET),
    "stride 2": (8, 20, 2, (2, 9, 14), PROXYLESS),
    "stride 2, grouped": (12, 12, 2, (3, 8, 8), FBNET),
    "few channels": (2, 6, 1, (1, 5, 5), FBNET),
    "one pixel out": (4, 4, 2, (6, 2, 1), FBNET),
    "many rows": (4, 4, 1, (1, 70, 3), PROXYLESS),
}


def layer_of(name: str, dtype: torch.dtype = torch.float64) -> tuple[ChoiceLayer, Tensor, Tensor]:
    """A layer with random affine norms, its input and op weights."""
    inside, width, stride, (images, height, columns), chain = LAYERS[name]
    torch.manual_seed(0)
    choices = chain.blocks + (("skip",) if inside == width and stride == 1 else ())
    layer = ChoiceLayer(Layer(0, inside, width, stride, choices), chain).double()
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
    x = torch.randn(images, inside, height, columns, dtype=torch.float64) + 0.5
    weights = torch.rand(len(choices), dtype=torch.float64).softmax(0)
    return layer.to(dtype), x.to(dtype).contiguous(memory_format=torch.channels_last), weights.to(dtype)


def results(layer: ChoiceLayer, x: Tensor, weights: Tensor, fused: bool) -> dict[str, Tensor]:
    """The layer's output, its gradients, and its running statistics afterwards."""
    layer = copy.deepcopy(layer)
    layer.fused = fused
    x, weights = (tensor.clone().requires_grad_() for tensor in (x, weights))
    out = layer(x, weights)
    grad = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    params = dict(layer.named_parameters())
    found = torch.autograd.grad(out, [x, weights, *params.values()], grad, materialize_grads=True)
    named = dict(zip(["x", "weights", *params], found, strict=True))
    buffers = {name: buffer for name, buffer in layer.named_buffers() if buffer.is_floating_point()}
    counters = {name: buffer for name, buffer in layer.named_buffers() if not buffer.is_floating_point()}
    assert all(counter == 1 for counter in counters.values())
    return {"out": out.detach()} | named | buffers


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of blocks of each call of the operator."""
    made: list[int] = []
    meant = choice.mixture

    def counted(blocks: Any, *rest: Any) -> Tensor:
        made.append(len(blocks))
        return meant(blocks, *rest)

    monkeypatch.setattr(choice, "mixture", counted)
    return made


@pytest.mark.parametrize("name", LAYERS)
def test_float64_equals_the_modules(name: str, calls: list[int]) -> None:
    layer, x, weights = layer_of(name)
    ours, plain = results(layer, x, weights, True), results(layer, x, weights, False)
    assert calls == [sum(isinstance(op, InvertedResidual) for op in layer._ops)]
    for key, expected in plain.items():
        # the statistics of the first norms come from moments of x: squares of its condition, so fewer digits
        torch.testing.assert_close(
            ours[key], expected, rtol=1e-7, atol=1e-8, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["shortcut", "whole lines", "wider", "stride 2", "many rows"])
def test_errors_are_at_most_twice_those_of_modules(name: str, dtype: torch.dtype) -> None:
    layer, x, weights = layer_of(name, dtype)
    ours, plain = results(layer, x, weights, True), results(layer, x, weights, False)
    true = results(layer.double(), x.double(), weights.double(), False)
    for key, expected in true.items():
        # by the ninth decile: an activation within rounding of its kink may switch, in any computation
        error, theirs = (
            (found[key].double() - expected).abs().flatten().quantile(0.9).item() for found in (ours, plain)
        )
        # sums of some hundred terms, in another order
        floor = 16 * torch.finfo(dtype).eps * expected.square().mean().sqrt().item()
        assert error <= 2 * theirs + floor, f"{key}: {error:.2e}, modules {theirs:.2e}, floor {floor:.2e}"
        assert (ours[key].double() - expected).norm() <= 100 * torch.finfo(dtype).eps ** 0.75 * expected.norm() + floor


def test_alphas_alone_need_no_weight_gradients() -> None:
    layer, x, weights = layer_of("shortcut")
    expected = results(layer, x, weights, True)
    layer.requires_grad_(False)
    x.requires_grad_()
    weights.requires_grad_()
    out = layer(x, weights)
    grad = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    of_x, of_weights = torch.autograd.grad(out, [x, weights], grad)
    assert torch.equal(of_x, expected["x"])
    assert torch.equal(of_weights, expected["weights"])


@pytest.mark.parametrize("name", ["shortcut", "stride 2, grouped"])
def test_second_derivatives_are_those_of_the_modules(name: str) -> None:
    layer, x, weights = layer_of(name)
    found = []
    for fused in (True, False):
        layer.fused = fused
        row = weights.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(layer(x, row).square().sum(), row, create_graph=True)
        found.append(torch.autograd.grad((gradient * torch.arange(len(row))).sum(), [row, *layer.parameters()]))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-7)


def test_the_same_bits_in_each_call_and_memory_format() -> None:
    layer, x, weights = layer_of("stride 2", torch.float32)
    first, second = results(layer, x, weights, True), results(layer, x.contiguous(), weights, True)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_frozen_statistics_stay(calls: list[int]) -> None:
    layer, x, weights = layer_of("shortcut")
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
    layer(x, weights)
    assert calls == [8]
    assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())


def test_modules_serve_where_the_operator_does_not(calls: list[int]) -> None:
    layer, x, weights = layer_of("wider")
    layer(x, weights, active=[0, 1])
    assert calls.pop() == 2
    layer(x, weights, active=[3])
    layer.eval()(x, weights)
    layer.train()._ops[0].register_forward_hook(lambda *_: None)
    layer(x, weights)
    assert calls == []


def test_not_a_number_spreads_as_in_modules() -> None:
    layer, x, weights = layer_of("shortcut", torch.float32)
    x[1, 2, 3, 3] = float("nan")
    assert layer(x, weights).isnan().all()  # batch norms see all pixels


def small(dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    """Arguments of the operator for two candidates, as it takes them."""
    torch.manual_seed(0)
    shapes = [[(m, 3), (m,), (m,), (m, k * k), (m,), (m,), (3, m), (3,), (3,)] for m, k in ((3, 3), (5, 5))]
    params = [
        (torch.rand(shape, dtype=dtype) + 0.5 if len(shape) == 1 else torch.randn(shape, dtype=dtype)).requires_grad_()
        for candidate in shapes
        for shape in candidate
    ]
    x = torch.randn(2, 3, 4, 4, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    return x, params, torch.rand(2, dtype=dtype).requires_grad_(), [3, 5], 1, True, False, 1e-3


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.fastdarts.mbconv_sum.default, small())
    torch.library.opcheck(torch.ops.fastdarts.mbconv_sum.default, small(torch.float32))


@pytest.mark.parametrize(("stride", "shortcut", "six"), [(1, True, False), (2, False, True)])
def test_gradcheck(stride: int, shortcut: bool, six: bool) -> None:
    x, params, weights, kernels, _, _, _, eps = small()

    def call(x: Tensor, weights: Tensor, *params: Tensor) -> Tensor:
        return torch.ops.fastdarts.mbconv_sum(x, list(params), weights, kernels, stride, shortcut, six, eps)[0]

    assert torch.autograd.gradcheck(call, (x, weights, *params), eps=1e-7, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("at", "value", "error", "reason"),
    [
        (3, [3], ValueError, "1 kernels need 9 params"),
        (3, [3, 4], ValueError, "kernels must be 3, 5 or 7; got 4"),
        (3, [3, 3], ValueError, "params of candidate 1 do not fit 3 channels, 5 inside and 3 out"),
        (4, 3, ValueError, "stride must be 1 or 2; got 3"),
        (4, 2, ValueError, "a shortcut needs stride 1"),
        (7, float("nan"), ValueError, "eps must be a finite number"),
        (2, torch.ones(2), TypeError, "weights must be dense Double"),
        (0, torch.ones(2, 3, 4), ValueError, r"x must be \[N, C, H, W\]"),
        (0, torch.ones(2, 3, 4, 4, dtype=torch.int64), TypeError, "x must be floating-point"),
    ],
)
def test_wrong_arguments_are_refused(at: int, value: Any, error: type[Exception], reason: str) -> None:
    arguments = list(small())
    arguments[at] = value
    with pytest.raises(error, match=reason):
        torch.ops.fastdarts.mbconv_sum(*arguments)


def test_a_backward_with_other_tensors_is_refused() -> None:
    x, params, weights, *settings = small()
    out, saved, stats = torch.ops.fastdarts.mbconv_sum(x, params, weights, *settings)
    for parts in ((out[:1], saved, stats), (out, saved[1:], stats), (out, saved, stats[1:])):
        with pytest.raises(ValueError, match="must be those of the forward pass"):
            torch.ops.fastdarts.mbconv_sum_backward(parts[0], x, params, weights, *parts[1:], *settings, True)


def test_a_pass_keeps_a_quarter_of_the_bytes() -> None:
    """Keep one of four tensors inside each block: two norms' inputs, two activations' outputs."""
    layer, x, weights = layer_of("whole lines", torch.float32)
    x.requires_grad_()
    weights.requires_grad_()
    benchmark = pytest.importorskip("benchmarks.layers", reason="needs the benchmarks, which are not installed")
    ours = benchmark.kept_bytes(layer, x, weights)
    layer.fused = False
    assert ours < 0.25 * benchmark.kept_bytes(layer, x, weights)


@pytest.mark.slow
@pytest.mark.parametrize("instructions", ["portable", "avx2"])
def test_other_instruction_sets(instructions: str) -> None:
    if instructions == "avx2" and "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("needs a machine with AVX2")
    command = [sys.executable, "-m", "pytest", "-q", "-x", __file__, "-k", "modules or gradcheck"]
    done = subprocess.run(
        command, env={**os.environ, "FASTDARTS_CPU": instructions}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_whole_networks_agree() -> None:
    """A search step's gradients of a small chain, fused and by modules."""
    from fastdarts.spaces.layerwise.supernet import LayerwiseSupernet

    chain: Chain = CHAINS["fbnet"].changed(strides=[1, 1, 1, 2, 1, 1, 2, 1])
    gradients = []
    for backend in ("auto", "reference"):
        torch.manual_seed(0)
        network = LayerwiseSupernet("fbnet", chain, 8, 3, 1, 1, backend).double()  # type: ignore[arg-type]
        x = torch.randn(4, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        loss = network(x).square().sum()
        gradients.append(torch.autograd.grad(loss, [*network.alphas.values(), *network.parameters()]))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
