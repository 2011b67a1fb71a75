"""Define the benchmarks' options, measure each case once with all its variants in turns, and print the summary."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import picture, results
from benchmarks.cases import Case, suite
from benchmarks.machine import device, environment, measure_peaks
from benchmarks.worker import measure


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastdarts benchmarks")
    group.addoption(
        "--full", action="store_true", help="measure the paper's search: C=16, 8 cells, batch 64 (an hour on 2 cores)"
    )
    group.addoption("--threads", type=int, help="CPU threads (default: torch's)")
    group.addoption(
        "--compile-limit", type=float, default=120, help="seconds that torch.compile may take (default: 120)"
    )
    group.addoption("--results", type=Path, default=Path(__file__).parent / "results", help="folder for the results")


class Session:
    """Hold the measurements of one run."""

    def __init__(self, config: pytest.Config) -> None:
        self.full: bool = config.getoption("--full")
        self.folder: Path = config.getoption("--results")
        self.limit: float = config.getoption("--compile-limit")
        self.threads: int = config.getoption("--threads") or torch.get_num_threads()
        self.device = device()
        self.selected: dict[Case, list[str]] = {}
        self.results: results.Results | None = None

    def select(self, case: Case, variant: str) -> None:
        self.selected.setdefault(case, []).append(variant)

    def row(self, case: Case, variant: str) -> results.Row:
        """Return the row of a selected pair; the first call for a case measures all its selected variants."""
        if self.results is None:
            torch.set_num_threads(self.threads)
            self.results = results.Results(environment(self.device), measure_peaks(self.device), self.full)
        if not self.results.has(case.name, variant):
            budget, rounds = (30.0, (5, 30)) if self.full else (4.0, (3, 15))
            found = measure(
                case,
                self.selected[case],
                self.device,
                self.threads,
                budget=budget,
                rounds=rounds,
                limit=self.limit,
            )
            self.results.add(case, found, self.device)
        return self.results.row(case.name, variant)


SESSION = pytest.StashKey[Session]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SESSION] = Session(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"case", "variant"} <= set(metafunc.fixturenames):
        pairs = [(case, variant) for case in suite(metafunc.config.getoption("--full")) for variant in case.variants]
        metafunc.parametrize(("case", "variant"), pairs, ids=[_id(case, variant) for case, variant in pairs])


def _id(case: Case, variant: str) -> str:
    """Return a test id that `-k` can select, such as alpha-step-second-order-fused."""
    return re.sub(r"[^a-z0-9_]+", "-", f"{case.name} {variant}".lower().replace("=", ""))


def pytest_collection_finish(session: pytest.Session) -> None:
    for item in session.items:
        params: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
        if {"case", "variant"} <= params.keys():
            session.config.stash[SESSION].select(params["case"], params["variant"])


class Tape:
    """Play back recorded durations as a timer, so that pytest-benchmark shows the times that were measured in turns."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


TAPE = Tape()


@pytest.fixture
def measured(request: pytest.FixtureRequest, benchmark: BenchmarkFixture, case: Case, variant: str) -> results.Row:
    """Measure the case unless it has been measured, and report this variant's steps to pytest-benchmark."""
    row = request.config.stash[SESSION].row(case, variant)
    if row.error:
        pytest.skip(f"{case.name}, {variant}: {row.error}")
    benchmark.group = case.name
    benchmark.extra_info.update(row.as_dict())
    seconds = iter(row.seconds)

    def play() -> None:
        TAPE.now += next(seconds)

    benchmark.pedantic(play, rounds=len(row.seconds))  # type: ignore[no-untyped-call]
    return row


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    session = terminalreporter.config.stash[SESSION]
    if session.results is None:
        return
    terminalreporter.section("fastdarts benchmarks")
    terminalreporter.write_line(session.results.table())
    path = session.results.write(session.folder)
    drawing = picture.draw(session.results, path.with_suffix(".png"))
    terminalreporter.write_line(f"\nwritten: {path}\n         {drawing}")
