"""One search step: the alphas first, then clipped SGD on the weights; the measurements; no host read."""

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fake_gpu import NothingFromTheHost, fake_cuda, walk_graph
from plain_bilevel import PlainSearch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from fastdarts.bilevel import graphs
from fastdarts.bilevel.architect import Architect
from fastdarts.bilevel.flat import FlatSGD
from fastdarts.bilevel.graphs import Work
from fastdarts.bilevel.ranks import Ranks
from fastdarts.bilevel.step import SearchStep
from fastdarts.ops import flat_ops
from fastdarts.spaces.darts.supernet import SearchNetwork
from fastdarts.tasks.classification import count_correct

__all__ = ["fake_cuda"]


def supernet(steps: int = 2, **options: object) -> SearchNetwork:
    return SearchNetwork(C=2, num_classes=3, layers=3, steps=steps, multiplier=steps, **options)


def batch(seed: int, n: int = 6, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(3, (n,), generator=generator)


def search_step(
    network: nn.Module,
    optimizer: str = "flat",
    arch_lr: float = 3e-4,
    hvp: str = "finite-difference",
    **options: object,
) -> SearchStep:
    kind = {"flat": FlatSGD, "torch": torch.optim.SGD}[optimizer]
    w_optimizer = kind(network.parameters(), 0.05, momentum=0.9, weight_decay=3e-4)
    return SearchStep(network, Architect(network, lr=arch_lr, hvp=hvp), w_optimizer, **options)


@pytest.mark.parametrize("kind", ["flat", "torch"])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("grad_clip", [5.0, 0.1, None])
def test_a_step_is_the_alpha_step_then_clipped_sgd(order: int, grad_clip: float | None, kind: str) -> None:
    network = supernet().double()
    twin = copy.deepcopy(network)
    search = search_step(network, kind, order=order, grad_clip=grad_clip)
    optimizer = torch.optim.SGD(twin.parameters(), 0.05, momentum=0.9, weight_decay=3e-4)
    architect = Architect(twin)
    for seed in range(3):
        train, valid = batch(seed, dtype=torch.float64), batch(seed + 10, dtype=torch.float64)
        result = search.step(train, valid)
        gradients = architect.step(train, valid, 0.05, optimizer, order)
        optimizer.zero_grad()
        outputs = twin(train[0])
        loss = cross_entropy(outputs, train[1])
        loss.backward(inputs=list(twin.parameters()))
        norm = nn.utils.clip_grad_norm_(twin.parameters(), math.inf if grad_clip is None else grad_clip)
        optimizer.step()
        assert result.train_loss.item() == pytest.approx(loss.item(), rel=1e-12)
        assert result.valid_loss.item() == pytest.approx(architect.valid_loss.item(), rel=1e-12)
        assert result.gradient_norm.item() == pytest.approx(norm.item(), rel=1e-12)
        assert result.alpha_gradient_norm.item() == pytest.approx(torch.cat(gradients).norm().item(), rel=1e-12)
        assert result.correct.item() == (outputs.argmax(1) == train[1]).sum().item()
    for (name, ours), theirs in zip(network.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13, msg=name)
    for ours, theirs in zip(network.arch_parameters(), twin.arch_parameters(), strict=True):
        # Adam divides by the gradient's own size, so the first steps pass its relative error on.
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_hundred_steps_are_those_of_the_plain_procedure() -> None:
    # On a few pixels batch norm nearly divides by zero, and rounding would grow into another search.
    network = supernet(steps=1, primitives=["none", "max_pool_3x3", "skip_connect", "sep_conv_3x3"]).double()
    plain = PlainSearch(copy.deepcopy(network), lr=0.05, arch_lr=0.01)
    search = search_step(network, arch_lr=0.01)
    for seed in range(100):
        train, valid = (batch(s, dtype=torch.float64) for s in (seed, seed + 100))
        search.step(train, valid)
        plain.step(train, valid)
    for ours, theirs in zip(network.arch_parameters(), plain.network.arch_parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)
    assert network.genotype() == plain.network.genotype()


def test_the_weight_step_sees_the_new_alphas_and_running_statistics_move_once() -> None:
    network = supernet()
    before = cross_entropy(copy.deepcopy(network)(batch(0)[0]), batch(0)[1])
    result = search_step(network, arch_lr=0.5).step(batch(0), batch(1))
    assert result.train_loss.item() != before.item()
    assert {int(m.num_batches_tracked) for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {1}
    assert all(alpha.grad is None for alpha in network.arch_parameters())


def test_xi_is_the_present_learning_rate() -> None:
    network = supernet().double()
    search = search_step(network)
    seen: list[float] = []
    inner = search.architect.alpha_gradients
    search.architect.alpha_gradients = lambda *a: (seen.append(float(a[2])), inner(*a))[1]  # type: ignore[method-assign]
    schedule = torch.optim.lr_scheduler.StepLR(search.w_optimizer, 1, 0.5)
    for _ in range(2):
        search.step(batch(0, dtype=torch.float64), batch(1, dtype=torch.float64))
        schedule.step()
    assert seen == [0.05, 0.025]


def test_loss_and_amp_apply_to_both_steps() -> None:
    network = supernet()
    kinds: list[torch.dtype] = []
    network.cells[0].preprocess0.register_forward_hook(lambda m, i, output: kinds.append(output.dtype))

    def multi_label(outputs: Tensor, targets: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(outputs, targets)

    search = search_step(network, loss=multi_label, amp_dtype=torch.bfloat16)
    train, valid = ((batch(s)[0], torch.rand(6, 3).round()) for s in (0, 1))
    result = search.step(train, valid)
    assert len(kinds) == 5
    assert set(kinds) == {torch.bfloat16}
    assert math.isnan(result.correct.item())
    assert all(value.dtype == torch.float64 for value in result)


def test_count_correct() -> None:
    outputs = torch.tensor([[3.0, 1, 2], [0, 5, 1], [0, 0, 1]])
    assert count_correct(outputs, torch.tensor([0, 1, 0])).item() == 2
    maps = torch.zeros(2, 2, 1, 2)
    maps[0, 1, 0, 0] = 1  # predicts [[1, 0]] and [[0, 0]]
    assert count_correct(maps, torch.tensor([[[1, 1]], [[0, 0]]])).item() == 1.5
    assert math.isnan(count_correct(outputs, outputs).item())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 0}, "order must be 1 or 2"),
        ({"grad_clip": 0.0}, "grad_clip must be a positive number or None; got 0.0"),
        ({"grad_clip": math.nan}, "grad_clip must be"),
    ],
)
def test_refuses(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search_step(supernet(), **options)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("change", ["order", "layout"])
def test_flat_sgd_need_not_lie_as_the_architect_does(change: str, order: int) -> None:
    found = []
    for kind in (FlatSGD, torch.optim.SGD):
        torch.manual_seed(0)
        network = supernet().double()
        weights = list(network.parameters())
        w_optimizer = kind(weights[::-1] if change == "order" else weights, 0.05, momentum=0.9)
        search = SearchStep(network, Architect(network), w_optimizer, order=order)
        if change == "layout":
            network.to(memory_format=torch.channels_last)
        for seed in range(2):
            search.step(batch(seed, dtype=torch.float64), batch(seed + 10, dtype=torch.float64))
        found.append([*network.parameters(), *network.alphas.values()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)


def test_flat_sgd_takes_no_frozen_weights() -> None:
    network = supernet()
    network.stem.requires_grad_(False)
    with pytest.raises(ValueError, match=r"w_optimizer holds \d+ weights, of which \d+ require gradients"):
        search_step(network).step(batch(0), batch(1))


def test_refuses_parts_that_do_not_belong_together() -> None:
    network, other = supernet(), supernet()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    with pytest.raises(ValueError, match="made for another network"):
        SearchStep(network, Architect(other), optimizer)
    groups = torch.optim.SGD([{"params": network.stem.parameters()}, {"params": network.cells.parameters()}], 0.1)
    with pytest.raises(ValueError, match="one parameter group; got 2"):
        SearchStep(network, Architect(network), groups)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_walking_the_graph_gives_autograds_gradients(backend: str) -> None:
    network = supernet(backend=backend).double()
    inputs = [*network.arch_parameters(), *network.parameters()]
    x, y = batch(0, dtype=torch.float64)
    for ours, theirs in zip(
        walk_graph(cross_entropy(network(x), y), inputs, materialize_grads=True),
        torch.autograd.grad(cross_entropy(network(x), y), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def fake_step(search: SearchStep) -> None:
    train, valid = ((torch.empty(6, 3, 8, 8), torch.zeros(6, dtype=torch.int64)) for _ in range(2))
    result = search.step(train, valid)
    assert all(value.device.type == "cuda" and value.shape == () for value in result)


@pytest.mark.parametrize(
    ("order", "hvp", "kind"),
    [
        (1, "finite-difference", "flat"),
        (2, "finite-difference", "flat"),
        (2, "finite-difference", "torch"),
        (2, "exact", "flat"),
    ],
)
@pytest.mark.usefixtures("fake_cuda")
def test_a_step_never_waits_for_the_device(order: int, hvp: str, kind: str) -> None:
    primitives = ["none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_3x3"]
    search = search_step(supernet(steps=1, primitives=primitives), kind, hvp=hvp, order=order, cuda_graphs=False)
    for _ in range(2):  # the first step makes the optimizers' states
        fake_step(search)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.usefixtures("fake_cuda")
def test_a_step_with_ranks_never_waits_for_the_device(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What surrounds all-reduces can be captured with them; the collectives themselves do nothing here."""
    for name in ("all_reduce", "broadcast"):
        monkeypatch.setattr(dist, name, lambda tensor, **_: None)
    group: Any = SimpleNamespace(rank=lambda: 0, size=lambda: 2)
    network = supernet(steps=1, primitives=["none", "max_pool_3x3", "skip_connect", "sep_conv_3x3"])
    optimizer = FlatSGD(network.parameters(), 0.05, momentum=0.9, weight_decay=3e-4)
    search = SearchStep(network, Architect(network, ranks=Ranks(group)), optimizer, order=order, cuda_graphs=False)
    for _ in range(2):
        fake_step(search)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    "primitives", [["none", "max_pool_3x3", "skip_connect", "sep_conv_3x3"], ["noise", "sep_conv_3x3"]]
)
@pytest.mark.usefixtures("fake_cuda")
def test_a_step_brings_nothing_from_the_host(order: int, primitives: list[str]) -> None:
    search = search_step(supernet(steps=2, primitives=primitives), order=order, cuda_graphs=False)
    fake_step(search)
    with NothingFromTheHost():
        fake_step(search)


@pytest.mark.parametrize("read", [Tensor.item, bool, lambda t: t.detach().cpu().numpy(), torch.nonzero])
@pytest.mark.parametrize("place", ["loss", "flat_norm"])
@pytest.mark.usefixtures("fake_cuda")
def test_a_step_that_waits_for_the_device_is_noticed(
    read: Callable[[Tensor], object], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reading(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapper(*arguments: Tensor) -> Tensor:
            result = function(*arguments)
            read(result)
            return result

        return wrapper

    search = search_step(supernet(steps=1, primitives=["none", "skip_connect"]), cuda_graphs=False)
    fake_step(search)
    if place == "loss":
        search.architect.loss = reading(cross_entropy)
    else:
        monkeypatch.setattr(flat_ops, "norm", reading(flat_ops.norm))
    # DataDependentOutputException and DynamicOutputShapeException are RuntimeErrors.
    with pytest.raises(RuntimeError, match=r"_local_scalar_dense|nonzero|not supported for tensor subclasses"):
        fake_step(search)


class CapturedOnTheCpu:
    """Stands for a CUDA graph: counts captures and replays, and runs the step as it is."""

    captures = 0
    replays = 0

    def __init__(self, work: Work, inputs: object, stream: object, pool: object) -> None:
        self.work = work
        type(self).captures += 1

    def replay(self, inputs: Sequence[Tensor], carried: Sequence[int]) -> Tensor:
        type(self).replays += 1
        return self.work(*inputs)


def test_steps_are_captured_once_shapes_are_steady_and_anew_when_something_fixed_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Captured(CapturedOnTheCpu):
        pass

    monkeypatch.setattr(graphs, "CapturedStep", Captured)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: device)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(graphs, "_beside", lambda stream: nullcontext())
    monkeypatch.setattr(SearchStep, "_capturable", lambda self: True)
    network = supernet(steps=1, primitives=["none", "skip_connect"])
    twin = copy.deepcopy(network)
    search, plain = search_step(network), search_step(twin, cuda_graphs=False)
    schedules = [torch.optim.lr_scheduler.StepLR(s.w_optimizer, 1, 0.9) for s in (search, plain)]

    def steps(sizes: list[int]) -> tuple[int, int]:
        before = Captured.captures, Captured.replays
        for seed, n in enumerate(sizes):
            search.step(batch(seed, n), batch(seed + 50, n))
            plain.run(batch(seed, n), batch(seed + 50, n), plain.w_optimizer.param_groups[0]["lr"])
            for schedule in schedules:
                schedule.step()
        return Captured.captures - before[0], Captured.replays - before[1]

    assert steps([2, 6, 6]) == (0, 0)
    # Adam's state appeared in the first step; the third of equal ones is the last eager one.
    assert steps([6, 6, 6]) == (1, 2)
    assert steps([6, 4, 6, 6]) == (0, 3)  # an epoch's last batch
    assert steps([4, 4, 4, 4, 4, 6]) == (1, 2)  # other sizes for good
    search.grad_clip = plain.grad_clip = 0.5
    assert steps([4] * 5) == (1, 2)
    search.w_optimizer.load_state_dict(copy.deepcopy(search.w_optimizer.state_dict()))
    search.architect.load_state_dict(copy.deepcopy(search.architect.state_dict()))
    assert steps([4] * 5) == (1, 2)
    network.eval()
    twin.eval()
    assert steps([4] * 5) == (1, 2)
    for (name, ours), theirs in zip(network.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize(
    ("raised", "seen", "message"),
    [
        (torch.OutOfMemoryError("of a GPU"), torch.OutOfMemoryError, "of a GPU"),
        (RuntimeError("operation not permitted"), RuntimeError, "could not be captured"),
    ],
)
def test_why_a_capture_fails(
    raised: Exception, seen: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> None:
        raise raised

    for name in ("CUDAGraph", "graph", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, **__: nullcontext())
    with pytest.raises(seen, match=message):
        graphs.CapturedStep(run, batch(0), SimpleNamespace(device=None), None)


@pytest.mark.gpu
@pytest.mark.parametrize("order", [1, 2])
def test_graphs_make_the_eager_steps_on_the_gpu(order: int) -> None:
    network = supernet().double().cuda()
    twin = copy.deepcopy(network)
    search, plain = search_step(network, order=order), search_step(twin, order=order, cuda_graphs=False)
    for seed in range(10):
        train, valid = ([t.cuda() for t in batch(s, 5 if seed == 8 else 6, torch.float64)] for s in (seed, seed + 50))
        for optimizer in (search.w_optimizer, plain.w_optimizer):
            optimizer.param_groups[0]["lr"] = 0.05 * 0.9**seed
        for ours, theirs in zip(search.step(train, valid), plain.step(train, valid), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
    assert search._replay.captured
    for ours, theirs in zip(network.arch_parameters(), twin.arch_parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)
