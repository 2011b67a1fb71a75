"""Cells and networks through the kernels: equal to plain ones, twice differentiable, at home in torch's tools."""

import copy
import io
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed
from as_plain import assert_as_good, run, with_backend
from drop_in import partial_channels
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from fastdarts.mixed import fused
from fastdarts.mixed.mixed_op import MixedOp
from fastdarts.ops import operators
from fastdarts.primitives.modules import DilConv, ReLUConvBN, SepConv
from fastdarts.primitives.table import PRIMITIVES
from fastdarts.spaces.darts.cell import Cell
from fastdarts.spaces.darts.genotype import edges_of
from fastdarts.spaces.darts.supernet import SearchNetwork

pytestmark = pytest.mark.skipif(
    operators.unavailable(torch.device("cpu"), torch.float32) is not None,
    reason="needs fastdarts._C, which is not built",
)
ALL_KINDS = ("sep_conv_7x7", "max_pool_3x3", "skip_connect", "conv_7x1_1x7", "avg_pool_3x3", "none")
WITHOUT_NORM = ("none", "skip_connect", "nor_conv_1x1", "bare_avg_pool_3x3", "max_pool_3x3", "bare_max_pool_3x3")


@pytest.mark.parametrize(
    ("steps", "multiplier", "reduction", "reduction_prev", "primitives", "training", "dtype"),
    [
        (4, 4, False, False, PRIMITIVES, True, torch.float64),
        (4, 4, True, True, PRIMITIVES, True, torch.float64),
        (3, 2, True, False, ALL_KINDS, True, torch.float64),
        (2, 1, False, True, PRIMITIVES[::-1], False, torch.float64),
        (2, 2, True, True, PRIMITIVES, True, torch.float32),
        (2, 2, True, True, PRIMITIVES, True, torch.bfloat16),
        (3, 3, True, False, WITHOUT_NORM, True, torch.float64),
        (2, 2, True, False, WITHOUT_NORM, False, torch.float32),
        (2, 2, False, False, WITHOUT_NORM, True, torch.bfloat16),
    ],
)
def test_cell(
    steps: int,
    multiplier: int,
    reduction: bool,
    reduction_prev: bool,
    primitives: tuple[str, ...],
    training: bool,
    dtype: torch.dtype,
) -> None:
    compute = torch.promote_types(dtype, torch.float32)
    plain = Cell(steps, multiplier, 12, 20, 8, reduction, reduction_prev, primitives, "reference").to(compute)
    plain.train(training)
    H, W = 7, 6
    s0 = torch.randn(4, 12, 2 * H - 1 if reduction_prev else H, 2 * W if reduction_prev else W).to(dtype)
    s1 = torch.randn(4, 20, H, W).to(dtype)
    weights = torch.randn(len(edges_of(steps)), len(primitives)).softmax(-1).to(compute)
    stride = 2 if reduction else 1
    g = torch.randn(4, 8 * multiplier, -(-H // stride), -(-W // stride)).to(dtype)
    ours = run(with_backend(plain, "fused"), [s0, s1, weights], g)
    assert ours["y"].dtype == dtype
    assert_as_good(ours, plain, [s0, s1, weights], g)


PROBE = """
import sys
import torch
from as_plain import run

torch.save([run(*case) for case in torch.load(sys.argv[1], weights_only=False)], sys.argv[2])
"""


@pytest.mark.parametrize("instructions", ["portable", "avx2", "avx512", "amx"])
def test_other_instruction_sets(instructions: str, tmp_path: Path) -> None:
    """An edge and a small reduction cell with both kinds of preprocessing, in a program that is told what to use."""
    cases = []
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        compute = torch.promote_types(dtype, torch.float32)
        names = (*PRIMITIVES, "nor_conv_1x1", "bare_max_pool_3x3")
        row, rows = torch.randn(10).softmax(-1), torch.randn(2, 10).softmax(-1)
        states = [torch.randn(3, 12, 14, 17), torch.randn(3, 20, 7, 9)]
        edge = MixedOp(20, 1, names, "reference"), [states[1].to(dtype), row.to(compute)], torch.randn(3, 20, 7, 9)
        cell = Cell(1, 1, 12, 20, 20, True, True, names, "reference")
        inputs = [*(state.to(dtype) for state in states), rows.to(compute)]
        cases += [edge, (cell, inputs, torch.randn(3, 20, 4, 5))]
        cases[-2:] = [(module.to(compute), inputs, g.to(dtype)) for module, inputs, g in cases[-2:]]
    torch.save([(with_backend(module, "fused"), inputs, g) for module, inputs, g in cases], tmp_path / "in.pt")
    command = [sys.executable, "-c", PROBE, str(tmp_path / "in.pt"), str(tmp_path / "out.pt")]
    path = os.pathsep.join(
        [str(Path(__file__).parent), str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    environment = {**os.environ, "FASTDARTS_CPU": instructions, "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "this machine's best is" in done.stderr:
        pytest.skip(f"this machine has no {instructions}")
    assert done.returncode == 0, done.stderr
    for ours, (module, inputs, g) in zip(torch.load(tmp_path / "out.pt", weights_only=True), cases, strict=True):
        assert_as_good(ours, module, inputs, g)


def twins(**options: object) -> tuple[SearchNetwork, SearchNetwork]:
    """The same small network in float64, fused and plain."""
    settings = {"C": 4, "num_classes": 5, "layers": 3, "steps": 2, "multiplier": 2, "backend": "fused"} | options
    network = SearchNetwork(**settings).double()
    twin = with_backend(network, "reference")
    assert isinstance(twin, SearchNetwork)
    return network, twin


def images(n: int = 6, size: tuple[int, int] = (9, 8)) -> Tensor:
    return torch.randn(n, 3, *size, dtype=torch.float64)


def leaves_of(network: SearchNetwork) -> list[Tensor]:
    return [*network.arch_parameters(), *network.parameters()]


def assert_equal(ours: Iterator[Tensor] | list[Tensor], plain: Iterator[Tensor] | list[Tensor]) -> None:
    """In float64, several layers deep."""
    for a, b in zip(ours, plain, strict=True):
        assert (a - b).abs().max() <= 1e-10 * max(1.0, b.abs().max().item())


@pytest.mark.parametrize("training", [True, False])
def test_network(training: bool) -> None:
    network, twin = twins()
    network.train(training)
    twin.train(training)
    x = images()
    logits = [net(x) for net in (network, twin)]
    assert_equal(*([y] for y in logits))
    assert_equal(
        *(
            list(torch.autograd.grad(y.square().sum(), leaves_of(net)))
            for y, net in zip(logits, (network, twin), strict=True)
        )
    )
    assert_equal(network.buffers(), twin.buffers())


def hessian_product(network: SearchNetwork, x: Tensor, v: list[Tensor]) -> list[Tensor]:
    """d/d(alphas, weights) of <d loss / d(alphas, weights), v>: every block of the Hessian."""
    leaves = leaves_of(network)
    loss = nn.functional.cross_entropy(network(x), torch.arange(len(x)) % 5)
    gradients = torch.autograd.grad(loss, leaves, create_graph=True)
    inner = sum((g * d).sum() for g, d in zip(gradients, v, strict=True))
    return list(torch.autograd.grad(inner, leaves))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("primitives", [PRIMITIVES, ALL_KINDS], ids=["eight", "others"])
def test_second_derivatives(primitives: tuple[str, ...], training: bool) -> None:
    network, twin = twins(primitives=primitives)
    x = images(4, (6, 6))
    v = [torch.randn_like(leaf) for leaf in leaves_of(network)]
    with torch.no_grad():
        network(x)  # running statistics that are not 0 and 1
        twin(x)
    ours, plain = (hessian_product(net.train(training), x, v) for net in (network, twin))
    for a, b in zip(ours, plain, strict=True):
        assert (a - b).abs().max() <= 1e-8 * max(1.0, b.abs().max().item())


def test_no_grad_and_inference_mode() -> None:
    network, _ = twins()
    network.eval()
    x = images()
    with torch.no_grad():
        want = network(x)
    assert not want.requires_grad
    with torch.inference_mode():
        assert torch.equal(network(x), want)
    assert torch.equal(network(x), want)


def test_copies_and_files(tmp_path: Path) -> None:
    network, _ = twins()
    x = images()
    network(x)
    network.eval()
    want = network(x)
    torch.save(network, tmp_path / "network.pt")
    torch.save(network.state_dict(), tmp_path / "state.pt")
    fresh = SearchNetwork(4, 5, 3, 2, 2, backend="fused").double().eval()
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), strict=True)
    with torch.no_grad():
        for mine, theirs in zip(fresh.arch_parameters(), network.arch_parameters(), strict=True):
            mine.copy_(theirs)
    for other in (
        copy.deepcopy(network),
        pickle.loads(pickle.dumps(network)),
        torch.load(tmp_path / "network.pt", weights_only=False),
        torch.load(io.BytesIO((tmp_path / "network.pt").read_bytes()), weights_only=False),
        fresh,
    ):
        assert torch.equal(other(x), want)


def test_functional_call_with_other_weights() -> None:
    network, twin = twins()
    x = images()
    state = {name: torch.randn_like(p, requires_grad=True) for name, p in network.named_parameters()}
    before = [p.clone() for p in network.parameters()]
    ours, plain = (functional_call(net, state, (x,)) for net in (network, twin))
    assert_equal([ours], [plain])
    g = torch.randn_like(plain)
    leaves = list(state.values())
    assert_equal(list(torch.autograd.grad(ours, leaves, g)), list(torch.autograd.grad(plain, leaves, g)))
    assert all(map(torch.equal, before, network.parameters()))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool) -> None:
    op, x = MixedOp(4, 2, backend="fused").double(), torch.randn(3, 4, 7, 6, dtype=torch.float64)
    found = []
    for call in (op, lambda x, w: checkpoint(op, x, w, use_reentrant=reentrant)):
        at, weights = x.clone().requires_grad_(), torch.full((8,), 0.125, dtype=torch.float64, requires_grad=True)
        y = call(at, weights)
        found.append([y.detach(), *torch.autograd.grad(y.square().sum(), [at, weights])] if not reentrant else [])
        if reentrant:  # this kind supports backward() alone
            y.square().sum().backward()
            found[-1] = [y.detach(), at.grad, weights.grad]
    assert all(map(torch.equal, *found))


def train_as_one_of_two(rank: int, folder: Path, models: list[nn.Module], x: Tensor) -> list[Tensor]:
    """Weights after two steps on a half of the images each, gradients averaged by DDP."""
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    torch.distributed.init_process_group("gloo", meeting, timedelta(minutes=2), world_size=2, rank=rank)
    try:
        for model in models:
            parallel = DistributedDataParallel(model)
            for _ in range(2):
                parallel.zero_grad()
                parallel(x[rank::2]).square().sum().backward()
                update(model)
    finally:
        torch.distributed.destroy_process_group()
    return [p.detach() for model in models for p in model.parameters()]


@torch.no_grad()
def update(model: nn.Module) -> None:
    for p in model.parameters():
        p.sub_(1e-3 * p.grad)


def test_two_processes(tmp_path: Path) -> None:
    network, _ = twins()
    partial_network = partial_channels.Network(partial(MixedOp, backend="fused")).double()  # alphas are parameters
    partial_network.stem[0] = nn.Conv2d(3, 16, 3, padding=1, bias=False).double()
    models = [network, partial_network]
    x, alone = images(6, (8, 8)), copy.deepcopy(models)
    other = multiprocessing.get_context("spawn").Process(
        target=train_as_one_of_two, args=(1, tmp_path, copy.deepcopy(models), x)
    )
    other.start()
    found = train_as_one_of_two(0, tmp_path, models, x)
    other.join()
    assert other.exitcode == 0
    for model in alone:
        for _ in range(2):
            model.zero_grad()
            (sum(model(x[rank::2]).square().sum() for rank in (0, 1)) / 2).backward()
            update(model)
    assert_equal(found, [p for model in alone for p in model.parameters()])


def compiled(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    torch._dynamo.reset()
    return torch.compile(f, backend="aot_eager", fullgraph=True)


def test_compiled_operator() -> None:
    plan = fused._plan(1, ((0, 1),), ((2, PRIMITIVES, tuple(range(1, 8))),), 1)
    op = MixedOp(4, 2).double()
    params = [p for o in op._ops for p in o.parameters()]
    x, weights = torch.randn(3, 4, 7, 6, dtype=torch.float64), torch.full((1, 8), 0.125, dtype=torch.float64)

    def call(x: Tensor, weights: Tensor) -> Tensor:
        return operators.mixed_sum([x * 2], weights, params, None, plan)[0].tanh()

    found = []
    for f in (call, compiled(call)):
        at, w = x.clone().requires_grad_(), weights.clone().requires_grad_()
        y = f(at, w)
        found.append([y.detach(), *torch.autograd.grad(y.square().sum(), [at, w, *params])])
    assert_equal(*found)


def test_compiled_mixed_op() -> None:
    op = MixedOp(4, 1, backend="fused").double()
    twin = copy.deepcopy(op)
    x, weights = torch.randn(3, 4, 5, 6, dtype=torch.float64), torch.full((8,), 0.125, dtype=torch.float64)
    found = []
    for module, f in ((twin, twin), (op, compiled(op))):
        at, w = x.clone().requires_grad_(), weights.clone().requires_grad_()
        y = f(at, w)
        found.append([y.detach(), *torch.autograd.grad(y.square().sum(), [at, w, *module.parameters()])])
    assert_equal(*found)
    assert_equal(op.buffers(), twin.buffers())


def test_autocast_reaches_the_kernels() -> None:
    network = SearchNetwork(C=4, num_classes=5, layers=3, steps=2, multiplier=2, backend="fused")
    dtypes = []
    network.cells[0].register_forward_hook(lambda _, __, out: dtypes.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        loss = network(images().float()).float().square().sum()
    loss.backward()
    assert dtypes == [torch.bfloat16]
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in network.parameters())
    assert all(alpha.grad.dtype == torch.float32 for alpha in network.arch_parameters())


def test_one_pixel_has_no_variance() -> None:
    network, _ = twins()
    with pytest.raises(
        ValueError, match=r"batch norm needs more than one value per channel when training; got x \(1, "
    ):
        network(images(1, (2, 2)))
    assert network.eval()(images(1, (1, 1))).isfinite().all()


def replaced(old: type[nn.Module], new: Callable[[], nn.Module]) -> Callable[[MixedOp], object]:
    def change(edge: MixedOp) -> None:
        for part in list(edge.modules()):
            for name, child in list(part.named_children()):
                if isinstance(child, old):
                    setattr(part, name, new())

    return change


def conv(edge: MixedOp, layer: str) -> nn.Module:
    return edge.get_submodule(f"_ops.{PRIMITIVES.index('sep_conv_3x3')}.op.{layer}")


def with_bias(edge: MixedOp) -> None:
    conv(edge, "1").bias = nn.Parameter(torch.ones(8, dtype=torch.float64))


def circular(edge: MixedOp) -> None:
    layer = conv(edge, "1")
    layer.padding_mode, layer._reversed_padding_repeated_twice = "circular", [1, 1, 1, 1]  # type: ignore[assignment]


CHANGES: dict[str, Callable[[MixedOp], object]] = {
    "activation": replaced(nn.ReLU, nn.SiLU),
    "norm": replaced(nn.BatchNorm2d, lambda: nn.GroupNorm(2, 8).double()),
    "no norm": replaced(nn.BatchNorm2d, nn.Identity),
    "forward": lambda edge: setattr(edge._ops[4], "forward", lambda x: 2 * x),
    "bias": with_bias,
    "padding": circular,
    "pruned": lambda edge: prune.l1_unstructured(conv(edge, "2"), "weight", 0.5),
    "spectral": lambda edge: torch.nn.utils.parametrizations.spectral_norm(conv(edge, "2")),
    "no statistics": lambda edge: torch.func.replace_all_batch_norm_modules_(edge),
    "other windows": lambda edge: setattr(edge._ops[1], "0", nn.MaxPool2d(5, 1, 2)),
    "pools swapped": lambda edge: swap(edge._ops, 1, 2),
    "counts padding": lambda edge: setattr(edge._ops[2][0], "count_include_pad", True),  # type: ignore[index]
    "further apart": lambda edge: edge._ops.__setitem__(6, DilConv(8, 3, 1, 3, 3, affine=False).double()),
    "larger": lambda edge: edge._ops.__setitem__(4, SepConv(8, 5, 1, 2, affine=False).double()),
    "no counter": lambda edge: setattr(conv(edge, "3"), "num_batches_tracked", None),
}


def swap(ops: nn.ModuleList, a: int, b: int) -> None:
    ops[a], ops[b] = ops[b], ops[a]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_layers_that_were_changed(change: str, training: bool) -> None:
    """Two steps: what a hook made for the first must not serve the second."""
    x, weights = torch.randn(4, 8, 6, 6, dtype=torch.float64), torch.full((8,), 0.125, dtype=torch.float64)
    plain = MixedOp(8, 1, backend="reference").double()
    results = []
    for edge in (plain, with_backend(plain, "auto")):
        torch.manual_seed(1)
        CHANGES[change](edge)
        edge.train(training)
        optimizer = torch.optim.SGD(edge.parameters(), 1.0)
        for _ in range(2):
            optimizer.zero_grad()
            edge(x, weights).pow(2).sum().backward()
            optimizer.step()
        results.append(edge(x, weights))
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)


def test_hooks_on_layers_are_called() -> None:
    network = SearchNetwork(4, layers=3, steps=2, multiplier=2)
    called: list[nn.Module] = []
    watched = [part for part in network.modules() if isinstance(part, nn.Conv2d)]
    for part in watched:
        part.register_forward_hook(lambda module, *_: called.append(module))
    network(torch.randn(2, 3, 8, 8))
    assert {id(part) for part in called} == {id(part) for part in watched}


def own_forward(edge: nn.Module) -> None:
    edge.forward = lambda x, weights, active=None: x * weights[3]  # type: ignore[method-assign]


def other_ops(edge: nn.Module) -> None:
    del edge._ops[0]  # type: ignore[operator]
    edge._ops.append(nn.Identity())  # type: ignore[operator]


EDGE_CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "output": lambda edge: edge.register_forward_hook(lambda _, args, out: 2 * out),
    "input": lambda edge: edge.register_forward_pre_hook(lambda _, args: (2 * args[0], *args[1:])),
    "gradient": lambda edge: edge.register_full_backward_hook(
        lambda _, into, out: tuple(None if g is None else 2 * g for g in into)
    ),
    "forward": own_forward,
    "other ops": other_ops,
}


@pytest.mark.parametrize("change", [*EDGE_CHANGES, "preprocessing", "strange preprocessing"])
def test_edges_and_preprocessing_that_were_changed(change: str) -> None:
    plain = Cell(2, 2, 4, 4, 4, reduction=False, reduction_prev=False, backend="reference").double()
    states = [torch.randn(2, 4, 6, 6, dtype=torch.float64) for _ in range(2)]
    weights = torch.rand(5, 8, dtype=torch.float64)
    results = []
    for cell in (plain, with_backend(plain, "auto")):
        torch.manual_seed(1)
        if change == "preprocessing":
            cell.preprocess0 = ReLUConvBN(4, 4, 3, padding=1, affine=False).double()
        elif change == "strange preprocessing":
            cell.preprocess0 = nn.Identity()  # type: ignore[assignment]
        else:
            EDGE_CHANGES[change](cell._ops[1])
        x = [state.clone().requires_grad_() for state in states]
        out = cell(*x, weights)
        results.append([out, *torch.autograd.grad(out.pow(2).sum(), x)])
    for got, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_one_hot_op_weights() -> None:
    cell = Cell(1, 1, 4, 4, 4, reduction=False, reduction_prev=False)
    states = [torch.randn(2, 4, 6, 6) for _ in range(2)]
    weights = nn.functional.one_hot(torch.tensor([4, 5]), 8)
    torch.testing.assert_close(cell(*states, weights), cell(*states, weights.float()))
    with pytest.raises(ValueError, match="weights must be"):
        cell(*states, weights.tolist())


def test_what_one_thread_has_read_is_not_anothers() -> None:
    edge, x, weights = MixedOp(4, 1), torch.randn(2, 4, 5, 5), torch.rand(8)
    with fused.reading_once():
        edge(x, weights)
        edge.eval()
        with ThreadPoolExecutor(1) as pool:
            in_thread = pool.submit(edge, x, weights).result()
    torch.testing.assert_close(in_thread, edge(x, weights))


def test_second_derivatives_where_no_op_reaches_the_input() -> None:
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64, requires_grad=True)
    y = MixedOp(8, 1).double()(x, torch.ones(8, dtype=torch.float64), active=[PRIMITIVES.index("none")])
    (gradient,) = torch.autograd.grad((y * x).sum(), x, create_graph=True)
    assert torch.equal(gradient, torch.zeros_like(x))


