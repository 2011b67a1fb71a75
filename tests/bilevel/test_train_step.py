"""One step of ordinary training: what it measures, equality with torch's own optimizer, no host read, capture."""

import copy
from collections.abc import Sequence
from contextlib import nullcontext

import pytest
import torch
from fake_gpu import NothingFromTheHost, fake_cuda
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastdarts import DARTS_V2, EvalNetwork
from fastdarts.bilevel import graphs
from fastdarts.bilevel.flat import FlatSGD
from fastdarts.bilevel.graphs import Work
from fastdarts.bilevel.train_step import TrainStep

__all__ = ["fake_cuda"]


def network() -> EvalNetwork:
    return EvalNetwork(DARTS_V2, C=4, num_classes=3, layers=3, drop_path_prob=0.2)


def train_step(net: nn.Module, **options: object) -> TrainStep:
    optimizer = FlatSGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    return TrainStep(net, optimizer, cross_entropy, **({"auxiliary_weight": 0.4, "grad_clip": 0.5} | options))


def batch(seed: int, n: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 8, 8, generator=generator), torch.randint(3, (n,), generator=generator)


def test_steps_are_those_of_torchs_own_optimizer() -> None:
    ours = network().double()
    plain = copy.deepcopy(ours)
    step, optimizer = train_step(ours), torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for seed in range(4):
        images, targets = batch(seed)
        torch.manual_seed(seed)
        result = step.step((images.double(), targets))
        torch.manual_seed(seed)
        logits, auxiliary = (y.float() for y in plain(images.double()))
        loss = cross_entropy(logits, targets)
        optimizer.zero_grad()
        (loss + 0.4 * cross_entropy(auxiliary, targets)).backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        measured = torch.stack([loss, (logits.argmax(1) == targets).sum(), norm]).double()
        torch.testing.assert_close(torch.stack(result).detach(), measured.detach(), rtol=1e-6, atol=1e-7)
    for (name, mine), theirs in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.usefixtures("fake_cuda")
@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_a_step_neither_waits_for_the_device_nor_brings_anything_from_the_host(amp: torch.dtype | None) -> None:
    net = network()
    step = train_step(net, cuda_graphs=False, amp_dtype=amp)
    for probability in (0.1, 0.2):
        with NothingFromTheHost() if probability == 0.2 else nullcontext():
            net.drop_path_prob = probability
            step.optimizer.param_groups[0]["lr"] = probability
            result = step.step((torch.empty(6, 3, 8, 8), torch.zeros(6, dtype=torch.int64)))
    assert all(value.device.type == "cuda" and value.shape == () for value in result)


def test_neither_a_learning_rate_nor_a_drop_path_probability_makes_a_new_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    class CapturedOnTheCpu:
        captures = 0

        def __init__(self, work: Work, inputs: Sequence[Tensor], stream: object, pool: object) -> None:
            self.work = work
            type(self).captures += 1

        def replay(self, inputs: Sequence[Tensor], carried: Sequence[int]) -> Tensor:
            return self.work(*inputs)

    monkeypatch.setattr(graphs, "CapturedStep", CapturedOnTheCpu)
    monkeypatch.setattr(graphs, "_beside", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: device)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(TrainStep, "on_gpu", lambda self: True)
    net = network()
    step = train_step(net)
    for i in range(8):
        net.drop_path_prob = 0.1 * i
        step.optimizer.param_groups[0]["lr"] = 0.1 / (1 + i)
        step.step(batch(i))
    assert CapturedOnTheCpu.captures == 1
    step.step(batch(0, 4))  # an epoch's last batch runs as it is
    assert CapturedOnTheCpu.captures == 1
