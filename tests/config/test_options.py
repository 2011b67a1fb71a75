"""Typed configs: defaults by data set, checks, files, flags."""

import dataclasses
import json
import logging
import math
import signal
from pathlib import Path

import pytest

from fastdarts.config.command_line import parse_cli
from fastdarts.config.options import differences
from fastdarts.runs.interrupt import Interrupted
from fastdarts.runs.program import run_cli
from fastdarts.runs.search_config import SearchConfig


def test_cifar10_has_the_papers_hyperparameters():
    config = SearchConfig(dataset="cifar10")
    paper = {
        "epochs": 50, "batch_size": 64, "init_channels": 16, "layers": 8, "train_portion": 0.5,
        "lr": 0.025, "lr_min": 0.001, "momentum": 0.9, "weight_decay": 3e-4, "grad_clip": 5.0,
        "arch_lr": 3e-4, "arch_weight_decay": 1e-3, "order": 2, "crop_padding": 4, "flip": True, "cutout": 0,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in paper} == paper


def test_a_field_given_wins_over_the_preset_and_only_there():
    assert SearchConfig(dataset="cifar10", epochs=10) == dataclasses.replace(SearchConfig(dataset="cifar10"), epochs=10)
    assert SearchConfig().dataset == "digits"
    assert SearchConfig().epochs < SearchConfig(dataset="cifar10").epochs
    assert not SearchConfig(dataset="svhn").flip


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("epochs", 0, "at least 1"),
        ("batch_size", -4, "at least 1"),
        ("train_portion", 1.0, "below 1"),
        ("train_portion", 0.0, "above 0"),
        ("lr", 0.0, "above 0"),
        ("lr", math.nan, "finite"),
        ("lr", math.inf, "finite"),
        ("momentum", 1.0, "below 1"),
        ("arch_lr", -1e-3, "above 0"),
        ("init_channels", 0, "at least 1"),
        ("order", 3, "1, 2"),
        ("order", True, "1, 2"),
        ("dataset", "cifar", "digits, mnist"),
        ("backend", "cuda", "auto, fused, reference"),
        ("image_size", (0, 32), "at least 1"),
        ("lr_min", 1.0, "at most lr"),
        ("seed", 2**63, "at most 9223372036854775807"),
        ("space", "s6", "darts, s1, s2, s3, s4, nasbench201"),
    ],
)
def test_values_out_of_range(field, value, allowed):
    with pytest.raises(ValueError, match=rf"{field}.*{allowed}.*got") as error:
        SearchConfig(**{field: value})
    shown = value[0] if isinstance(value, tuple) else value
    assert str(shown) in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("epochs", "10", "int"),
        ("epochs", 2.0, "int"),
        ("epochs", True, "int"),
        ("lr", "0.1", "float"),
        ("amp", 1, "bool"),
        ("image_size", (32,), r"\(int, int\)"),
        ("image_size", (32, 1.5), r"\(int, int\)"),
        ("data", 3, "Path"),
    ],
)
def test_values_of_a_wrong_type(field, value, kind):
    with pytest.raises(TypeError, match=rf"{field} must be {kind}; got"):
        SearchConfig(**{field: value})


def test_resume_needs_out():
    with pytest.raises(ValueError, match="resume needs out"):
        SearchConfig(resume=True)


@pytest.mark.parametrize("name", ["config.json", "config.toml", "config.yaml", "config.yml"])
def test_a_file_gives_values_and_flags_override_them(tmp_path, name):
    path = tmp_path / name
    values = {"dataset": "cifar10", "batch_size": 32, "image_size": [24, 40], "lr": 1, "data": "images"}
    if path.suffix == ".json":
        path.write_text(json.dumps(values))
    else:
        sign = " =" if path.suffix == ".toml" else ":"
        lines = (f"{key.replace('_', '-')}{sign} {json.dumps(value)}" for key, value in values.items())
        path.write_text("\n".join(lines), encoding="utf-8-sig")
    config = parse_cli(SearchConfig, ["--config", str(path), "--batch-size", "16"])
    assert (config.batch_size, config.image_size, config.lr, config.epochs) == (16, (24, 40), 1.0, 50)
    assert config.data == Path("images")


def test_a_saved_config_loads_again_without_the_folder_of_its_run(tmp_path):
    config = SearchConfig(dataset="imagefolder", data=Path("x"), image_size=(9, 7), amp=True, out=tmp_path)
    config.save(tmp_path / "config.json")
    assert SearchConfig.load(tmp_path / "config.json") == dataclasses.replace(config, out=None)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.json", '{"epoch": 3}', "'epoch', which is unknown; did you mean 'epochs'"),
        ("c.json", '{"zzz": 3}', "'zzz', which is unknown; the names are dataset"),
        ("c.json", "[1]", "one table"),
        ("c.json", "{", "not readable as JSON"),
        ("c.toml", "epochs = ", "not readable as TOML"),
        ("c.yaml", "epochs: [3", "not readable as YAML: while parsing a flow sequence"),
        ("c.yaml", "", "one table"),
        ("c.yaml", "1: 2", "one table"),
        ("c.yaml", "epochs: !!python/object/apply:os.getpid []", "not readable as YAML: could not determine"),
        ("c.yml", 'epochs: "3"', "epochs must be int"),
        ("c.json", "[" * 100_000, "not readable as JSON"),
        ("c.json", '{"method": "dart"}', "did you mean 'darts'?"),
        ("c.ini", "epochs: 3", "must end in .json, .toml, .yaml, .yml"),
        ("c.toml", 'epochs = "3"', "epochs must be int"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, capsys, name, text, message):
    (tmp_path / name).write_text(text)
    assert one_line_error(["--config", str(tmp_path / name)], capsys, message)


