"""Steps on texts: those of a found cell's training and of a search, without a host read, captured by window length."""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import ClassVar, Literal

import pytest
import torch
from fake_gpu import NothingFromTheHost, fake_cuda
from torch import Tensor

from fastdarts.bilevel import graphs
from fastdarts.bilevel.architect import Architect
from fastdarts.bilevel.averaging import FlatASGD
from fastdarts.bilevel.clipping import VirtualClip
from fastdarts.bilevel.flat import FlatSGD
from fastdarts.bilevel.graphs import Replay, Work
from fastdarts.bilevel.step import SearchStep
from fastdarts.bilevel.task_step import TaskStep
from fastdarts.spaces.recurrent.architecture import PUBLISHED
from fastdarts.spaces.recurrent.discrete import RecurrentNetwork
from fastdarts.spaces.recurrent.supernet import RecurrentSearchNetwork
from fastdarts.tasks.language import Dropouts, Language, padded
from fastdarts.tasks.task import Batch

__all__ = ["fake_cuda"]

VOCABULARY, WIDTH, COLUMNS = 11, 6, 4
DROPOUTS = Dropouts(0.5, 0.25, 0.5, 0.2, 0.1)


def window(length: int, dtype: torch.dtype = torch.float32) -> Batch:
    words = torch.randint(VOCABULARY, (length + 1, COLUMNS))
    hidden = torch.zeros(COLUMNS, WIDTH, dtype=dtype)
    return words[:-1], words[1:], hidden, *DROPOUTS.draw(VOCABULARY, hidden, None)


def found_network() -> RecurrentNetwork:
    return RecurrentNetwork(PUBLISHED["RNN_DARTS_V1"], VOCABULARY, WIDTH, "reference")


def task_step(network: RecurrentNetwork, averaging: bool = False, **options: object) -> TaskStep:
    weights = network.parameters()
    optimizer = FlatASGD(weights, 1.0) if averaging else FlatSGD(weights, 1.0, 0.0)
    return TaskStep(network, optimizer, Language(1e-2, 1e-2), grad_clip=0.25, **options)  # type: ignore[arg-type]


@pytest.mark.usefixtures("fake_cuda")
@pytest.mark.parametrize("averaging", [False, True])
@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_a_step_neither_waits_for_the_device_nor_brings_anything_from_the_host(
    averaging: bool, amp: torch.dtype | None
) -> None:
    step = task_step(found_network(), averaging, cuda_graphs=False, amp_dtype=amp)
    for length in (3, 4):
        with NothingFromTheHost() if length == 4 else nullcontext():
            batch = padded(window(length), 5)
            result = step.step(batch)
    assert batch[0].shape == (5, COLUMNS)
    assert all(value.device.type == "cuda" and value.shape == () for value in result)


@pytest.mark.usefixtures("fake_cuda")
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_a_search_step_does_neither(order: int, backend: Literal["reference", "auto"]) -> None:
    network = RecurrentSearchNetwork(VOCABULARY, WIDTH, backend)
    architect = Architect(network, w_momentum=0.0, task=Language(1e-3, 0.0), clip=VirtualClip(0.25))
    optimizer = FlatSGD(network.parameters(), 1.0, 0.0)
    search = SearchStep(network, architect, optimizer, order=order, grad_clip=0.25, cuda_graphs=False)
    for length in (3, 4):
        with NothingFromTheHost() if length == 4 else nullcontext():
            result = search.step(window(length), window(3))
    assert all(value.device.type == "cuda" and value.shape == () for value in result)


class CapturedOnTheCpu:
    """Stands for a CUDA graph: keeps the shapes it was captured with, and runs the step as it is."""

    captured: ClassVar[list[int]] = []

    def __init__(self, work: Work, inputs: Sequence[Tensor], stream: object, pool: object) -> None:
        self.work, self.shapes = work, [t.shape for t in inputs]
        self.captured.append(len(inputs[0]))

    def replay(self, inputs: Sequence[Tensor], carried: Sequence[int]) -> Tensor:
        assert [t.shape for t in inputs] == self.shapes
        return self.work(*inputs)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Capture on the CPU; return the list of the windows' lengths in the order of capture."""
    monkeypatch.setattr(CapturedOnTheCpu, "captured", [])
    monkeypatch.setattr(graphs, "CapturedStep", CapturedOnTheCpu)
    monkeypatch.setattr(graphs, "_beside", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: device)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(TaskStep, "on_gpu", lambda self: True)
    return CapturedOnTheCpu.captured


@pytest.mark.parametrize("averaging", [False, True])
def test_each_padded_length_is_captured_once(captured: list[int], averaging: bool) -> None:
    """The steps are those of the windows as they are, and the hidden state goes on from one to the next."""
    ours = found_network().double()
    plain = copy.deepcopy(ours)
    step, other = task_step(ours, averaging, kinds=3), task_step(plain, averaging, cuda_graphs=False)
    state, expected = torch.zeros(2, COLUMNS, WIDTH, dtype=torch.float64).unbind()
    for length in [9, 12, 10, 4, 7, 11, 13, 2, 3, 15, 8, 5]:
        words, targets, _, *masks = window(length, torch.float64)
        result = step.step(padded((words, targets, state, *masks), 5))
        true = other.step((words, targets, expected, *masks))
        torch.testing.assert_close(torch.stack(result), torch.stack(true), rtol=1e-12, atol=0)
        torch.testing.assert_close(state, expected, rtol=0, atol=1e-12)
    assert captured == [15, 10, 5]  # each at the fourth window of its padded length
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_the_oldest_graph_gives_way(captured: list[int]) -> None:
    replay = Replay(kinds=2)

    def run(length: int, times: int) -> None:
        for _ in range(times):
            replay.run(lambda x: x.sum(), length, [torch.zeros(length)])

    for length in (3, 4):
        run(length, 5)
    assert captured == [3, 4]
    run(3, 1)
    run(5, 4)  # takes the place of 4
    assert captured == [3, 4, 5]
    run(3, 1)
    assert captured == [3, 4, 5]
    run(4, 4)
    assert captured == [3, 4, 5, 4]
    assert list(replay.captured) == [3, 4]
