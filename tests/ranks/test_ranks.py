"""Several ranks compute what one process computes that takes their rows one after the other."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from shards import searched, searched_alone, searched_in_shards, start
from spawned import on_ranks
from tiny_method import finish
from torch import Tensor

from fastdarts import methods
from fastdarts.bilevel.ranks import ALONE, Ranks

FIELDS: dict[str, Any] = {"epochs": 3, "alpha_warmup": 0.0}


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor], limit: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        scale = max(float(theirs[name].abs().max()), 1.0)
        assert float((value - theirs[name]).abs().max()) <= limit * scale, name


def compare_all(cases: list[tuple[str, int]], steps: int, size: int, tmp_path: Path, fields: dict[str, Any]) -> None:
    """Run every (method, order) in one set of processes, since their start takes longer than a search."""
    found = on_ranks(size, several, tmp_path, cases, steps, fields)
    for (method, order), *ours in zip(cases, *found, strict=True):
        theirs = searched_in_shards(method, steps, size, fields | {"order": order})
        for rank, numbers in enumerate(ours):
            assert_equal(numbers, theirs, 1e-9)
            assert all(torch.equal(value, ours[0][name]) for name, value in numbers.items()), (method, order, rank)


def several(cases: list[tuple[str, int]], steps: int, fields: dict[str, Any]) -> list[dict[str, Tensor]]:
    return [searched(method, steps, fields | {"order": order}) for method, order in cases]


def test_two_ranks_are_one_process_that_takes_their_rows_in_turn(tmp_path: Path) -> None:
    """Methods with code of their own for ranks, or with a step of another shape, in float64."""
    cases = [("darts", 2), ("gdas", 1), ("p-darts", 1), ("sdarts-adv", 1), ("single-level", 1)]
    compare_all(cases, 2, 2, tmp_path, FIELDS)


def test_uneven_rows_count_by_their_number(tmp_path: Path) -> None:
    """Batches of 10 and 6 of 16 images: 3 and 4 rows, then 2 each; the mean is over rows, not over ranks."""
    compare_all([("darts", 2)], 3, 3, tmp_path, FIELDS | {"batch_size": 10})


def test_synchronised_batch_norm_is_that_of_one_process_with_the_whole_batch(tmp_path: Path) -> None:
    """Also with rows that do not divide evenly, in the second order, and where a pass runs in eval mode."""
    for cases, more in (([("p-darts", 1), ("sdarts-adv", 1)], {}), ([("darts", 2)], {"batch_size": 11})):
        fields = FIELDS | {"sync_batch_norm": True} | more
        found = on_ranks(2, several, tmp_path, cases, 2, fields)
        for (method, order), *ours in zip(cases, *found, strict=True):
            theirs = searched_alone(method, 2, fields | {"order": order})
            for numbers in ours:
                assert_equal(numbers, theirs, 1e-9)


def epochs_and_result(method: str, fields: dict[str, Any]) -> tuple[list[dict[str, Any]], str, dict[str, Tensor]]:
    state = start(method, Ranks.of_process_group(), **fields)
    epochs = finish(state)
    state.end_steps()
    return epochs, state.method.result(state).to_json(), dict(state.network.named_buffers())


@pytest.mark.parametrize("method", ["robustdarts", "random"])
def test_all_ranks_measure_and_find_the_same(method: str, tmp_path: Path) -> None:
    """Eigenvalues and accuracies are of all images; running statistics are averaged."""
    first, second = on_ranks(2, epochs_and_result, tmp_path, method, {"epochs": 2, "order": 1})
    assert first[:2] == second[:2]
    assert first[0][-1]["valid_accuracy"] is not None
    assert all(torch.equal(buffer, second[2][name]) for name, buffer in first[2].items())


COLLECTIVES = (
    "broadcast",
    "broadcast_object_list",
    "all_gather",
    "all_gather_object",
    "reduce",
    "reduce_scatter",
    "barrier",
)


def sent_in_a_step(order: int) -> tuple[list[int], int, int]:
    """Return the numbers in each all-reduce of a search step, and those of weights and alphas."""
    state = start("darts", Ranks.of_process_group(), **FIELDS, order=order)
    all_reduce, sizes = dist.all_reduce, []

    def counted(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
        sizes.append(tensor.numel())
        return all_reduce(tensor, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_reduce", counted)
        for name in COLLECTIVES:
            patch.setattr(dist, name, pytest.fail)
        state.train_step()
    return sizes, state.architect.flat.numel, sum(alpha.numel() for alpha in state.network.arch_parameters())


@pytest.mark.parametrize("order", [1, 2])
def test_a_step_sends_weights_once_a_pass_and_alphas_once(order: int, tmp_path: Path) -> None:
    """The virtual step and v send weights; alphas' gradients are sent when complete; the weight step sends weights."""
    for sizes, weights, alphas in on_ranks(2, sent_in_a_step, tmp_path, order):
        assert sizes == [*[weights] * (2 if order == 2 else 0), alphas, weights]


@pytest.mark.long
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("method", methods.NAMES)
def test_all_methods(method: str, size: int, tmp_path: Path) -> None:
    """20 steps of every method, first order and, where the method has it, second.

    Four images a rank: with two, batch norms of so few values make rounding grow a billion times in 20 steps.
    """
    fields = FIELDS | {"batch_size": 4 * size}
    cases = [(method, 1)]
    kind = methods.find(method)
    second = kind.level == "bilevel" and not kind.draws and method not in ("milenas", "p-darts", "oles")
    if second:
        cases.append((method, 2))
    else:
        with pytest.raises(ValueError, match="no second order"):
            start(method, ALONE, **fields, order=2)
    compare_all(cases, 20, size, tmp_path, fields)
