"""Steps of methods as CUDA graphs: only values of `from_host` come from the host, as in eager steps."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from captured import DRAWING, CapturedOnTheCpu, captured_on_the_cpu
from fake_gpu import NothingFromTheHost, fake_cuda
from tiny_method import FIELDS, OPTIONS, SMALL, tiny_state
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn.functional import cross_entropy
from torch.testing._internal.distributed.fake_pg import FakeStore

from fastdarts import methods
from fastdarts.bilevel import host_values
from fastdarts.bilevel.host_values import HostValue, recording
from fastdarts.bilevel.ranks import ALONE, Ranks
from fastdarts.data import ImageData
from fastdarts.runs import search_state
from fastdarts.runs.search_config import SearchConfig
from fastdarts.runs.search_state import SearchState

__all__ = ["fake_cuda"]


def capturable(name: str) -> bool:
    space = {"space": FIELDS[name]["space"]} if name in FIELDS else {}
    return methods.find(name)(SearchConfig(dataset="digits", method=name, **space)).capturable


def made_for_real(make: host_values.Make) -> Tensor:
    """A value with contents, also where tensors are fake."""
    with unset_fake_temporarily(), torch.device("cpu"):
        return make()


@pytest.fixture
def captured() -> Iterator[None]:
    with captured_on_the_cpu():
        yield


@pytest.mark.parametrize("name", DRAWING)
@pytest.mark.usefixtures("captured")
def test_a_captured_step_draws_what_an_eager_one_does(name: str) -> None:
    torch.set_default_dtype(torch.float64)
    x, y = torch.randn(12, 6, 1, 6, 6), torch.randint(2, (12, 6))
    results = []
    for graph in (True, False):
        state = tiny_state(name, alpha_warmup=0.0, cuda_graphs=graph, **DRAWING[name])
        CapturedOnTheCpu.state = state
        torch.manual_seed(1)
        for epoch in range(2):
            state.epoch = epoch + 1
            state._begin_epoch()
            for i in range(5):
                row = state.search_step.step((x[i], y[i]), (x[i + 6], y[i + 6]))
        assert len(state.search_step._replay.captured) == graph
        results.append([*row, *state.network.arch_parameters(), *state.network.state_dict().values()])
        results[-1].append(state.method.generator.get_state())
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())


def values_of_a_captured_step(name: str, monkeypatch: pytest.MonkeyPatch, ranks: Ranks) -> list[HostValue]:
    """Capture a step on fake CUDA tensors; fails where it takes something from the host by other ways than these."""
    monkeypatch.setattr(search_state, "Augment", lambda *_, **__: SimpleNamespace(cutout_share=1.0))
    monkeypatch.setattr(host_values, "_made", made_for_real)
    monkeypatch.setattr(nn.Module, "to", lambda network, *_, **__: network)  # made on the GPU
    monkeypatch.setattr(SearchState, "architecture", lambda state: {})  # alphas for the report
    images = ImageData(torch.zeros(16, 1, 6, 6, dtype=torch.uint8), torch.arange(16) % 2, ("a", "b"), (0.5,), (0.3,))
    options = {"method_options": OPTIONS.get(name, {})} | DRAWING.get(name, {})
    small = {
        "layers": 3 if name in ("sdarts-adv", "lambda-darts") else 1,
        "order": 1,
        "alpha_warmup": 0.0,
        "space_options": {"steps": 2, "multiplier": 2},
    }
    config = SearchConfig(dataset="digits", method=name, **(SMALL | small | options))
    state = SearchState(config, images, images, cross_entropy, torch.device("cuda"), ranks)
    state.epoch = 1
    state._begin_epoch()
    train, valid = ((torch.empty(8, 1, 6, 6), torch.zeros(8, dtype=torch.int64)) for _ in range(2))
    lr = torch.tensor(0.05)
    with recording():  # the first step makes the optimizers' states
        state.search_step.run(train, valid, lr)
    with recording() as values, NothingFromTheHost():
        state.search_step.run(train, valid, lr)
    return values


@pytest.mark.parametrize("name", [name for name in methods.NAMES if capturable(name)])
@pytest.mark.usefixtures("fake_cuda")
def test_a_capture_takes_nothing_from_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bool(values_of_a_captured_step(name, monkeypatch, ALONE)) == (name in DRAWING)


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ranks]:
    """The second rank of a process group that exchanges nothing."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))  # broadcasts ask for it
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    yield Ranks(dist.group.WORLD)
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["darts", "p-darts", "sdarts-adv"])
@pytest.mark.usefixtures("fake_cuda")
def test_nor_does_one_of_several_ranks(name: str, second_of_two: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bool(values_of_a_captured_step(name, monkeypatch, second_of_two)) == (name in DRAWING)
