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
from fastdarts.data.share import share_of
from fastdarts.methods.dna import relative_error

FIELDS: dict[str, Any] = {"epochs": 3, "alpha_warmup": 0.0}
Case = tuple[str, dict[str, Any]]
"""A method and fields of its config, besides FIELDS."""


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor], limit: float) -> float:
    """Return the largest difference, relative to a tensor's largest number or 1."""
    assert ours.keys() == theirs.keys()
    scales = {name: max(float(value.abs().max()), 1.0) for name, value in theirs.items()}
    found = {name: float((value - theirs[name]).abs().max()) / scales[name] for name, value in ours.items()}
    worst = max(found, key=lambda name: found[name])
    assert found[worst] <= limit, (worst, found[worst])
    return found[worst]


def compare_all(cases: list[Case], steps: int, size: int, tmp_path: Path, alone: bool = False) -> None:
    """Compare searches on `size` ranks with one process that takes shards in turn, or `alone` whole batches.

    All cases run in one set of processes, whose start takes longer than a search.
    """
    found = on_ranks(size, several, tmp_path, cases, steps)
    for (method, fields), *ours in zip(cases, *found, strict=True):
        if alone:
            theirs = searched_alone(method, steps, FIELDS | fields)
        else:
            theirs = searched_in_shards(method, steps, size, FIELDS | fields)
        for rank, numbers in enumerate(ours):
            largest = assert_equal(numbers, theirs, 1e-9)
            assert all(torch.equal(value, ours[0][name]) for name, value in numbers.items()), (method, fields, rank)
        print(f"{method} {fields} on {size} ranks: {largest:.1e}")


def several(cases: list[Case], steps: int) -> list[dict[str, Tensor]]:
    return [searched(method, steps, FIELDS | fields) for method, fields in cases]


def orders_of(method: str, fields: dict[str, Any]) -> list[Case]:
    """Return the method with the first order and, where it has it, the second."""
    cases = [(method, fields | {"order": 1})]
    kind = methods.find(method)
    if kind.level == "bilevel" and not kind.draws and method not in ("milenas", "p-darts", "oles"):
        return [*cases, (method, fields | {"order": 2})]
    with pytest.raises(ValueError, match="no second order"):
        start(method, ALONE, **FIELDS, **fields, order=2)
    return cases


def test_two_ranks_are_one_process_that_takes_their_rows_in_turn(tmp_path: Path) -> None:
    """Methods with code of their own for ranks, or with a step of another shape, in float64."""
    first = {"order": 1}
    cases: list[Case] = [(method, first) for method in ("gdas", "p-darts", "sdarts-adv", "single-level")]
    compare_all([("darts", {"order": 2}), *cases], 2, 2, tmp_path)


def test_uneven_rows_count_by_their_number(tmp_path: Path) -> None:
    """Batches of 10 and 6 of 16 images: 3 and 4 rows, then 2 each; the mean is over rows, not over ranks."""
    compare_all([("darts", {"order": 2, "batch_size": 10})], 3, 3, tmp_path)


def test_synchronised_batch_norm_is_that_of_one_process_with_the_whole_batch(tmp_path: Path) -> None:
    """Also with rows that do not divide, in the second order, where a pass runs in eval mode, in other spaces."""
    sync = {"sync_batch_norm": True, "order": 1}
    cases = [
        ("p-darts", sync),
        ("sdarts-adv", sync),
        ("darts", sync | {"order": 2, "batch_size": 11}),
        ("darts", sync | {"space": "nasbench201", "layers": 1}),
        ("proxyless", sync | {"space": "proxyless", "init_channels": 8, "layers": 1}),
    ]
    compare_all(cases, 2, 2, tmp_path, alone=True)


@pytest.mark.long
@pytest.mark.parametrize("method", methods.NAMES)
def test_synchronised_batch_norm_of_all_methods(method: str, tmp_path: Path) -> None:
    """20 steps; one of DNA, whose Adam moves weights with gradients near zero as far as others: rounding grows fast."""
    if method == "ofa":
        pytest.skip("its space refuses sync_batch_norm")
    if method == "ftt-nas":
        pytest.skip("each rank draws the faults of its rows")
    steps = 1 if method == "dna" else 20
    compare_all(orders_of(method, {"sync_batch_norm": True}), steps, 2, tmp_path, alone=True)


def errors_of_rows(found: Tensor, wanted: Tensor) -> Tensor:
    """Return this rank's part of DNA's error: three rows of the first rank, four of the second."""
    ranks = Ranks.of_process_group()
    share = share_of(len(found), ranks.rank, ranks.size)
    return share.weight / ranks.size * relative_error(share.of(found), share.of(wanted), ranks)


def test_the_error_of_a_stage_is_relative_to_the_variance_of_all_rows(tmp_path: Path) -> None:
    found, wanted = torch.randn(2, 7, 3, 4, 4, dtype=torch.float64)
    wanted[3:] += 5  # the rows of the second rank are others
    parts = on_ranks(2, errors_of_rows, tmp_path, found, wanted)
    torch.testing.assert_close(sum(parts), relative_error(found, wanted), rtol=1e-12, atol=0)


def epochs_and_result(method: str, fields: dict[str, Any]) -> tuple[list[dict[str, Any]], str, dict[str, Tensor]]:
    state = start(method, Ranks.of_process_group(), **fields)
    epochs = finish(state)
    state.end_steps()
    return epochs, state.method.result(state).to_json(), dict(state.network.named_buffers())


QUICK = ("robustdarts", "random")


@pytest.mark.parametrize(
    "method", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in methods.NAMES]
)
def test_all_ranks_measure_and_find_the_same(method: str, tmp_path: Path) -> None:
    """Eigenvalues and accuracies are of all images; running statistics are averaged."""
    first, second = on_ranks(2, epochs_and_result, tmp_path, method, {"epochs": 3, "order": 1})
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
    if method == "dna":
        pytest.skip("its loss has the variance of all ranks' rows, which no shard knows; synchronised, it is compared")
    compare_all(orders_of(method, {"batch_size": 4 * size}), 20, size, tmp_path)
