"""One search step: the alphas first, then clipped SGD on the weights; the measurements; no host read."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from fastdarts.bilevel import Architect
from fastdarts.network import SearchNetwork
from fastdarts.step import SearchStep, count_correct


def supernet() -> SearchNetwork:
    return SearchNetwork(C=4, num_classes=3, layers=3, steps=2, multiplier=2)


def batch(seed: int, n: int = 6, classes: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(classes, (n,), generator=generator)


def search_step(network: nn.Module, arch_lr: float = 3e-4, **options: object) -> SearchStep:
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9, weight_decay=3e-4)
    return SearchStep(network, Architect(network, lr=arch_lr), optimizer, **options)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("grad_clip", [5.0, 0.1, None])
def test_a_step_is_the_alpha_step_then_clipped_sgd(order: int, grad_clip: float | None) -> None:
    network = supernet().double()
    twin = copy.deepcopy(network)
    search = search_step(network, order=order, grad_clip=grad_clip)
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
    assert result.train_loss.dtype == torch.float32


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


def test_refuses_parts_that_do_not_belong_together() -> None:
    network, other = supernet(), supernet()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    with pytest.raises(ValueError, match="made for another network"):
        SearchStep(network, Architect(other), optimizer)
    groups = torch.optim.SGD([{"params": network.stem.parameters()}, {"params": network.cells.parameters()}], 0.1)
    with pytest.raises(ValueError, match="one parameter group; got 2"):
        SearchStep(network, Architect(network), groups)