@pytest.mark.filterwarnings("ignore")  # jit.trace is deprecated, and says what it fixes
def test_transforms_see_plain_modules() -> None:
    edge = MixedOp(8, 1).double().eval()
    x, w = torch.randn(2, 8, 6, 6, dtype=torch.float64), torch.rand(8, dtype=torch.float64)
    (expected,) = torch.autograd.grad(edge(x.requires_grad_(), w).sum(), x)
    torch.testing.assert_close(torch.func.grad(lambda x: edge(x, w).sum())(x.detach()), expected)
    both = torch.vmap(lambda w: edge(x, w))(torch.stack([w, 2 * w]))
    torch.testing.assert_close(both, torch.stack([edge(x, w), edge(x, 2 * w)]))
    traced = torch.jit.trace(edge, (x, w), check_trace=False)
    torch.testing.assert_close(traced(x, 2 * w), edge(x, 2 * w))
    assert copy.deepcopy(edge).to("meta")(x.to("meta"), w.to("meta")).shape == x.shape


FORKS_WHILE_A_THREAD_COMPUTES = """
import os, signal, threading, torch
from fastdarts import MixedOp
torch.set_num_threads(1)
def call():  # with tensors of one's own: torch itself keeps a mutex in each tensor, which a fork may leave locked
    return MixedOp(4, 1), torch.randn(1, 4, 4, 4), torch.rand(8)
def work():
    edge, *inputs = call()
    while not done.is_set(): edge(*inputs)
done = threading.Event()
threads = [threading.Thread(target=work) for _ in range(2)]
edge, *inputs = call()
for t in threads: t.start()
try:
    for _ in range(100):
        if (child := os.fork()) == 0:
            signal.alarm(20)
            edge(*inputs)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
finally:
    done.set()
for t in threads: t.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forks_while_another_thread_computes() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKS_WHILE_A_THREAD_COMPUTES], check=True, timeout=120)
