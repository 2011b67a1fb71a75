"""A search that was killed, stopped or damaged, and what --resume makes of it."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from tiny_search import tiny_config, tiny_images

import fastdarts.search as search_module
from fastdarts.runs.interrupt import Interrupted
from fastdarts.search import main, search

# Three steps an epoch.
DIGITS = "--layers 1 --init-channels 2 --epochs 2 --batch-size 256 --device cpu --deterministic --save-every-steps 1"

# For each line [at, arguments] that comes in: a process that runs the command line and kills itself at the given fsync,
# whose exit code goes out. Every file that is written makes one fsync before it is moved to its place and one after,
# every line of metrics.jsonl makes one. The processes are forks of one that has imported all and computed nothing.
KILLED = """
import json, os, signal, sys, torch
import sklearn.datasets, torch.utils.tensorboard  # the search does so late, and each fork again
torch.set_num_threads(int(sys.argv[1]))
from fastdarts.search import main
def killed(at, arguments):
    calls, fsync = 0, os.fsync
    def counting(descriptor):
        nonlocal calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)
    os.fsync = counting
    os.dup2(2, 1)
    os._exit(main(arguments))
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        killed(*json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Drawing takes longer than a tiny search."""
    monkeypatch.setattr(search_module, "_write_results", lambda state, genotype, out: None)


@contextmanager
def killing(log):
    """A function that runs the command line, killed at an fsync, and returns its exit code; `log` gets what it says."""
    command = [sys.executable, "-c", KILLED, str(torch.get_num_threads())]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with log.open("w") as errors, subprocess.Popen(command, stderr=errors, **pipes) as program:

        def run(at, arguments):
            program.stdin.write(json.dumps([at, arguments]) + "\n")
            program.stdin.flush()
            return int(program.stdout.readline())

        yield run


def alphas_of(folder):
    with np.load(folder / "alphas.npz") as arrays:
        return {name: arrays[name] for name in ("normal", "reduce")}


def epochs_of(folder):
    """The epochs of metrics.jsonl without what the clock decides."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]


@pytest.mark.slow
def test_killed_three_times_equals_never_killed(tmp_path):
    assert main([*DIGITS.split(), "--out", str(tmp_path / "whole")]) == 0
    out = tmp_path / "killed"
    arguments = ["--out", str(out)]
    # A start makes 8 fsyncs (metrics.jsonl, environment.json, checkpoint, config.json), a step 2, the end of an epoch
    # 1 for its line, 2 for the checkpoint, 2 for alphas.npz.
    kills = [
        (8 + 2 + 1, "the checkpoint of step 2 is written, not yet in its place", (0, 1)),
        (8 + 2 * 2 + 1 + 1, "epoch 1 has its line in metrics.jsonl, not yet a checkpoint", (0, 3)),
        (8 + 1 + 2 + 2 + 2, "the checkpoint of epoch 2, step 1 has just come to its place", (1, 1)),
    ]
    with killing(tmp_path / "log") as run:
        for index, (at, where, saved) in enumerate(kills):
            code = run(at, [*DIGITS.split(), *arguments] if index == 0 else ["--resume", *arguments])
            assert code == -signal.SIGKILL, f"{where}: {(tmp_path / 'log').read_text()}"
            state = torch.load(out / "checkpoint.pt", weights_only=True)
            assert (state["epoch"], state["step"]) == saved, where
    assert main(["--resume", *arguments]) == 0

    for name, expected in alphas_of(tmp_path / "whole").items():
        assert np.array_equal(alphas_of(out)[name], expected), name
    assert epochs_of(out) == epochs_of(tmp_path / "whole")
    ours, theirs = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (out, tmp_path / "whole"))
    for name, tensor in theirs["network"].items():
        assert torch.equal(ours["network"][name], tensor), name


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signals_end_cleanly_and_the_search_goes_on(tmp_path, kill):
    """The signal comes in the middle of epoch 1, from the loss of its second step."""
    images = tiny_images()
    whole = search(tiny_config(tmp_path / "whole", deterministic=True), train=images)
    calls = 0

    def signalling(outputs, targets):
        nonlocal calls
        calls += 1
        if calls == 6 + 2 + 1:  # three trial steps and one step, two calls each
            os.kill(os.getpid(), kill)
        return torch.nn.functional.cross_entropy(outputs, targets)

    out = tmp_path / "stopped"
    before = signal.getsignal(kill)
    with pytest.raises(
        Interrupted, match=rf"{kill.name} in epoch 1, step 2; to continue: the same call with resume=True"
    ) as stop:
        search(tiny_config(out, deterministic=True), train=images, loss=signalling)
    assert stop.value.signum == kill
    assert signal.getsignal(kill) is before
    resumed = search(tiny_config(out, deterministic=True, resume=True), train=images)
    assert torch.equal(resumed.alphas_normal, whole.alphas_normal)
    assert torch.equal(resumed.alphas_reduce, whole.alphas_reduce)
    assert epochs_of(out) == epochs_of(tmp_path / "whole")


