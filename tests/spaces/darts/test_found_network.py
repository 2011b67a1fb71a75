"""Discrete networks through the kernels: equal to plain modules, with drop path, in training and in use."""

import copy
from collections.abc import Callable

import pytest
import torch
from criterion import Results, assert_no_worse, pooled, rounded_at_random
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastdarts import DARTS_V2, EvalNetwork, Genotype, register_primitive
from fastdarts.bilevel.flat import FlatSGD
from fastdarts.bilevel.train_step import TrainStep
from fastdarts.ops import operators
from fastdarts.spaces.darts.discrete import EvalCell

pytestmark = pytest.mark.skipif(
    operators.unavailable(torch.device("cpu"), torch.float32) is not None,
    reason="needs fastdarts._C, which is not built",
)


class Scaled(nn.Module):
    """A user's own op: halves x at stride 1, takes every other pixel at stride 2."""

    def __init__(self, C: int, stride: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((C,), 0.5))
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return self.factor.view(-1, 1, 1) * x[:, :, :: self.stride, :: self.stride]


@pytest.fixture(autouse=True)
def scaled_is_registered(registrations_undone: None) -> None:
    register_primitive("scaled_of_found", lambda C, stride, affine: Scaled(C, stride))


EVERY_OP = (
    Genotype(  # any number of ops a node, ops without kernels, an op twice, an input and no last node in the concat
        normal=[
            [("sep_conv_3x3", 0), ("scaled_of_found", 1), ("none", 1)],
            [("skip_connect", 0), ("dil_conv_5x5", 2), ("max_pool_3x3", 1), ("avg_pool_3x3", 2)],
            [],
            [("conv_7x1_1x7", 3), ("nor_conv_1x1", 2), ("sep_conv_5x5", 3), ("sep_conv_5x5", 3)],
            [],
        ],
        normal_concat=[1, 5, 3],
        reduce=[
            [("avg_pool_3x3", 0), ("sep_conv_7x7", 1), ("skip_connect", 0)],
            [("skip_connect", 2), ("scaled_of_found", 0), ("nor_conv_1x1", 1)],
            [("dil_conv_3x3", 1), ("max_pool_3x3", 1)],
        ],
        reduce_concat=[2, 4],
    )
)
GENOTYPES = {"DARTS_V2": DARTS_V2, "every_op": EVERY_OP}


def found(genotype: Genotype, backend: str = "reference", **options: object) -> EvalNetwork:
    """A small network whose batch norms scale and shift, as after some training."""
    network = EvalNetwork(genotype, **({"C": 4, "num_classes": 3, "layers": 3} | options), backend=backend)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias, 0.0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network


def with_backend(network: nn.Module, backend: str) -> nn.Module:
    twin = copy.deepcopy(network)
    for part in twin.modules():
        if isinstance(part, EvalNetwork | EvalCell):
            part.backend = backend
    return twin


