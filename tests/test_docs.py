"""The code and commands of README, CONTRIBUTING and docs/ run, and their links lead to files."""

import json
import re
import shlex
import shutil
from importlib import import_module
from pathlib import Path

import pytest

from fastdarts import DARTS_V2
from fastdarts.cli import SHELLS
from fastdarts.compare import CompareConfig
from fastdarts.config.command_line import parse_cli
from fastdarts.evaluate import EvalConfig
from fastdarts.evaluate import _Command as EvalCommand
from fastdarts.runs.latency_config import LatencyConfig
from fastdarts.runs.suite_config import SuiteConfig
from fastdarts.search import SearchConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
CONFIGS = {
    "search": SearchConfig,
    "evaluate": EvalCommand,
    "compare": CompareConfig,
    "suite": SuiteConfig,
    "latency": LatencyConfig,
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


COMMANDS = [
    line for page in PAGES for block in blocks(page, "") for line in block.splitlines() if line.startswith("fastdarts ")
]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_python_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registrations_undone: None
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registrations_undone: None
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "RUN"  # the run that the pages speak of
    run.mkdir(parents=True)
    SearchConfig().save(run / "config.json")
    (tmp_path / "runs" / "trees").mkdir()
    EvalConfig().save(tmp_path / "runs" / "trees" / "config.json")
    for example in (ROOT / "examples").glob("*.py"):  # plugins are imported from the working folder
        shutil.copy(example, tmp_path)
    (tmp_path / "search.yaml").write_text(blocks(ROOT / "docs" / "command-line.md", "yaml")[0])
    _, name, *arguments = shlex.split(command, comments=True)
    for found in (word for word in arguments if word.endswith("genotype.json")):
        (tmp_path / found).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / found).write_text(DARTS_V2.to_json())
    for found in (word for word in arguments if "candidates.json:" in word):
        path = tmp_path / found.partition(":")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"candidates": [{"architecture": json.loads(DARTS_V2.to_json())}] * 3}))
    if name in CONFIGS:
        config = parse_cli(CONFIGS[name], arguments)
        assert config.dataset in ("digits", "cifar10", "imagefolder", "imagenet", "pydoc")
    elif name in ("predict", "export", "specialise"):
        import_module(f"fastdarts.{name}").parser().parse_args(arguments)
    else:
        assert name == "--print-completion"
        assert arguments[0] in SHELLS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
