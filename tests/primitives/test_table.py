"""The table of candidates: names, order, geometry, and what is said of a wrong one."""

import re

import pytest

import fastdarts
from fastdarts.primitives.table import CANDIDATES, PRIMITIVES, candidate, check_primitives


def test_the_papers_eight_in_their_order() -> None:
    expected = "none max_pool_3x3 avg_pool_3x3 skip_connect sep_conv_3x3 sep_conv_5x5 dil_conv_3x3 dil_conv_5x5"
    assert expected.split() == list(PRIMITIVES)
    assert fastdarts.PRIMITIVES is PRIMITIVES
    others = "sep_conv_7x7 nor_conv_1x1 nor_conv_3x3 bare_max_pool_3x3 bare_avg_pool_3x3 conv_7x1_1x7 noise"
    assert set(CANDIDATES) == {*PRIMITIVES, *others.split()}
    assert all(name == c.name for name, c in CANDIDATES.items())


@pytest.mark.parametrize(
    ("name", "kernel", "dilation", "padding"),
    [
        ("max_pool_3x3", 3, 1, 1),
        ("avg_pool_3x3", 3, 1, 1),
        ("sep_conv_3x3", 3, 1, 1),
        ("sep_conv_5x5", 5, 1, 2),
        ("sep_conv_7x7", 7, 1, 3),
        ("dil_conv_3x3", 3, 2, 2),
        ("dil_conv_5x5", 5, 2, 4),
        ("nor_conv_1x1", 1, 1, 0),
        ("nor_conv_3x3", 3, 1, 1),
        ("bare_avg_pool_3x3", 3, 1, 1),
        ("conv_7x1_1x7", 7, 1, 3),
    ],
)
def test_geometry(name: str, kernel: int, dilation: int, padding: int) -> None:
    c = candidate(name)
    assert (c.kernel, c.dilation, c.padding) == (kernel, dilation, padding)
    assert c.is_pool == ("pool" in name)


def test_any_ordered_subset_is_allowed() -> None:
    assert check_primitives(["sep_conv_7x7", "none", "avg_pool_3x3"]) == ("sep_conv_7x7", "none", "avg_pool_3x3")


@pytest.mark.parametrize(
    ("primitives", "message"),
    [
        (["none", "sep_conv_9x9"], "unknown primitive 'sep_conv_9x9'; allowed are none, max_pool_3x3,"),
        ([], "primitives must be a non-empty sequence of names; got []"),
        ("none", "primitives must be a non-empty sequence of names; got 'none'"),
        (["none", "skip_connect", "none"], "primitives must not repeat a name; got ['none', 'skip_connect', 'none']"),
    ],
)
def test_wrong_primitives(primitives: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check_primitives(primitives)
