"""The command `fastdarts`: dispatch, help without torch, list, env, draw, completion, interrupted imports."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch

import fastdarts
from fastdarts import DARTS_V2, cli, data, env, methods
from fastdarts import list as list_module
from fastdarts.config.search_options import Dataset, TextDataset
from fastdarts.runs.kernels import describe_kernels
from fastdarts.spaces import registry
from fastdarts.spaces.darts.cell_genotypes import PUBLISHED as OWN_CELLS
from fastdarts.spaces.darts.genotype import PUBLISHED
from fastdarts.spaces.layerwise import published as chains
from fastdarts.spaces.recurrent import architecture as cells

ROOT = Path(__file__).resolve().parents[1]
LIGHT = """
import sys
from fastdarts.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
main(["--version"])
heavy = {"torch", "numpy", "matplotlib", "sklearn", "tensorboard", "jinja2", "yaml", "tqdm"} & set(sys.modules)
assert not heavy, heavy
"""
HEAVY = """
import sys
from fastdarts import *
import fastdarts.search, fastdarts.evaluate, fastdarts.compare
heavy = {"matplotlib", "sklearn", "torchvision", "tensorboard", "jinja2", "triton", "onnx", "yaml"} & set(sys.modules)
assert not heavy, heavy
"""


def ends_with(code, argv, capsys):
    """Run a command line that ends with this code; return what it wrote to stdout and stderr."""
    try:
        found = cli.main(argv)
    except SystemExit as end:
        found = end.code
    assert found == code
    return capsys.readouterr()


def test_help_and_version_load_no_library():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert all(re.search(rf"^  {name} +\w", done.stdout, re.MULTILINE) for name in cli.COMMANDS)
    assert done.stdout.splitlines()[-1] == f"fastdarts {fastdarts.__version__}"


def test_programs_load_no_library_that_only_results_or_data_need():
    subprocess.run([sys.executable, "-c", HEAVY], check=True)


def test_the_version_is_the_projects():
    assert f'version = "{fastdarts.__version__}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(("text", "found"), [(None, "0+unknown"), ('name = "fastdarts"\nversion = "7"', "7")])
def test_the_version_of_a_checkout_that_was_never_installed(tmp_path, monkeypatch, text, found):
    from fastdarts.config import version

    def missing(name):
        raise version.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(version.metadata, "version", missing)
    if text is not None:
        (tmp_path / "pyproject.toml").write_text(f"[project]\n{text}\n")
    assert version.find_version(tmp_path) == found


def test_every_public_name_can_be_imported():
    for name in fastdarts.__all__:
        assert getattr(fastdarts, name) is not None
        assert name in dir(fastdarts)
    assert set(fastdarts._MODULES) == set(fastdarts.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'MixdOp'"):
        fastdarts.MixdOp  # noqa: B018


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["serch"], "fastdarts: there is no command 'serch'; did you mean 'search'? (see --help)\n"),
        (["xyz"], "fastdarts: there is no command 'xyz'; the commands are search, evaluate, "),
        (["--versoin"], "fastdarts: unrecognized arguments: --versoin; did you mean '--version'? (see --help)\n"),
        (["search", "--epochs", "0"], "fastdarts search: epochs must be at least 1; got 0\n"),
        (["search", "--method", "dart"], "got 'dart'; did you mean 'darts'?\n"),
        (["evaluate", "--genotype", "DARTS_v3"], "nor a file or a run's folder; did you mean 'DARTS_V2'?\n"),
        (["evaluate", "--dataset", "imagnet"], "invalid choice: 'imagnet'; did you mean 'imagenet'? "),
        (["compare", "--methods", "darts,gdass"], "got 'gdass'; did you mean 'gdas'?\n"),
        (["draw", "darts_v1x"], "did you mean 'DARTS_V1'?\n"),
        (["draw"], "fastdarts draw: the following arguments are required: GENOTYPE (see --help)\n"),
        (["list", "dataset"], "invalid choice: 'dataset'; did you mean 'datasets'? "),
        (["export", "/nowhere"], "fastdarts export: there is no checkpoint /nowhere/checkpoint.pt\n"),
    ],
)
def test_mistakes_are_one_line_with_a_suggestion(capsys, argv, message):
    said = ends_with(2, argv, capsys)
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_no_command_shows_the_help(capsys):
    assert "commands:" in ends_with(2, [], capsys).err


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help_and_output_flags(capsys, command):
    said = ends_with(0, [command, "--help"], capsys).out
    assert said.startswith(f"usage: fastdarts {command} ")
    assert "-q, --quiet" in said
    assert "-v, --verbose" in said


def test_list_has_everything_with_a_line_each(capsys):
    tables = json.loads(ends_with(0, ["list", "--json"], capsys).out)
    names = {kind: [entry["name"] for entry in entries] for kind, entries in tables.items()}
    assert names["methods"] == list(methods.NAMES)
    assert names["spaces"] == list(registry.names())
    assert (
        set(names["datasets"])
        == {*typing.get_args(Dataset), *typing.get_args(TextDataset), "imagenet"}
        == set(list_module.DATASETS)
    )
    assert set(names["datasets"]) >= set(data.DATASETS)
    assert names["genotypes"] == [*PUBLISHED, *OWN_CELLS, *cells.PUBLISHED, *chains.PUBLISHED]
    assert all(len(entry["summary"]) > 10 for entries in tables.values() for entry in entries)

    said = ends_with(0, ["list"], capsys).out
    assert all(f"\n  {name} " in said for kind in names for name in names[kind])
    assert ends_with(0, ["list", "spaces"], capsys).out.splitlines()[2].split(maxsplit=1) == [
        *("s2", "normal and reduction cells of four nodes, ops of RobustDARTS' s2")
    ]
    assert set(json.loads(ends_with(0, ["list", "methods", "--json"], capsys).out)) == {"methods"}


def test_env_has_versions_kernels_and_build(capsys, monkeypatch):
    monkeypatch.setenv("FASTDARTS_TILES", "tiles.json")
    values = json.loads(ends_with(0, ["env", "--json"], capsys).out)
    assert values["fastdarts"] == fastdarts.__version__
    assert values["torch"] == torch.__version__
    assert values["kernels"]["cpu"] == describe_kernels(torch.device("cpu"))
    assert values["variables"]["FASTDARTS_TILES"] == "tiles.json"
    assert "command" not in values
    lines = ends_with(0, ["env"], capsys).out.splitlines()
    assert f"torch: {torch.__version__}" in lines
    assert f"kernels.cpu: {values['kernels']['cpu']}" in lines
    assert "variables.FASTDARTS_TILES: tiles.json" in lines


def test_env_without_the_extension(monkeypatch):
    monkeypatch.setattr(env, "find_spec", lambda name: None)
    assert env.describe()["build"] == {"extension": None}


def test_draw_takes_a_name_a_file_and_a_folder(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "genotype.json").write_text(DARTS_V2.to_json())
    drawn = []
    for number, source in enumerate(("DARTS_V2", run / "genotype.json", run)):
        out = tmp_path / str(number)
        said = ends_with(0, ["draw", str(source), "--out", str(out)], capsys).out
        assert said.split() == [str(out / "cells.svg"), str(out / "cells.png")]
        assert (out / "cells.png").stat().st_size > 1000
        drawn.append((out / "cells.svg").read_text())
    assert drawn[0] == drawn[1] == drawn[2]
    assert not (run / "cells.svg").exists()


def test_bash_completes_commands_options_and_values(capsys):
    pytest.importorskip("shtab", reason="needs shtab, of the extra 'completion'")
    script = ends_with(0, ["--print-completion", "bash"], capsys).out
    if not shutil.which("bash"):
        pytest.skip("needs bash")

    def complete(line):
        words = line.split(" ")
        ask = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _shtab_fastdarts; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert complete("fastdarts ev") == ["evaluate"]
    assert complete("fastdarts search --batch") == ["--batch-size"]
    assert complete("fastdarts search --method pc") == ["pc-darts"]
    assert complete("fastdarts evaluate --dataset imagen") == ["imagenet"]
    assert complete("fastdarts list gen") == ["genotypes"]


def test_zsh_completion_names_the_commands(capsys):
    pytest.importorskip("shtab", reason="needs shtab, of the extra 'completion'")
    script = ends_with(0, ["--print-completion", "zsh"], capsys).out
    assert script.startswith("#compdef fastdarts")
    assert all(f"{name}:" in script for name in cli.COMMANDS)


def test_completion_without_shtab_says_what_to_install(capsys, monkeypatch):
    from fastdarts import completion

    monkeypatch.setattr(completion, "find_spec", lambda name: None)
    said = ends_with(2, ["--print-completion", "zsh"], capsys)
    assert (
        said.err == "fastdarts --print-completion: completion needs shtab; run: pip install 'fastdarts[completion]'\n"
    )


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_is_a_module_that_runs(command):
    """`python -m fastdarts.NAME` is the command, so the file ends with its exit code when it is run."""
    source = (ROOT / "fastdarts" / f"{command}.py").read_text()
    assert f'sys.exit(run("{command}", sys.argv[1:], "python -m fastdarts.{command}"))' in source


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 75)])
@pytest.mark.parametrize("module", ["fastdarts", "fastdarts.search"])
def test_a_signal_during_imports_is_one_line(tmp_path, module, signum, code):
    """Send the signal from a fake torch, while it is imported, which also swallows exceptions."""
    (tmp_path / "torch.py").write_text(
        f"import os\ntry:\n    os.kill(os.getpid(), {int(signum)})\n    import time; time.sleep(60)\n"
        "except BaseException:\n    pass\n"
    )
    prog = "fastdarts search" if module == "fastdarts" else "python -m fastdarts.search"
    words = ["search"] if module == "fastdarts" else []
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stderr == f"{prog}: stopped before it began; nothing was written, run it again\n"
    assert (done.returncode, done.stdout) == (code, "")
