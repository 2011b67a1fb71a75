"""One update of running statistics for a whole pass: the same numbers as an update in each call."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastdarts import Architect, EvalNetwork, SearchNetwork
from fastdarts.bilevel.flat import FlatSGD
from fastdarts.bilevel.train_step import TrainStep
from fastdarts.mixed.mixed_op import MixedOp
from fastdarts.mixed.statistics import updating_once
from fastdarts.ops import operators
from fastdarts.spaces.darts.genotype import Genotype

pytestmark = pytest.mark.skipif(
    operators.unavailable(torch.device("cpu"), torch.float32) is not None,
    reason="needs fastdarts._C, which is not built",
)
OPS = ["max_pool_3x3", "skip_connect", "sep_conv_3x3"]


class Updates(TorchDispatchMode):
    """Count updates of running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norms: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket._qualified_op_name == "fastdarts::update_running":
            self.norms.append(len(args[0]))
        return func(*args, **(kwargs or {}))


def network() -> SearchNetwork:
    return SearchNetwork(C=2, layers=3, steps=2, multiplier=2, primitives=("none", *OPS))


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 8, 8)


def equal_buffers(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.buffers(), b.buffers(), strict=True))


def test_a_step_of_a_search_updates_all_norms_at_once() -> None:
    ours = network()
    other, x = copy.deepcopy(ours), images()
    fused = [m for m in ours.modules() if isinstance(m, nn.BatchNorm2d)]
    with Updates() as updates:
        Architect(ours).forward((x, torch.tensor([0, 1])))
    assert updates.norms == [len(fused) - 1]  # the stem's is a plain one
    other(x)
    assert equal_buffers(ours, other)
    assert int(fused[0].num_batches_tracked) == 1


def test_a_step_of_training_updates_all_norms_at_once() -> None:
    cell = [("sep_conv_3x3", 0), ("skip_connect", 1)] * 2
    ours = EvalNetwork(Genotype(cell, [2, 3], cell, [2, 3]), C=4, layers=3, drop_path_prob=0.0)
    other, x = copy.deepcopy(ours), images()
    step = TrainStep(ours, FlatSGD(ours.parameters()), nn.functional.cross_entropy)
    with Updates() as updates:
        step.step((x, torch.tensor([0, 1])))
    assert len(updates.norms) == 1
    other(x)
    assert equal_buffers(ours, other)


def test_a_pass_that_must_not_count_updates_nothing() -> None:
    ours, x = network(), images()
    before = copy.deepcopy(ours)
    with ours.frozen_statistics(), Updates() as updates:
        Architect(ours).forward((x, torch.tensor([0, 1])))
    assert updates.norms == []
    assert equal_buffers(ours, before)


def test_norms_that_run_twice_are_updated_in_order() -> None:
    ours = MixedOp(4, 1, OPS)
    other, weights = copy.deepcopy(ours), torch.ones(3)
    batches = [torch.randn(2, 4, 5, 5) for _ in range(3)]
    with Updates() as updates, updating_once():
        for x in batches:
            ours(x, weights)
    for x in batches:
        other(x, weights)
    assert updates.norms == [3, 3, 3]
    assert equal_buffers(ours, other)


def test_momenta_and_types_may_differ_between_calls() -> None:
    ours = [MixedOp(4, 1, OPS) for _ in range(4)]
    for m in ours[1].modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 0.5
    ours[2].double()
    other, weights = copy.deepcopy(ours), torch.ones(3)
    batches = [torch.randn(2, 4, 5, 5, dtype=torch.float64 if i == 2 else torch.float32) for i in range(4)]
    with Updates() as updates, updating_once():
        for op, x in zip(ours, batches, strict=True):
            op(x, weights.to(x))
    for op, x in zip(other, batches, strict=True):
        op(x, weights.to(x))
    assert sorted(updates.norms) == [3, 3, 6]
    assert all(equal_buffers(a, b) for a, b in zip(ours, other, strict=True))


def test_an_inner_pass_is_part_of_the_outer_one() -> None:
    op, weights = MixedOp(4, 1, OPS), torch.ones(3)
    with updating_once():
        with updating_once():
            op(torch.randn(2, 4, 5, 5), weights)
        assert all(int(m.num_batches_tracked) == 0 for m in op.modules() if isinstance(m, nn.BatchNorm2d))
    assert all(int(m.num_batches_tracked) == 1 for m in op.modules() if isinstance(m, nn.BatchNorm2d))


def test_a_pass_that_fails_counts_for_nothing() -> None:
    op = MixedOp(4, 1, OPS)
    before, weights = copy.deepcopy(op), torch.ones(3)

    def half_a_pass() -> None:
        with updating_once():
            op(torch.randn(2, 4, 5, 5), weights)
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        half_a_pass()
    assert equal_buffers(op, before)
    op(torch.randn(2, 4, 5, 5), weights)  # an update of its own again
    assert not equal_buffers(op, before)
