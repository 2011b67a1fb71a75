"""Steps of methods as CUDA graphs: only values of `from_host` come from the host, as in eager steps."""

from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from fake_gpu import NothingFromTheHost, fake_cuda
from tiny_method import FIELDS, OPTIONS, SMALL, tiny_state
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn.functional import cross_entropy

from fastdarts import methods
from fastdarts.bilevel import graphs, host_values
from fastdarts.bilevel.graphs import Work
from fastdarts.bilevel.host_values import recording
from fastdarts.bilevel.step import SearchStep
from fastdarts.data import ImageData
from fastdarts.runs import search_state
from fastdarts.runs.search_config import SearchConfig
from fastdarts.runs.search_state import SearchState

__all__ = ["fake_cuda"]

DRAWING: dict[str, dict[str, Any]] = {
    "fbnet": {},
    "snas": {"method_options": {"resource": 0.1}},
    "sdarts-rs": {},
    "sdarts-adv": {"method_options": {"steps": 2}},
    "p-darts": {"method_options": {"depth": (1.0, 1.0, 1.4), "skip_dropout": (0.3, 0.3, 0.3)}},
    "robustdarts": {"method_options": {"iterations": 2, "images": 4, "drop_path": 0.4}, "order": 1},
}
"""Methods whose captured steps use numbers that the host draws."""


def capturable(name: str) -> bool:
    space = {"space": FIELDS[name]["space"]} if name in FIELDS else {}
    return methods.find(name)(SearchConfig(dataset="digits", method=name, **space)).capturable


def made_for_real(make: host_values.Make) -> Tensor:
    """A value with contents, also where tensors are fake."""
    with unset_fake_temporarily(), torch.device("cpu"):
        return make()


class CapturedOnTheCpu:
    """Stands for a CUDA graph: its capture leaves no trace but in generators, a replay reads its values from places."""

    state: ClassVar[SearchState]

    def __init__(self, work: Work, inputs: Sequence[Tensor], stream: object, pool: object) -> None:
        self.work, self.replays = work, 0
        state = self.state
        tensors = [*state.network.parameters(), *state.network.buffers(), *state.network.arch_parameters()]
        tensors += [state.w_optimizer.momentum, state.architect.flat.buffer]
        tensors += [value for kept in state.architect.optimizer.state.values() for value in kept.values()]
        before = [tensor.detach().clone() for tensor in tensors]
        with recording() as self.values:
            work(*inputs)
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)

    def replay(self, inputs: Sequence[Tensor], carried: Sequence[int]) -> Tensor:
        for value in self.values:
            value.renew() if self.replays else value.write(value.first)
        self.replays += 1
        places = iter([value.place for value in self.values])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(host_values, "_made", lambda make: next(places))
            measured = self.work(*inputs)
        assert next(places, None) is None
        return measured


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "CapturedStep", CapturedOnTheCpu)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: device)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(graphs, "_beside", lambda stream: nullcontext())
    monkeypatch.setattr(SearchStep, "_capturable", lambda step: step.cuda_graphs and step.rules.capturable)


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


@pytest.mark.parametrize("name", [name for name in methods.NAMES if capturable(name)])
@pytest.mark.usefixtures("fake_cuda")
def test_a_capture_takes_nothing_from_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
    state = SearchState(config, images, images, cross_entropy, torch.device("cuda"))
    state.epoch = 1
    state._begin_epoch()
    train, valid = ((torch.empty(8, 1, 6, 6), torch.zeros(8, dtype=torch.int64)) for _ in range(2))
    lr = torch.tensor(0.05)
    with recording():  # the first step makes the optimizers' states
        state.search_step.run(train, valid, lr)
    with recording() as values, NothingFromTheHost():
        state.search_step.run(train, valid, lr)
    assert bool(values) == (name in DRAWING)
