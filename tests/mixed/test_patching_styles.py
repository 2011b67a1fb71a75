"""`patch` on the forwards that mixed operations have in other people's code: each trains to the same numbers."""

import copy
import itertools
import random
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from drop_in import original, partial_channels
from torch import Tensor, nn

import fastdarts
from fastdarts import MixedOp
from fastdarts.mixed.patching.patched import PATIENCE
from fastdarts.ops import operators

pytestmark = pytest.mark.skipif(
    operators.unavailable(torch.device("cpu"), torch.float32) is not None,
    reason="needs fastdarts._C, which is not built",
)

C, N = 4, 6


def candidates(C: int = C, stride: int = 1) -> list[nn.Module]:
    """Six ops: three with parameters, a pool, a skip connection, none."""
    pool = nn.Sequential(nn.AvgPool2d(3, stride, 1, count_include_pad=False), nn.BatchNorm2d(C, affine=False))
    skip = original.Identity() if stride == 1 else original.FactorizedReduce(C, C)
    sep, dil = original.SepConv(C, 3, stride, 1), original.DilConv(C, 3, stride, 2, 2)
    return [sep, pool, skip, original.Zero(stride), dil, original.SepConv(C, 5, stride, 2)]


class Sum(nn.Module):
    """The plain weighted sum, and what its subclasses make of it."""

    def __init__(self, ops: Sequence[nn.Module] | None = None) -> None:
        super().__init__()
        self._ops = nn.ModuleList(candidates() if ops is None else ops)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self._ops, strict=False))  # type: ignore[return-value]


class SkipsZeros(Sum):
    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self._ops, strict=True) if w != 0)  # type: ignore[return-value]


class SkipsSmall(Sum):
    """With a list of products, as GDAS does."""

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        kept = [weights[j] * self._ops[j](x) for j, w in enumerate(weights.tolist()) if abs(w) > 1e-10]
        return sum(kept) if kept else torch.zeros_like(x)  # type: ignore[return-value]


class RunsAllAddsSome(Sum):
    """Batch norms of the ops that are not added have counted the batch."""

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        outs = [op(x) for op in self._ops]
        return sum((w * out for w, out in zip(weights, outs, strict=True) if w > 0), 0 * x)


class Thresholds(Sum):
    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return super().forward(x, weights * (weights > 0))


class Temperature(Sum):
    def __init__(self) -> None:
        super().__init__()
        self.temperature = 2.0

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return super().forward(x, (weights / self.temperature).softmax(0))


class Detached(Sum):
    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return super().forward(x, weights.detach())


class Shuffles(Sum):
    """Partial channels, all in one."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__(candidates(stride=stride))
        self.mp = nn.MaxPool2d(2, 2)
        self.k = 4

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        part = x.shape[1] // self.k
        mixed = sum(w * op(x[:, :part]) for w, op in zip(weights, self._ops, strict=True) if w != 0)
        if self.k == 1:
            return mixed  # type: ignore[return-value]
        rest = x[:, part:]
        if mixed.shape[2] != x.shape[2]:  # type: ignore[union-attr]
            rest = self.mp(rest)
        return partial_channels.channel_shuffle(torch.cat([mixed, rest], dim=1), self.k)  # type: ignore[list-item]


class Stacks(Sum):
    """Alphas of its own, a product with a view of them, a sum over a stack."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.randn(N))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        outs = torch.stack([op(x) for op in self._ops])
        shape = [-1] + [1] * (outs.dim() - 1)
        return torch.sum(outs * (F.softmax(self.alpha, -1) + weights).view(*shape), 0)


class InDictionary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.choices = nn.ModuleDict({f"op{i}": op for i, op in enumerate(candidates())})

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        total: Tensor | float = 0.0
        for weight, (_, op) in zip(weights, self.choices.items(), strict=True):
            total = total + op(x) * weight
        return total  # type: ignore[return-value]


class ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for i, op in enumerate(candidates()):
            self.add_module(f"branch_{i}", op)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        first = weights[0] * self.branch_0(x) + weights[1] * self.branch_1(x)
        return first + sum(weights[i] * getattr(self, f"branch_{i}")(x) for i in range(2, N))


class Children(ByName):
    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self.children(), strict=True))  # type: ignore[return-value]


