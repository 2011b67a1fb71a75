"""Small doses of the scripts in this folder; `make fuzz` and `make trust` give the long ones."""

import os
import subprocess
import sys
from pathlib import Path

import fuzz_differential
import fuzz_ops
import fuzz_soak
import pytest
import torch

from fastdarts.ops import operators

pytestmark = pytest.mark.skipif(
    operators.unavailable(torch.device("cpu"), torch.float32) is not None,
    reason="needs fastdarts._C, which is not built",
)


def test_random_calls_of_the_operators() -> None:
    told = fuzz_ops.run(400, seed=0)
    assert min(told["results"], told["ValueError"]) > 50


def test_random_edges_and_cells_are_as_good_as_plain_modules(capsys: pytest.CaptureFixture[str]) -> None:
    told = fuzz_differential.run_cases(20, seed=1)
    assert not told["worse"], capsys.readouterr().out
    assert min(told["MixedOp"], told["Cell"]) > 2


KILLS = """
import sys
from pathlib import Path
import fuzz_kills
told = fuzz_kills.run_kills(4, 0, Path(sys.argv[1]), ("search, second order", "evaluate"))
sys.exit(f"{told}" if told["different"] or told["kills"] < 4 else 0)
"""


@pytest.mark.long
def test_killed_runs_end_as_undisturbed_ones(tmp_path: Path) -> None:
    """In a process of its own, since forks of one that has computed would wait for its threads."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
def test_a_long_search_does_not_grow(tmp_path: Path) -> None:
    seen = fuzz_soak.soak(4 * fuzz_soak.STEPS_PER_EPOCH, tmp_path / "out", order=1)
    assert not fuzz_soak.growth(seen), seen


def test_growth_is_told() -> None:
    level = {"bytes": 1 << 30, "open files": 9, "threads": 3, "tensors": 100}
    assert fuzz_soak.growth([level] * 5) == []
    leaky = [level | {"tensors": 100 + 50 * epoch, "open files": 9 + epoch} for epoch in range(5)]
    assert fuzz_soak.growth(leaky) == ["open files grew from 10 to 13", "tensors grew from 150 to 300"]
