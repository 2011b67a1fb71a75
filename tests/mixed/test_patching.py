"""`patch` and `unpatch`; MixedOp and patched modules used as other people's code uses its own."""

import copy
import io
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
from drop_in import original, ports
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastdarts
from fastdarts import EvalNetwork, MixedOp, SearchNetwork
from fastdarts.ops import operators
from fastdarts.primitives.table import PRIMITIVES

pytestmark = pytest.mark.skipif(
    operators.unavailable(torch.device("cpu"), torch.float32) is not None,
    reason="needs fastdarts._C, which is not built",
)

C = 8


class Log(TorchDispatchMode):
    """Names of the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.calls[func.__name__.removesuffix(".default")] += 1
        return func(*args, **(kwargs or {}))


def calls(run: Callable[[], object]) -> Counter[str]:
    with Log() as log:
        run()
    return log.calls


def is_fused(module: nn.Module, x: Tensor, weights: object) -> bool:
    with torch.no_grad():
        return "mixed_sum" in calls(lambda: module(x, weights))


def inputs(dtype: torch.dtype = torch.float64, ops: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(2, C, 8, 8, dtype=dtype), torch.randn(ops, dtype=dtype).softmax(0)


def own_and_patched(stride: int = 1) -> tuple[nn.Module, nn.Module]:
    own = original.MixedOp(C, stride).double()
    patched = copy.deepcopy(own)
    assert fastdarts.patch(patched).replaced
    return own, patched


def results(module: nn.Module, x: Tensor, weights: Tensor) -> list[Tensor]:
    """Output, and gradients of x, op weights, and the module's weights."""
    x, weights = x.clone().requires_grad_(), weights.clone().requires_grad_()
    out = module(x, weights)
    g = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    return [out.detach(), *torch.autograd.grad(out, [x, weights, *module.parameters()], g)]