class ByRegistry(ByName):
    """Looks its children up in the module's registry, as NNI's choices do."""

    def __getitem__(self, name: str) -> nn.Module:
        return self._modules[name]  # type: ignore[return-value]

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        outs = [self[f"branch_{i}"](x) for i in range(N)]
        return sum(out * w for out, w in zip(outs, weights, strict=True))  # type: ignore[return-value]


class WithData(nn.Module):
    """An op that is given more than its input."""

    def __init__(self, op: nn.Module) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: Tensor, data: object) -> Tensor:
        return self.op(x)


class InOwnList(nn.Module):
    """Ops in a plain list beside the registry, and ops with a second argument, as in NASLib."""

    def __init__(self) -> None:
        super().__init__()
        self.primitives = [WithData(op) for op in candidates()]
        for i, op in enumerate(self.primitives):
            self.add_module(f"primitive-{i}", op)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x, None) for w, op in zip(weights, self.primitives, strict=True))  # type: ignore[return-value]


class AsksForTensors(Sum):
    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        outs = [op(x) for op in self._ops]
        if not all(isinstance(out, Tensor) for out in outs):
            raise TypeError("not tensors")
        return sum(w * out for w, out in zip(weights, outs, strict=True)) + 0 * outs[0].detach()  # type: ignore[return-value]


class WithNone(nn.Module):
    """A list with gaps."""

    def __init__(self) -> None:
        super().__init__()
        self._ops = nn.ModuleList([*candidates()[:3], None, *candidates()[4:]])

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self._ops, strict=True) if op is not None)  # type: ignore[return-value]


class DropsPath(Sum):
    """Random numbers of its own, around the sum."""

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        mask = torch.bernoulli(torch.full((len(x), 1, 1, 1), 0.5, dtype=x.dtype))
        return super().forward(x, weights) * mask / 0.5


class Auxiliary(Sum):
    """A skip connection beside the weighted ops, which fades."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = original.Identity()
        self.schedule = {"rate": 0.7}

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        out = super().forward(x, weights)
        out += self.auxiliary(x) * self.schedule["rate"]
        return out


class HoldsMore(Sum):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.2)
        self.object = object()

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return self.dropout(super().forward(x, weights))


class UsesOutputsTwice(Sum):
    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        outs = [op(x) for op in self._ops]
        self.seen = outs[0].abs().mean().item()
        return sum(w * out for w, out in zip(weights, outs, strict=True)) + outs[4]  # type: ignore[return-value]


class GoesOn(Sum):
    """Reads a sum, then adds to it, and uses an output of it again."""

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        outs = [op(x) for op in self._ops]
        half = weights[0] * outs[0] + weights[1] * outs[1]
        gate = half.mean().sigmoid()
        return half + gate * sum(w * out for w, out in zip(weights[2:], outs[2:], strict=False)) + outs[0] * outs[0]  # type: ignore[return-value]


class Deviant(original.FactorizedReduce):
    """Without the shift by a pixel."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x)], dim=1))


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.randn_like(x)


def with_random_ops() -> nn.Module:
    skip = nn.Sequential(original.Identity(), nn.Dropout(0.3))
    return Sum([original.SepConv(C, 3, 1, 1), skip, Noise(), nn.Dropout(0.5), *candidates()[3:]])


class Interleaved(Temperature):
    """Ops of one's own between those with kernels."""

    def __init__(self) -> None:
        super().__init__()
        sep, pool, skip, _, dil, other = candidates()
        self._ops = nn.ModuleList([sep, nn.MaxPool2d(3, 1, 1), pool, nn.Conv2d(C, C, 1), skip, dil, nn.Tanh(), other])


def with_biases(stride: int = 1) -> nn.Module:
    module = Sum(candidates(stride=stride))
    for part in list(module.modules()):
        if isinstance(part, nn.Conv2d):
            part.bias = nn.Parameter(torch.randn(part.out_channels))
    return module


def with_inplace_relu(index: int) -> nn.Module:
    module = Sum()
    module._ops[index].op[0] = nn.ReLU(inplace=True)
    return module


def with_deviant_op() -> nn.Module:
    return Sum([*candidates(stride=2)[:5], Deviant(C, C)])