def test_yaml_reads_numbers_as_python_does(tmp_path):
    """PyYAML alone takes 1e-3 for text."""
    path = tmp_path / "c.yaml"
    path.write_text("lr: 1e-1\narch_lr: 2.5E-3\nlr_min: .001\nepochs: 7\nmethod: darts\nmomentum: 1.e-1")
    config = SearchConfig.load(path)
    assert (config.lr, config.arch_lr, config.lr_min, config.epochs, config.momentum) == (0.1, 0.0025, 0.001, 7, 0.1)


def one_line_error(argv, capsys, message):
    """The command line ends with code 2 and one line on stderr that has the message."""
    try:
        code = run_cli(SearchConfig, lambda config: 0, argv, "search", "")
    except SystemExit as end:
        code = end.code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    return code == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--epochs", "0"], "epochs must be at least 1; got 0"),
        (["--epochs", "many"], "invalid int value: 'many'"),
        (["--dataset", "cifar1"], "invalid choice: 'cifar1'; did you mean 'cifar10'? (choose from digits, "),
        (["--dataset", "xyz"], "invalid choice: 'xyz' (choose from digits, "),
        (["--method", "dart"], "got 'dart'; did you mean 'darts'?"),
        (["--method", "DARTS"], "got 'DARTS'; did you mean 'darts'?"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate (see --help)"),
        (["--batchsize=3"], "unrecognized arguments: --batchsize=3; did you mean '--batch-size'?"),
        (["-q", "-v"], "-v/--verbose: not allowed with argument -q/--quiet"),
        (["--image-size", "32x"], "HEIGHTxWIDTH"),
        (["--image-size", "32xa"], "HEIGHTxWIDTH"),
        (["--config", "/nowhere.json"], "there is no file /nowhere.json"),
        (["--resume"], "resume needs out"),
        (["--resume", "--out", "/nowhere"], "resume: /nowhere holds nothing to continue; start without --resume"),
    ],
)
def test_command_lines_that_cannot_be_used(capsys, argv, message):
    assert one_line_error(argv, capsys, message)


def test_resuming_what_another_program_left(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"auxiliary": true}')
    message = f"resume: {tmp_path} holds no run of this program (config: {tmp_path / 'config.json'} sets 'auxiliary', "
    assert one_line_error(["--resume", "--out", str(tmp_path)], capsys, message)


def test_flags():
    argv = "--dataset cifar100 --image-size 32x48 --no-flip --order 1 --arch-lr 1e-3 --amp --out a --device cuda:1"
    values = {"image_size": (32, 48), "flip": False, "order": 1, "arch_lr": 1e-3, "amp": True, "device": "cuda:1"}
    assert parse_cli(SearchConfig, argv.split()) == SearchConfig(dataset="cifar100", out=Path("a"), **values)
    assert parse_cli(SearchConfig, ["--image-size", "28"]).image_size == (28, 28)


def test_help_has_every_field_in_groups_with_the_defaults_of_the_data_set(capsys):
    for argv, epochs in (([], SearchConfig().epochs), (["--dataset", "cifar10"], 50)):
        with pytest.raises(SystemExit) as end:
            parse_cli(SearchConfig, [*argv, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert end.value.code == 0
        for field in dataclasses.fields(SearchConfig):
            assert f"--{field.name.replace('_', '-')}" in text
        assert f"passes over the weights' half (default: {epochs})" in text
        assert all(f"{group}:" in text for group in ("data", "network", "weights", "alphas", "run"))


def test_exit_codes_of_what_a_run_raises(capsys):
    def raises(error):
        def run(config):
            raise error

        return run_cli(SearchConfig, run, [], "search", "")

    assert raises(Interrupted(15, "stopped")) == 128 + 15
    assert capsys.readouterr().err == "search: stopped\n"
    assert raises(FloatingPointError("two\nlines")) == 2
    assert capsys.readouterr().err == "search: two lines\n"
    assert raises(KeyboardInterrupt()) == 128 + 2
    again = "run it again, or with --resume where its folder holds a checkpoint"
    assert capsys.readouterr().err == f"search: interrupted; to continue: {again}\n"
    assert raises(Interrupted(signal.SIGHUP, "stopped")) == 128 + 1
    assert raises(Interrupted(signal.SIGUSR1, "stopped")) == 75
    assert capsys.readouterr().err == "search: stopped\n" * 2
    assert raises(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")) == 2
    with pytest.raises(RuntimeError):  # a defect of ours keeps its traceback
        raises(RuntimeError("defect"))


def test_quiet_and_verbose_set_what_is_shown(capsys):
    logger = logging.getLogger("fastdarts")

    def run(config):
        for level in (logging.DEBUG, logging.INFO, logging.WARNING):
            logger.log(level, logging.getLevelName(level).lower())
        print("result")
        return 0

    for flags, lines in (([], "info\n"), (["-q"], ""), (["-v"], "debug\ninfo\n"), (["--verbose"], "debug\ninfo\n")):
        assert run_cli(SearchConfig, run, flags, "search", "") == 0
        assert capsys.readouterr() == (f"{lines}result\n", "warning\n")
    assert logger.handlers == []
    assert logger.level == logging.NOTSET


def test_differences():
    ours, theirs = SearchConfig(seed=1, lr=0.2, device="cpu"), SearchConfig()
    assert differences(ours, theirs, ignore=["device"]) == ["lr: 0.2, before 0.05", "seed: 1, before 0"]
