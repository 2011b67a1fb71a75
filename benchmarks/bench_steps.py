"""Measure every part of a search, fused and plain; the cases are in `benchmarks.cases`, the timing in
`benchmarks.worker`."""

import pytest

from benchmarks.cases import Case
from benchmarks.conftest import TAPE
from benchmarks.results import Row


@pytest.mark.benchmark(timer=TAPE)
def test_step(measured: Row, case: Case, variant: str) -> None:
    assert measured.seconds