STYLES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "plain": (Sum, C),
    "skips zeros": (SkipsZeros, C),
    "skips small ones": (SkipsSmall, C),
    "runs all, adds some": (RunsAllAddsSome, C),
    "thresholds": (Thresholds, C),
    "temperature": (Temperature, C),
    "detached": (Detached, C),
    "partial channels": (Shuffles, 4 * C),
    "partial channels, reduction": (lambda: Shuffles(2), 4 * C),
    "stack": (Stacks, C),
    "dictionary": (InDictionary, C),
    "by name": (ByName, C),
    "children": (Children, C),
    "by registry": (ByRegistry, C),
    "list of one's own": (InOwnList, C),
    "asks for tensors": (AsksForTensors, C),
    "none": (WithNone, C),
    "drop path": (DropsPath, C),
    "auxiliary skip": (Auxiliary, C),
    "holds more": (HoldsMore, C),
    "outputs twice": (UsesOutputsTwice, C),
    "goes on": (GoesOn, C),
    "interleaved": (Interleaved, C),
    "random ops": (with_random_ops, C),
    "deviant op": (with_deviant_op, C),
    "biases": (with_biases, C),
    "biases, reduction": (lambda: with_biases(2), C),
    "first op in place": (lambda: with_inplace_relu(0), C),
}


class Net(nn.Module):
    """One edge between two convolutions."""

    def __init__(self, edge: nn.Module, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.edge = edge

    def forward(self, x: Tensor, *arguments: Any) -> Tensor:
        return self.edge(self.stem(x), *arguments)


def rows(n: int) -> dict[str, Tensor]:
    """Op weights of all kinds."""
    one_hot = torch.eye(n, dtype=torch.float64)[n - 2]
    return {
        "softmax": torch.randn(n, dtype=torch.float64).softmax(0),
        "signed": torch.randn(n, dtype=torch.float64),
        "one-hot": one_hot,
        "half": torch.tensor([0.0, 1.0] * n, dtype=torch.float64)[:n],
        "zeros": torch.zeros(n, dtype=torch.float64),
    }


def trained(net: nn.Module, images: Sequence[Tensor], arguments: Sequence[tuple[Any, ...]]) -> dict[str, Tensor | None]:
    """Take a step of SGD, with momentum and weight decay, with each of some arguments; return what there is."""
    sgd = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    found: dict[str, Tensor | None] = {}
    torch.manual_seed(5)
    for number, (x, given) in enumerate(zip(images, arguments, strict=True)):
        net.train(number % 4 != 3)
        sgd.zero_grad()
        for a in given:
            if isinstance(a, Tensor):
                a.grad = None
        try:
            out = net(x, *given)
        except AttributeError:  # a sum of nothing is 0, which has no shape
            continue
        if not isinstance(out, Tensor) or not out.requires_grad:
            continue
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)).sum().backward()
        named = [*net.named_parameters(), *((f"argument {i}", a) for i, a in enumerate(given) if isinstance(a, Tensor))]
        found[f"{number} out"] = out.detach()
        found |= {f"{number} d{name}": None if p.grad is None else p.grad.clone() for name, p in named}
        sgd.step()
        found |= {f"{number} {name}": value.clone() for name, value in net.state_dict().items()}
    found["random"] = torch.rand(3)
    return found


