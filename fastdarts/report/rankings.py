"""Intervals of accuracies, ranks of methods on several benchmarks, tests of their differences (Demšar, JMLR 2006)."""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95
"""Confidence of all intervals and tests."""

Interval = tuple[float, float]


def interval_of_mean(values: Sequence[float]) -> Interval | None:
    """Return Student's interval of the mean of values that are drawn independently; None for a single one."""
    if len(values) < 2:
        return None
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
    return mean - reach, mean + reach


def interval_of_share(share: float, count: int) -> Interval:
    """Return Wilson's interval of a share that was measured on `count` independent samples."""
    found = stats.binomtest(round(share * count), count).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def average_ranks(accuracies: NDArray[np.float64]) -> list[float]:
    """Return the mean rank of each method, 1 for the best, from accuracies [benchmarks, methods]; equal ones share."""
    return [float(rank) for rank in stats.rankdata(-accuracies, axis=1).mean(0)]


def critical_difference(methods: int, benchmarks: int) -> float:
    """Return the difference of average ranks from which Nemenyi's test calls two methods different."""
    q = float(stats.studentized_range.ppf(LEVEL, methods, math.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * benchmarks))


@dataclass(frozen=True)
class Verdict:
    """Hold the outcome of a test for differences between methods.

    Attributes:
        test: its name.
        p: its p-value; None where all accuracies are equal.
        critical: Nemenyi's critical difference of average ranks; None for two methods.
        pairs: the places of the methods that differ, the better one first.
    """

    test: str
    p: float | None
    critical: float | None
    pairs: tuple[tuple[int, int], ...]


def judge(accuracies: NDArray[np.float64]) -> Verdict | None:
    """Test if methods differ, from accuracies [benchmarks, methods].

    Three and more are compared by Friedman's test and, where that finds a difference, two by two by Nemenyi's; two by
    Wilcoxon's signed-rank test.

    Returns: None for one method or one benchmark, of which nothing can be said.
    """
    benchmarks, methods = accuracies.shape
    if methods < 2 or benchmarks < 2:
        return None
    ranks = average_ranks(accuracies)
    columns = [accuracies[:, method] for method in range(methods)]
    equal = bool((accuracies == accuracies[:, :1]).all())
    if methods == 2:
        p = None if equal else float(stats.wilcoxon(*columns).pvalue)
        differ = p is not None and p < 1 - LEVEL
        best_first = tuple(sorted((0, 1), key=ranks.__getitem__))
        return Verdict("Wilcoxon's signed-rank test", p, None, ((best_first[0], best_first[1]),) if differ else ())
    p = None if equal else float(stats.friedmanchisquare(*columns).pvalue)
    critical = critical_difference(methods, benchmarks)
    pairs = []
    if p is not None and p < 1 - LEVEL:
        for one, other in itertools.permutations(range(methods), 2):
            if ranks[other] - ranks[one] > critical:
                pairs.append((one, other))
    return Verdict("Friedman's test", p, critical, tuple(pairs))
