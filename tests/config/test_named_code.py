"""Files do not have code imported; a person who names it does."""

import json
import sys
from pathlib import Path

import pytest

from fastdarts.compare import CompareConfig
from fastdarts.config.command_line import parse_cli
from fastdarts.config.named_code import UnnamedCodeError, flags_naming_code
from fastdarts.runs.search_config import SearchConfig


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a run whose config asks for a module that leaves a mark when it is imported."""
    (tmp_path / "trap_module.py").write_text(
        "from pathlib import Path\nfrom fastdarts.methods.method import Method\n"
        "Path(__file__).with_name('imported').touch()\nclass Trap(Method):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trap_module", raising=False)
    (tmp_path / "config.json").write_text(json.dumps({"method": "trap_module:Trap"}))
    return tmp_path


def test_a_config_file_alone_imports_nothing(trap: Path) -> None:
    file = trap / "config.json"
    for call in (
        lambda: SearchConfig.load(file),
        lambda: parse_cli(SearchConfig, ["--config", str(file)]),
        lambda: parse_cli(SearchConfig, ["--resume", "--out", str(trap)]),
    ):
        with pytest.raises(UnnamedCodeError, match=r"'trap_module:Trap'.*add --method trap_module:Trap"):
            call()
    assert not (trap / "imported").exists()


def test_code_that_is_named_is_imported(trap: Path) -> None:
    file = trap / "config.json"
    assert parse_cli(SearchConfig, ["--config", str(file), "--method", "darts"]).method == "darts"
    assert not (trap / "imported").exists()
    assert SearchConfig.load(file, method="trap_module:Trap").method == "trap_module:Trap"
    assert (trap / "imported").exists()


def test_a_comparisons_config_imports_nothing(trap: Path) -> None:
    from fastdarts.compare import compare

    (trap / "config.json").write_text(json.dumps({"methods": "darts,trap_module:Trap"}))
    with pytest.raises(UnnamedCodeError, match="trap_module:Trap"):
        parse_cli(CompareConfig, ["--resume", "--out", str(trap)])
    with pytest.raises(UnnamedCodeError, match="trap_module:Trap"):
        compare(CompareConfig(methods="darts", out=trap, resume=True))
    assert not (trap / "imported").exists()


def test_printed_commands_name_the_code_of_a_run() -> None:
    assert flags_naming_code({"method": "darts"}) == []
    assert flags_naming_code({"method": "mine:Own"}) == ["--method", "mine:Own"]
    assert flags_naming_code({"methods": "darts,mine:Own"}) == ["--methods", "darts,mine:Own"]