def assert_equal(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


# What patch finds


def test_every_mixed_op_of_a_network() -> None:
    network = ports.SearchCNNController()
    report = fastdarts.patch(network)
    assert len(report.replaced) == 15
    assert not report.left
    assert set(report.replaced.values()) == {tuple(ports.PRIMITIVES)}
    assert str(report).startswith("15 mixed operations replaced, 0 left\nreplaced: net.module.cells.0.dag.0.0, ")
    assert "and 12 more: max_pool_3x3, avg_pool_3x3, skip_connect" in str(report)
    assert fastdarts.patch(network).replaced == {}, "patched modules are left alone"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("code", [original, ports])
def test_same_numbers(code: object, stride: int, training: bool) -> None:
    own = code.MixedOp(C, stride).double()  # type: ignore[attr-defined]
    x, weights = inputs()
    own(x, weights)  # running statistics that say something
    own.train(training)
    patched = copy.deepcopy(own)
    fastdarts.patch(patched)
    assert is_fused(copy.deepcopy(patched), x, weights)
    assert_equal(results(patched, x, weights), results(own, x, weights))
    assert_equal(list(patched.state_dict().values()), list(own.state_dict().values()))


def test_nothing_of_the_model_changes() -> None:
    model = original.Network()
    before = copy.deepcopy(model)
    parameters, state, modules = dict(model.named_parameters()), model.state_dict(keep_vars=True), list(model.modules())
    random = torch.get_rng_state()
    fastdarts.patch(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert dict(model.named_parameters()).keys() == parameters.keys()
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert list(model.state_dict()) == list(state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before.state_dict()[name]), name
    edge = model.cells[0]._ops[0]
    assert isinstance(edge, original.MixedOp)
    assert type(edge).__name__ == "MixedOp"


def test_unpatch_brings_the_originals_back() -> None:
    model = original.Network()
    kinds, attributes = [type(m) for m in model.modules()], [set(m.__dict__) for m in model.modules()]
    x = torch.randn(2, 1, 8, 8)
    model.eval()
    before = model(x)
    names = list(fastdarts.patch(model).replaced)
    assert not torch.equal(model(x), before), "other rounding"
    assert fastdarts.unpatch(model) == names
    assert [type(m) for m in model.modules()] == kinds
    assert [set(m.__dict__) for m in model.modules()] == attributes
    assert torch.equal(model(x), before)
    assert fastdarts.unpatch(model) == []


def test_a_model_that_is_a_mixed_op_itself() -> None:
    report = fastdarts.patch(original.MixedOp(C, 1))
    assert report.replaced == {"": tuple(original.PRIMITIVES)}
    assert "replaced: the model itself: none, max_pool_3x3" in str(report)


class Sum(nn.Module):
    """A mixed op of given ops."""

    def __init__(self, *candidates: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(candidates)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return torch.stack([w * op(x) for w, op in zip(weights, self.branches, strict=True)]).sum(0)


def two() -> tuple[nn.Module, nn.Module]:
    return original.SepConv(C, 3, 1, 1), original.Identity()


@pytest.mark.parametrize(
    "model",
    [
        SearchNetwork(4, layers=2),
        nn.Sequential(nn.Conv2d(3, 3, 1)),
        nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]),
        Sum(nn.Conv2d(C, C, 1), nn.Identity()),
    ],
    ids=["ours", "convolution", "list", "other ops"],
)
def test_nothing_to_patch(model: nn.Module) -> None:
    assert fastdarts.patch(model) == fastdarts.PatchReport({}, {})


def test_an_evaluation_network_has_no_mixed_ops() -> None:
    assert fastdarts.patch(EvalNetwork(fastdarts.DARTS_V2, C=4, layers=2)).replaced == {}


class DropPath(nn.Module):
    """The identity, as long as its probability is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.probability = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return x if self.probability == 0 else x / 0.0


def half_fused() -> Sum:
    """Its ops 1 to 5 are almost, but not quite, what a kernel computes."""
    grouped = original.SepConv(C, 5, 1, 2)
    grouped.op[3] = nn.GroupNorm(1, C)
    reflecting = original.DilConv(C, 3, 1, 2, 2)
    reflecting.op[1] = nn.Conv2d(C, C, 3, padding=2, dilation=2, groups=C, bias=False, padding_mode="reflect")
    return Sum(
        original.SepConv(C, 3, 1, 1),
        grouped,
        reflecting,
        nn.AvgPool2d(3, 1, 1),
        nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=True), nn.BatchNorm2d(C, affine=False)),
        nn.Sequential(nn.Conv2d(C, C, 3, padding=1, bias=False), nn.BatchNorm2d(C)),
        original.DilConv(C, 5, 1, 4, 2),
    ).double()


def test_ops_without_a_kernel_keep_their_modules() -> None:
    own = half_fused()
    patched = copy.deepcopy(own)
    report = fastdarts.patch(patched)
    assert report.replaced == {"": ("sep_conv_3x3", "-", "-", "-", "-", "-", "dil_conv_5x5")}
    assert "by their own modules: ops 1, 2, 3, 4, 5" in str(report)
    x, weights = inputs(ops=7)
    assert is_fused(patched, x, weights)
    assert_equal(results(patched, x, weights), results(own, x, weights))


# What may happen to a patched module


def test_an_op_that_changes_is_computed_by_its_module() -> None:
    drop_path = DropPath()
    module = Sum(original.SepConv(C, 3, 1, 1), drop_path, original.DilConv(C, 3, 1, 2, 2)).double()
    fastdarts.patch(module)
    x, weights = inputs(ops=3)
    assert module(x, weights).isfinite().all()
    drop_path.probability = 0.5
    assert not module(x, weights).isfinite().any()
    drop_path.probability = 0.0
    module.branches[2] = nn.Identity()
    assert_equal([module(x, weights)], [Sum(*module.branches)(x, weights)])
    del module.branches[2]
    assert_equal([module(x, weights[:2])], [Sum(*module.branches)(x, weights[:2])])


def test_a_layer_that_changes() -> None:
    own, patched = own_and_patched()
    x, weights = inputs()
    for module in (own, patched):
        convolution = module._ops[4].op[1]
        convolution.weight = nn.Parameter(torch.ones_like(convolution.weight))
        nn.utils.parametrizations.weight_norm(module._ops[5].op[2])
        module._ops[6].op[1].padding_mode = "circular"
        module._ops[6].op[1]._reversed_padding_repeated_twice = [2, 2, 2, 2]
    assert is_fused(patched, x, weights)
    for part in patched.modules():
        if hasattr(part, "parametrizations"):
            part.parametrizations.weight.original1.data.mul_(2)
    for part in own.modules():
        if hasattr(part, "parametrizations"):
            part.parametrizations.weight.original1.data.mul_(2)
    assert_equal(results(patched, x, weights), results(own, x, weights))


def test_the_modules_own_attributes() -> None:
    class Scaled(Sum):
        def __init__(self, *candidates: nn.Module) -> None:
            super().__init__(*candidates)
            self.factor = 1.0

        def forward(self, x: Tensor, weights: Tensor) -> Tensor:
            return self.factor * super().forward(x, weights)

    module = Scaled(*two()).double()
    assert fastdarts.patch(module).replaced
    x, weights = inputs(ops=2)
    once = module(x, weights)
    assert is_fused(module, x, weights)
    module.factor = 3.0
    assert is_fused(module, x, weights), "its forward runs, on outputs that kernels add up"
    assert_equal([module(x, weights)], [3 * once])


def test_hooks_see_what_they_saw() -> None:
    _, patched = own_and_patched()
    seen: list[str] = []
    patched.register_forward_hook(lambda *_: seen.append("edge"))
    patched._ops[4].register_forward_hook(lambda *_: seen.append("op"))
    patched._ops[5].op[1].register_forward_pre_hook(lambda *_: seen.append("layer"))
    x, weights = inputs()
    assert is_fused(patched, x, weights)
    assert sorted(seen) == ["edge", "layer", "op"]


def test_batch_norms_without_running_statistics() -> None:
    own = original.MixedOp(C, 1).double()
    for part in own.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.track_running_stats = False
            part.running_mean = part.running_var = part.num_batches_tracked = None
    patched = copy.deepcopy(own)
    fastdarts.patch(patched)
    for training in (True, False):
        x, weights = inputs()
        own.train(training), patched.train(training)
        assert_equal(results(patched, x, weights), results(own, x, weights))


def test_calls_that_only_the_module_understands() -> None:
    own, patched = own_and_patched()
    x, weights = inputs()
    assert_equal([patched(x=x, weights=weights)], [own(x, weights)])
    weights = weights.reshape(8, 1, 1, 1)
    assert_equal([patched(x, weights)], [own(x, weights)])
    with pytest.raises(ValueError, match="zip"):
        patched(x, weights[:5])
    with pytest.raises(RuntimeError, match="should contain 3 elements not 8"):
        patched(x[:, :3], weights)


# Copies


def saved(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def replica(module: nn.Module) -> nn.Module:
    """As `nn.DataParallel` makes them: weights are no parameters but copies that give their gradients back."""
    copies = {part: part._replicate_for_data_parallel() for part in module.modules()}
    for part, twin in copies.items():
        twin._former_parameters = {}
        for name, child in part._modules.items():
            twin._modules[name] = copies[child]
        for name, parameter in part._parameters.items():
            if parameter is None:
                twin._parameters[name] = None
            else:
                setattr(twin, name, parameter * 1)
                twin._former_parameters[name] = parameter
        for name, buffer in part._buffers.items():
            twin._buffers[name] = None if buffer is None else buffer.clone()
    return copies[module]


def ema(module: nn.Module) -> nn.Module:
    return torch.optim.swa_utils.AveragedModel(module, use_buffers=True).module


COPIES = {"deepcopy": copy.deepcopy, "saved": saved, "replica": replica, "ema": ema}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("kind", ["MixedOp", "patched"])
def test_copies_are_fused_and_apart(kind: str, make: Callable[[nn.Module], nn.Module]) -> None:
    module = MixedOp(C, 2).double() if kind == "MixedOp" else own_and_patched(2)[1]
    x, weights = inputs()
    twin = make(module)
    assert is_fused(twin, x, weights)
    assert_equal([twin(x, weights)], [module(x, weights)])
    before = module(x, weights)
    with torch.no_grad():
        for part in twin.modules():
            if isinstance(part, nn.Conv2d):
                part.weight.mul_(2).add_(0.1)
    assert not torch.allclose(twin(x, weights), before)
    assert_equal([module(x, weights)], [before])


@pytest.mark.parametrize("kind", ["MixedOp", "patched"])
def test_replicas_give_their_gradients_to_the_parameters(kind: str) -> None:
    module = MixedOp(C, 1).double() if kind == "MixedOp" else own_and_patched()[1]
    x, weights = inputs()
    parameters = list(module.parameters())
    directly = torch.autograd.grad(module(x, weights).square().sum(), parameters)
    through = torch.autograd.grad(replica(module)(x, weights).square().sum(), parameters)
    assert_equal(through, directly)


def test_unpatching_a_copy_leaves_the_original_patched() -> None:
    _, patched = own_and_patched()
    twin = copy.deepcopy(patched)
    fastdarts.unpatch(twin)
    x, weights = inputs()
    assert type(twin) is original.MixedOp
    assert is_fused(patched, x, weights)
    assert not is_fused(twin, x, weights)


@pytest.mark.parametrize("kind", ["MixedOp", "patched"])
def test_other_precisions(kind: str) -> None:
    module = MixedOp(C, 1) if kind == "MixedOp" else original.MixedOp(C, 1)
    fastdarts.patch(module)
    x, weights = inputs(torch.float32)
    wide = copy.deepcopy(module).double()
    assert wide(x.double(), weights.double()).dtype == torch.float64
    torch.testing.assert_close(wide(x.double(), weights.double()).float(), module(x, weights), rtol=1e-4, atol=1e-4)
    narrow = copy.deepcopy(module).to(torch.bfloat16)
    assert narrow(x.bfloat16(), weights.bfloat16()).dtype == torch.bfloat16
    half = copy.deepcopy(module).half()  # no kernel: the modules themselves
    assert half(x.half(), weights.half()).dtype == torch.float16


# Op weights as they come


def gumbel(alphas: Tensor) -> Tensor:
    return nn.functional.gumbel_softmax(alphas, tau=1.0, hard=True)


WEIGHTS: dict[str, Callable[[Tensor], Tensor | list[Tensor] | list[float]]] = {
    "row of a larger tensor": lambda alphas: torch.stack([alphas, 2 * alphas, alphas]).softmax(-1)[1],
    "column of a larger tensor": lambda alphas: torch.stack([alphas, 2 * alphas, alphas], dim=1).softmax(0)[:, 1],
    "slice of a vector": lambda alphas: torch.cat([alphas, alphas, alphas]).sigmoid()[8:16],
    "list of scalars": lambda alphas: list(alphas.softmax(-1)),
    "list of floats": lambda alphas: alphas.detach().softmax(-1).tolist(),
    "sigmoid": lambda alphas: alphas.sigmoid(),
    "gumbel, hard": gumbel,
    "no gradient": lambda alphas: alphas.detach().softmax(-1),
    "negative": lambda alphas: -alphas,
}


@pytest.mark.parametrize("kind", ["MixedOp", "patched"])
@pytest.mark.parametrize("form", WEIGHTS)
def test_weights_of_every_form(form: str, kind: str) -> None:
    own = MixedOp(C, 1, backend="reference").double() if kind == "MixedOp" else original.MixedOp(C, 1).double()
    ours = copy.deepcopy(own)
    if isinstance(ours, MixedOp):
        ours.backend = "fused"
    else:
        fastdarts.patch(ours)
    x, alphas = torch.randn(2, 3 * C, 8, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    found = []
    for module in (own, ours):
        torch.manual_seed(3)
        leaf, image = alphas.clone().requires_grad_(), x.clone().requires_grad_()
        weights = WEIGHTS[form](leaf)
        out = module(image[:, C : 2 * C], weights)  # a slice of the channels: not contiguous
        gradients = torch.autograd.grad(out.square().sum(), [image, leaf], allow_unused=True, materialize_grads=True)
        found.append([out.detach(), *gradients])
    assert is_fused(ours, x[:, C : 2 * C].detach(), WEIGHTS[form](alphas))
    assert_equal(found[1], found[0])


@pytest.mark.parametrize("kind", ["MixedOp", "patched"])
def test_exact_hessian_of_the_alphas(kind: str) -> None:
    own = MixedOp(C, 1, backend="reference").double() if kind == "MixedOp" else original.MixedOp(C, 1).double()
    ours = copy.deepcopy(own)
    if isinstance(ours, MixedOp):
        ours.backend = "fused"
    else:
        fastdarts.patch(ours)
    x, alphas = inputs()
    hessians = [
        torch.autograd.functional.hessian(lambda a, m=m: m(x, a.softmax(0)).pow(3).sum(), alphas) for m in (own, ours)
    ]
    assert hessians[0].abs().max() > 1
    torch.testing.assert_close(hessians[1], hessians[0], rtol=1e-8, atol=1e-8)


# The yardstick


@pytest.mark.parametrize("stride", [1, 2])
def test_plain_modules_issue_the_operators_of_a_straightforward_implementation(stride: int) -> None:
    straightforward, plain = original.MixedOp(C, stride), MixedOp(C, stride, PRIMITIVES, backend="reference")
    x, weights = inputs(torch.float32)
    found, expected = (calls(lambda m=m: results(m, x, weights)) for m in (plain, straightforward))
    assert found - expected == Counter()
    assert expected - found == Counter({"add.Tensor": 1})  # Python's sum() begins at 0 and adds that too
    assert found["convolution"] == 12 + 2 * (stride == 2)