def assert_same(ours: dict[str, Tensor | None], theirs: dict[str, Tensor | None]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert (value is None) == (ours[name] is None), name
        if value is not None:
            torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def assert_trains_alike(own: nn.Module, channels: int = C, more: tuple[Any, ...] = ()) -> fastdarts.PatchReport:
    """Train with weights of all kinds, learned and constant, own and patched."""
    torch.manual_seed(1)
    own = Net(own, channels).double()
    patched = copy.deepcopy(own)
    report = fastdarts.patch(patched)
    assert list(report.replaced) == ["edge"], str(report)
    n = sum(len(list(part)) for part in own.edge.children() if isinstance(part, nn.ModuleList)) or N
    arguments: list[tuple[Any, ...]] = []
    for row, learned in itertools.product(rows(n).values(), (True, False)):
        arguments.append((row.clone().requires_grad_(learned), *more))
    images = torch.randn(len(arguments), 2, 3, 6, 6, dtype=torch.float64)
    theirs = trained(own, images, arguments)
    assert_same(trained(patched, images, arguments), theirs)
    return report


@pytest.mark.parametrize("style", STYLES)
def test_trains_alike(style: str) -> None:
    make, channels = STYLES[style]
    report = assert_trains_alike(make(), channels)
    (calls,) = report.calls().values()
    # Of a forward that skips ops, two calls had zeros for weights; with partial channels those fail.
    nothing = 2 * style.startswith(("skips", "runs all", "partial"))
    assert calls.fused == 10 - nothing, str(calls)
    assert calls.total == 10 - nothing * style.startswith("partial")


def test_random_ops_run_as_they_are_beside_fused_ones() -> None:
    report = assert_trains_alike(with_random_ops())
    assert report.replaced["edge"] == ("sep_conv_3x3", "-", "-", "-", "none", "dil_conv_3x3", "sep_conv_5x5")


def test_a_deviant_op_is_the_users_own() -> None:
    report = assert_trains_alike(with_deviant_op())
    assert report.replaced["edge"] == ("sep_conv_3x3", "avg_pool_3x3", "skip_connect", "none", "dil_conv_3x3", "-")


class Cell(nn.Module):
    """A cell of three nodes that holds its edges as lists in a dictionary, and takes a matrix of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.edges = nn.ModuleDict({end: nn.ModuleList(candidates()) for end in ("1<-0", "2<-0", "2<-1")})

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        nodes = [x]
        for node in (1, 2):
            rows = [(source, weights[node + source - 1]) for source in range(node)]
            edges = ((nodes[source], row, self.edges[f"{node}<-{source}"]) for source, row in rows)
            nodes.append(sum(sum(w * op(x) for w, op in zip(row, ops, strict=True)) for x, row, ops in edges))
        return nodes[-1]

    def forward_at_random(self, x: Tensor) -> Tensor:
        return random.choice(self.edges["1<-0"])(x)


def test_a_cell_with_a_list_of_ops_for_each_edge() -> None:
    own = Net(Cell(), C).double()
    patched = copy.deepcopy(own)
    report = fastdarts.patch(patched)
    arguments = [(torch.stack([row, row.flip(0), row]).requires_grad_(),) for row in rows(N).values()]
    images = torch.randn(len(arguments), 2, 3, 6, 6, dtype=torch.float64)
    theirs = trained(own, images, arguments)
    assert_same(trained(patched, images, arguments), theirs)
    assert str(report.calls()["edge"]) == "5 of 5 calls ran fused"


def test_lists_with_gaps_in_a_cell() -> None:
    cell = nn.ModuleList([None, Sum(), None, nn.ModuleList([None, Sum()])])
    report = fastdarts.patch(cell)
    assert list(report.replaced) == ["1", "3.1"]
    assert not report.left


# Arguments


class Epoch(Sum):
    def forward(self, x: Tensor, weights: Tensor, epoch: int | None = None) -> Tensor:  # type: ignore[override]
        return super().forward(x, weights)


class Selected(Sum):
    """As SGAS does: a third argument that decides."""

    def forward(self, x: Tensor, weights: Tensor, selected: int | None = None) -> Tensor:  # type: ignore[override]
        return super().forward(x, weights) if selected is None else 2.0 * self._ops[selected](x)


class Demands(Sum):
    def forward(self, x: Tensor, weights: Tensor, kind: str) -> Tensor:  # type: ignore[override]
        return {"sum": super().forward(x, weights)}[kind]


class OtherForwards(Sum):
    """Forwards by other names, as in AutoDL-Projects."""

    forward = None  # type: ignore[assignment]

    def forward_gdas(self, x: Tensor, weights: Tensor, index: int) -> Tensor:
        return self._ops[index](x) * weights[index]

    def forward_darts(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self._ops, strict=True))  # type: ignore[return-value]


CALLS: list[Callable[..., Tensor]] = [
    lambda e, x, w: e(x, w),
    lambda e, x, w: e(x, weights=w),
    lambda e, x, w: e(weights=w, x=x),
    lambda e, x, w: e(x, w, 3),
    lambda e, x, w: e(x, weights=w, epoch=3),
]


@pytest.mark.parametrize("call", CALLS)
def test_arguments_are_bound_by_signature(call: Callable[..., Tensor]) -> None:
    own = Epoch().double()
    patched = copy.deepcopy(own)
    report = fastdarts.patch(patched)
    x, weights = torch.randn(2, C, 6, 6, dtype=torch.float64), torch.randn(N, dtype=torch.float64)
    torch.testing.assert_close(call(patched, x, weights), call(own, x, weights), rtol=1e-9, atol=1e-9)
    assert str(report.calls()[""]) == "1 of 1 calls ran fused"


@pytest.mark.parametrize("more", [(), (None,), (0,), (4,)])
def test_an_argument_that_decides(more: tuple[Any, ...]) -> None:
    report = assert_trains_alike(Selected(), more=more)
    assert report.calls()["edge"].fused == 10


def test_an_argument_that_no_trial_can_guess() -> None:
    report = assert_trains_alike(Demands(), more=("sum",))
    assert report.calls()["edge"].fused == 10
    assert "untried: edge: its forward fails on a copy of it: KeyError" in str(report)


def test_forwards_by_other_names() -> None:
    own = OtherForwards().double()
    patched = copy.deepcopy(own)
    report = fastdarts.patch(patched)
    x, weights = torch.randn(2, C, 6, 6, dtype=torch.float64), torch.randn(N, dtype=torch.float64)
    for module in (own, patched):
        module.out = module.forward_darts(x, weights), module.forward_gdas(x, weights, index=4)
    torch.testing.assert_close(patched.out, own.out, rtol=1e-9, atol=1e-9)
    assert report.calls()[""].fused == 2


# What may change


def test_attributes_may_change() -> None:
    own = Temperature().double()
    patched = copy.deepcopy(own)
    report = fastdarts.patch(patched)
    x, weights = torch.randn(2, C, 6, 6, dtype=torch.float64), torch.randn(N, dtype=torch.float64)
    for temperature in (2.0, 1.0, 0.5):
        own.temperature = patched.temperature = temperature
        torch.testing.assert_close(patched(x, weights), own(x, weights), rtol=1e-9, atol=1e-9)
    plain = Sum().double()
    report = fastdarts.patch(plain)
    for p in (0.2, 0.3):
        plain.p = p
        plain._ops[0].note = p  # an op's, too
        plain(x, weights)
    assert report.calls()[""].fused == 2


def test_an_op_that_changes_to_another_primitive() -> None:
    own = Sum().double()
    patched = copy.deepcopy(own)
    report = fastdarts.patch(patched)
    x, weights = torch.randn(2, C, 6, 6, dtype=torch.float64), torch.randn(N, dtype=torch.float64)
    for module in (own, patched):
        torch.manual_seed(0)
        module._ops[4] = original.DilConv(C, 5, 1, 4, 2).double()
    torch.testing.assert_close(patched(x, weights), own(x, weights), rtol=1e-9, atol=1e-9)
    assert report.calls()[""].fused == 1


def test_what_stays_slow_is_said_once() -> None:
    class Whole(Sum):
        def forward(self, x: Tensor, weights: Tensor) -> Tensor:
            return super().forward(x, weights)

    edges = nn.ModuleList([Whole(), Whole()])
    report = fastdarts.patch(edges)
    edges.half()
    x, weights = torch.randn(2, C, 6, 6).half(), torch.randn(N).half()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2 * PATIENCE):
            for edge in edges:
                edge(x, weights)
    assert [str(w.message) for w in caught] == [
        "a patched Whole runs by its own modules, at their speed: the CPU kernels take float32, float64, bfloat16, not "
        "torch.float16 (PatchReport.calls() counts)"
    ]
    assert str(report.calls()["1"]).startswith(f"0 of {2 * PATIENCE} calls ran fused; {2 * PATIENCE} not: the CPU")


def test_code_that_no_deferred_output_passes_is_left_to_the_modules() -> None:
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return 3 * ctx.saved_tensors[0] ** 2 * g

    class Later(Sum):
        def __init__(self) -> None:
            super().__init__()
            self.cube = False

        def forward(self, x: Tensor, weights: Tensor) -> Tensor:
            out = super().forward(x, weights)
            return Cube.apply(out) if self.cube else out + 0.0 * x

    own = Later().double()
    patched = copy.deepcopy(own)
    report = fastdarts.patch(patched)
    x, weights = torch.randn(2, C, 6, 6, dtype=torch.float64), torch.randn(N, dtype=torch.float64)
    for cube in (False, True):
        own.cube = patched.cube = cube
        weights.requires_grad_()
        found = [torch.autograd.grad(m(x, weights).sum(), weights)[0] for m in (own, patched)]
        torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)
    assert sum(report.calls()[""].plain.values()) <= 1


def test_sums_are_computed_in_the_modes_of_their_ops() -> None:
    """A forward may call its ops under autocast or without gradients, and return afterwards."""

    class Modes(Sum):
        def forward(self, x: Tensor, weights: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                low = sum(w * op(x) for w, op in zip(weights, self._ops[:3], strict=False))
            with torch.no_grad():
                still = [op(x) for op in self._ops[3:]]
            return low.float() + sum(w * out for w, out in zip(weights[3:], still, strict=True))  # type: ignore[union-attr,return-value]

    own = Modes()
    patched = copy.deepcopy(own)
    report = fastdarts.patch(patched)
    x, weights = torch.randn(2, C, 6, 6), torch.randn(N).requires_grad_()
    found = []
    for module in (own, patched):
        out = module(x, weights)
        out.square().sum().backward()
        found.append((out.detach(), [p.grad is None for p in module.parameters()]))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0.05, atol=0.05)
    assert found[1][1] == found[0][1]
    assert (found[1][0] - found[0][0]).abs().max() > 0, "other rounding"
    assert report.calls()[""].fused == 1


# Zero weights


@pytest.mark.parametrize("kind", ["MixedOp", "patched"])
def test_constant_zeros_are_computed_unless_asked_otherwise(kind: str) -> None:
    """Random search with one-hot weights: the other ops' gradients are zeros, so that weight decay acts on them."""
    names = ("sep_conv_3x3", "avg_pool_3x3", "skip_connect", "none", "dil_conv_3x3", "sep_conv_5x5")
    for skip in (False, True):
        own = MixedOp(C, 1, names, backend="reference").double() if kind == "MixedOp" else Sum().double()
        ours = copy.deepcopy(own)
        if isinstance(ours, MixedOp):
            ours.backend, ours.skip_zeros = "fused", skip
        else:
            fastdarts.patch(ours, skip_zeros=skip)
        x, weights = torch.randn(2, C, 6, 6, dtype=torch.float64), torch.eye(N, dtype=torch.float64)[0]
        for module in (own, ours):
            module(x, weights).square().sum().backward()
        nothing = [name for name, p in ours.named_parameters() if p.grad is None]
        counted = [int(b) for name, b in ours.named_buffers() if name.endswith("num_batches_tracked")]
        if skip:
            assert len(nothing) == len(list(ours.parameters())) - 4
            assert sum(counted) == 2
        else:
            assert not nothing
            assert set(counted) == {1}
            for a, b in zip(ours.parameters(), own.parameters(), strict=True):
                torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-9)