def run(network: nn.Module, x: Tensor, seed: int = 3) -> Results:
    """Outputs, gradients of their weighted sum, and buffers; bfloat16 under autocast."""
    torch.manual_seed(seed)
    leaf = x.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype == torch.bfloat16):
        outputs = network(leaf.to(torch.promote_types(x.dtype, torch.float32)))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    total = sum((y.double() * torch.arange(1.0, 1 + y.numel()).view_as(y).sin()).sum() for y in outputs)
    named = {"x": leaf, **dict(network.named_parameters())}
    grads = torch.autograd.grad(total, list(named.values()), allow_unused=True, materialize_grads=True)
    results = {f"y{i}": y.detach() for i, y in enumerate(outputs)}
    results |= {f"d {name}": grad for name, grad in zip(named, grads, strict=True)}
    return results | {name: buffer.clone() for name, buffer in network.named_buffers()}


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("genotype", GENOTYPES)
def test_equals_plain_modules_in_float64(genotype: str, training: bool, stem: str) -> None:
    plain = found(GENOTYPES[genotype], drop_path_prob=0.3, stem=stem).double().train(training)
    x = torch.randn(5, 3, 13 if stem == "cifar" else 33, 14 if stem == "cifar" else 40, dtype=torch.float64)
    ours, theirs = run(with_backend(plain, "fused"), x), run(plain, x)
    assert ours.keys() == theirs.keys()
    for name, exact in theirs.items():
        scale = max(exact.abs().max().item(), 1e-6) if exact.numel() else 1.0
        torch.testing.assert_close(
            ours[name], exact, rtol=0, atol=3e-11 * scale, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_as_good_as_plain_modules(training: bool, dtype: torch.dtype) -> None:
    """A cell of all kinds of ops. A network amplifies roundings: see the float64 test."""
    eps, generator = torch.finfo(dtype).eps, torch.Generator().manual_seed(1)
    network = found(EVERY_OP, drop_path_prob=0.3, layers=1, auxiliary=False).train(training)
    x = torch.randn(6, 3, 9, 8).to(dtype)
    exact = copy.deepcopy(network).double()
    moved = []
    for _ in range(2):
        other = copy.deepcopy(exact)
        with torch.no_grad():
            for p in other.parameters():
                p.copy_(rounded_at_random(p, eps, generator))
        moved.append(run(other, rounded_at_random(x.double(), eps, generator)))
    results = run(with_backend(network, "fused"), x), run(network, x), *moved, run(exact, x.double())
    if dtype == torch.bfloat16:
        results = tuple(pooled(one, results[-1]) for one in results)
    ours, plain, *moved, true = results
    assert_no_worse(ours, plain, true, moved, eps)


def test_names_and_strict_loading_are_the_original_ones() -> None:
    ours, plain = EvalNetwork(DARTS_V2, C=4, layers=3), EvalNetwork(DARTS_V2, C=4, layers=3, backend="reference")
    assert not any(name.rpartition(".")[2].startswith("_") for name in ours.state_dict())
    plain.load_state_dict(ours.state_dict(), strict=True)


def test_both_backends_drop_the_same() -> None:
    """Factors come from the default generator and from it alone: also a probability of 0 draws."""
    x = torch.randn(64, 4, 6, 5)
    genotype = Genotype(
        [("max_pool_3x3", 0), ("skip_connect", 1)], [2], [("skip_connect", 0), ("skip_connect", 1)], [2]
    )
    drawn = {}
    for backend in ("fused", "reference"):
        torch.manual_seed(5)
        cell = EvalCell(
            genotype.cell(0, reduction=False), 4, 4, 4, reduction=False, reduction_prev=False, backend=backend
        )
        drawn[backend] = [cell(x, x, p).detach() for p in (0.5, 0.0, torch.tensor(0.3))]
        drawn[backend].append(torch.rand(3))
    for ours, theirs in zip(*drawn.values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_twenty_steps_from_one_seed() -> None:
    images, targets = torch.randn(20, 6, 3, 8, 8, dtype=torch.float64), torch.randint(3, (20, 6))
    plain = found(DARTS_V2, drop_path_prob=0.2).double()
    losses = {}
    for backend in ("fused", "reference"):
        torch.manual_seed(7)
        network = with_backend(plain, backend)
        optimizer = FlatSGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=3e-4)
        step = TrainStep(
            network, optimizer, lambda y, t: cross_entropy(y.double(), t), auxiliary_weight=0.4, grad_clip=5.0
        )
        losses[backend] = []
        for i, batch in enumerate(zip(images, targets, strict=True)):
            network.drop_path_prob = 0.01 * i
            losses[backend].append(step.step(batch).loss)
    # The loss sees logits in float32, of which a last bit may differ: some 1e-7, and training goes on from there.
    torch.testing.assert_close(losses["fused"], losses["reference"], rtol=1e-4, atol=1e-6)


def test_a_new_drop_path_probability_compiles_nothing() -> None:
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    network = found(DARTS_V2, "auto", layers=1, auxiliary=False)
    compiled = torch.compile(network, backend=counter, fullgraph=True)
    x = torch.randn(2, 3, 8, 8)
    for probability in (0.0, 0.1, 0.2):
        network.drop_path_prob = probability
        compiled(x)
    assert counter.frame_count == 1


def kernels_called(work: Callable[[], object]) -> set[str]:
    with torch.profiler.profile() as profile:
        work()
    return {event.name for event in profile.events() if event.name.startswith("fastdarts::")}


def test_who_computes_is_chosen() -> None:
    x = torch.randn(2, 3, 8, 8)
    for backend, used in (("auto", True), ("fused", True), ("reference", False)):
        network = found(DARTS_V2, backend, layers=2)
        assert ("fastdarts::mixed_sum" in kernels_called(lambda network=network: network(x))) == used
    network = found(DARTS_V2, "fused", layers=4)
    network.cells[0]._ops[0].op[3].momentum = None
    with pytest.raises(RuntimeError, match="backend 'fused' cannot serve here: its batch norms differ"):
        network(x)
    with pytest.raises(ValueError, match="backend must be one of auto, reference, fused; got 'cuda'"):
        found(DARTS_V2, "cuda")


def test_hooks_on_an_op_are_called() -> None:
    network, seen = found(DARTS_V2, "fused", layers=1), []
    network.cells[0]._ops[1].register_forward_hook(lambda module, x, y: seen.append(y.shape))
    plain = with_backend(network, "reference")
    x = torch.randn(2, 3, 8, 8)
    torch.manual_seed(1)
    ours = network(x)[0]
    torch.manual_seed(1)
    torch.testing.assert_close(ours, plain(x)[0], rtol=1e-3, atol=1e-3)
    assert len(seen) == 2
