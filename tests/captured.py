"""Steps that run on the CPU as CUDA graphs do: captured once, then replayed with new values from the host."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from fastdarts.bilevel import graphs, host_values
from fastdarts.bilevel.graphs import Work
from fastdarts.bilevel.host_values import recording
from fastdarts.bilevel.step import SearchStep
from fastdarts.runs.search_state import SearchState

DRAWING: dict[str, dict[str, Any]] = {
    "fbnet": {},
    "snas": {"method_options": {"resource": 0.1}},
    "sdarts-rs": {},
    "sdarts-adv": {"method_options": {"steps": 2}},
    "p-darts": {"method_options": {"depth": (1.0, 1.0, 1.4), "skip_dropout": (0.3, 0.3, 0.3)}},
    "robustdarts": {"method_options": {"iterations": 2, "images": 4, "drop_path": 0.4}, "order": 1},
}
"""Methods whose captured steps use numbers that the host draws."""


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


@contextmanager
def captured_on_the_cpu() -> Iterator[None]:
    """Inside, searches on the CPU capture their steps; each has to be set as `CapturedOnTheCpu.state`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "CapturedStep", CapturedOnTheCpu)
        patch.setattr(torch.cuda, "Stream", lambda device: device)
        patch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
        patch.setattr(graphs, "_beside", lambda stream: nullcontext())
        patch.setattr(SearchStep, "_capturable", lambda step: step.cuda_graphs and step.rules.capturable)
        yield