def test_skip_zeros_where_the_own_forward_runs() -> None:
    class Halved(Sum):
        def forward(self, x: Tensor, weights: Tensor) -> Tensor:
            return super().forward(x, 0.5 * weights)

    module = Halved().double()
    fastdarts.patch(module, skip_zeros=True)
    x = torch.randn(2, C, 6, 6, dtype=torch.float64)
    assert torch.equal(module(x, torch.zeros(N, dtype=torch.float64)), torch.zeros_like(x))
    module(x, torch.eye(N, dtype=torch.float64)[1])
    counted = [int(b) for name, b in module.named_buffers() if name.endswith("num_batches_tracked")]
    assert counted == [0, 0, 1, 0, 0, 0]


# Reasons


def inplace_last() -> nn.Module:
    module = Sum([original.SepConv(C, 3, 1, 1), original.Identity(), original.SepConv(C, 3, 1, 1)])
    module._ops[2].op[0] = nn.ReLU(inplace=True)
    return module


class OneByOne(Sum):
    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        for op in self._ops:
            x = op(x)
        return x * weights.sum()


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (inplace_last(), "an op changes its input in place"),
        (OneByOne(), "one by one"),
    ],
)
def test_left_with_a_reason(module: nn.Module, reason: str) -> None:
    kind = type(module)
    report = fastdarts.patch(nn.Sequential(module))
    assert list(report.left) == ["0"], str(report)
    assert re.search(reason, report.left["0"]), report.left["0"]
    assert type(module) is kind


