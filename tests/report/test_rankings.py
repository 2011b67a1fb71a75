"""Intervals and tests, against published numbers."""

import numpy as np
import pytest

from fastdarts.report.rankings import average_ranks, critical_difference, interval_of_mean, interval_of_share, judge


@pytest.mark.parametrize(
    ("methods", "benchmarks", "difference"),
    # Demšar, JMLR 2006: q = 2.569 for four methods, and 1.25 in the example of section 3.2.2; q = 2.343 for three.
    [(4, 14, 1.25), (3, 9, 2.343 * (12 / 54) ** 0.5)],
)
def test_critical_difference(methods: int, benchmarks: int, difference: float) -> None:
    assert critical_difference(methods, benchmarks) == pytest.approx(difference, abs=6e-3)


def test_equal_accuracies_share_their_ranks() -> None:
    assert average_ranks(np.array([[0.9, 0.8, 0.9], [0.5, 0.7, 0.6]])) == [2.25, 2.0, 1.75]


def test_intervals() -> None:
    low, high = interval_of_mean([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert interval_of_mean([0.5]) is None
    assert interval_of_share(0.9, 100) == pytest.approx((0.8256343, 0.9447709), abs=1e-6)


def test_methods_that_differ_on_every_benchmark() -> None:
    table = np.array([[0.9, 0.8, 0.7]] * 9) + 0.01 * np.arange(9)[:, None]
    found = judge(table)
    assert found.p == pytest.approx(np.exp(-9), rel=1e-6)  # chi-squared 18 with two degrees of freedom
    assert found.pairs == ((0, 2),)  # neighbours are 1.0 apart, less than 1.10
    assert judge(table[:, :2]).p == pytest.approx(2 / 2**9)  # the smallest of the exact test
    assert judge(table[:, 1::-1]).pairs == ((1, 0),)


def test_nothing_can_be_said() -> None:
    equal = np.full((9, 3), 0.5)
    assert judge(equal).p is None
    assert judge(equal[:1]) is None
    assert judge(equal[:, :1]) is None
    assert judge(np.array([[0.9, 0.8, 0.7], [0.7, 0.8, 0.9], [0.8, 0.9, 0.7]])).pairs == ()