@pytest.mark.parametrize("space", ["s5", "s4"])
def test_a_signal_during_validation_from_the_command_line(tmp_path, monkeypatch, capsys, space):
    """The epoch's steps are not lost, and not made twice; nor are draws of s4's candidate `noise`."""
    out, arguments = tmp_path / "stopped", [*DIGITS.split(), "--space", space]
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    measure = search_module.SearchState.measure

    def interrupted(state, data, between_batches):
        batches = iter([lambda: None, lambda: os.kill(os.getpid(), signal.SIGTERM)])

        def between():
            next(batches)()
            between_batches()

        return measure(state, data, between)

    with monkeypatch.context() as patch:
        patch.setattr(search_module.SearchState, "measure", interrupted)
        assert main([*arguments, "--out", str(out)]) == 128 + signal.SIGTERM
    program = "python -m fastdarts.search"
    again = f"{program} --resume --out {out}"
    assert capsys.readouterr().err == f"{program}: stopped by SIGTERM in epoch 1, step 3; to continue: {again}\n"
    assert main(again.removeprefix(program).split()) == 0
    assert epochs_of(out) == epochs_of(tmp_path / "whole")
    assert np.array_equal(alphas_of(out)["normal"], alphas_of(tmp_path / "whole")["normal"])


@pytest.fixture
def finished(tmp_path):
    out = tmp_path / "out"
    search(tiny_config(out, epochs=1), train=tiny_images())
    return out


def test_conflicting_config_is_refused_with_the_keys(finished):
    kept = (finished / "checkpoint.pt").read_bytes()
    config = tiny_config(finished, epochs=3, lr=0.01, resume=True, save_every_steps=2)
    with pytest.raises(ValueError, match=r"another config \(lr: 0.01, before 0.05\); only .*device"):
        search(config, train=tiny_images())
    assert (finished / "checkpoint.pt").read_bytes() == kept


def test_other_images_are_refused(finished):
    with pytest.raises(ValueError, match=r"stream of 24 images; this one has 12"):
        search(tiny_config(finished, epochs=1, resume=True), train=tiny_images().subset(torch.arange(24)))


def test_damaged_checkpoint_is_refused(finished):
    path = finished / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"checkpoint {path} is damaged"):
        search(tiny_config(finished, epochs=1, resume=True), train=tiny_images())


def test_nothing_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        search(tiny_config(tmp_path, resume=True), train=tiny_images())


def test_a_finished_search_resumes_to_the_same_end(finished):
    alphas, epochs = alphas_of(finished), epochs_of(finished)
    (finished / "metrics.jsonl").unlink()  # is written again from the checkpoint
    result = search(tiny_config(finished, epochs=1, resume=True), train=tiny_images())
    assert epochs_of(finished) == epochs
    assert np.array_equal(result.alphas_normal.numpy(), alphas["normal"][-1])