def with_norms(norm: Callable[[], nn.Module]) -> list[nn.Module]:
    """Candidates whose norms are others; scales and shifts are random."""
    ops = candidates()
    for part in list(nn.ModuleList(ops).modules()):
        for name, child in part._modules.items():
            if isinstance(child, nn.BatchNorm2d):
                part._modules[name] = made = norm()
                for parameter in made.parameters():
                    nn.init.normal_(parameter, 1.0, 0.5)
    return ops


def affine() -> nn.BatchNorm2d:
    return nn.BatchNorm2d(C)


def group_norm() -> nn.GroupNorm:
    return nn.GroupNorm(1, C)


def test_what_came_nearest() -> None:
    """Where nothing is replaced, the report says what was looked for and what sets the ops apart."""
    report = fastdarts.patch(
        nn.ModuleList([Sum(with_norms(group_norm)[:5]), Sum([nn.AvgPool2d(3, 1, 1), nn.Identity()])])
    )
    assert report == fastdarts.PatchReport()
    lines = str(report).splitlines()
    assert lines[0] == "0 mixed operations replaced, 0 left"
    assert lines[1].startswith("looked for modules whose forward adds up the weighted outputs of candidate operations")
    assert "_ops.4: dil_conv_3x3 but for GroupNorm in place of BatchNorm2d" in report.nearest["0"]
    assert "avg_pool_3x3 without the batch norm that follows it" in report.nearest["1"]
    assert lines[2].startswith("nearest: 0: ")


@pytest.mark.parametrize("style", [Sum, SkipsZeros])
@pytest.mark.parametrize("without", [0, 2], ids=["all", "beside ops without scales and shifts"])
def test_affine_norms_run_fused(style: type[Sum], without: int) -> None:
    ops = [*candidates()[:without], *with_norms(affine)[without:]]
    ops[4].op[2] = nn.Conv2d(C, C, 1)  # a bias before the norm
    report = assert_trains_alike(style(ops))
    assert report.replaced["edge"] == (
        "sep_conv_3x3",
        "avg_pool_3x3",
        "skip_connect",
        "none",
        "dil_conv_3x3",
        "sep_conv_5x5",
    )


class Adapted(nn.Module):
    """A convolution with an adapter that is off: a second name of its weight, a function, a state by its mode."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        self.weight = convolution.weight
        self.dropout = lambda x: x
        self.merged = False

    def train(self, mode: bool = True) -> "Adapted":
        self.merged = not mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.convolution(x))


class CountsFirst(Sum):
    """Measures its ops before the first sum, in eval mode and by hooks."""

    calls = 0

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        for op in self._ops:
            training, handles = op.training, [part.register_forward_hook(self.count) for part in op.modules()]
            op.eval()
            with torch.no_grad():
                op(torch.randn_like(x))
            op.train(training)
            for handle in handles:
                handle.remove()
        return super().forward(x, weights)

    def count(self, *_: Any) -> None:
        self.calls += 1


def test_wrapped_convolutions_in_an_edge_that_counts_its_operations() -> None:
    edge = CountsFirst()
    for place in (1, 2):
        edge._ops[4].op[place] = Adapted(edge._ops[4].op[place])
    report = assert_trains_alike(edge)
    assert report.replaced["edge"][4] == "dil_conv_3x3"
    (calls,) = report.calls().values()
    assert calls.fused == calls.total
    assert edge.calls == 10 * sum(1 for op in edge._ops for _ in op.modules())


def test_functions_that_read_more_than_their_arguments_are_no_state() -> None:
    edge, factor = Sum(), 1.0
    edge._ops[4].op[1] = Adapted(edge._ops[4].op[1])
    edge._ops[4].op[1].dropout = lambda x: factor * x
    assert assert_trains_alike(edge).replaced["edge"][4] == "-"


def test_a_relu_in_place_inside_an_op_does_no_harm() -> None:
    edge = Sum()
    edge._ops[0].op[4] = nn.ReLU(inplace=True)
    report = assert_trains_alike(edge)
    assert report.replaced["edge"][0] == "sep_conv_3x3"
