"""Searches and evaluations on texts: files, every method, resuming bit for bit, averaging, roll-back, command lines."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_text import SMALL, tiny_text_evaluation, tiny_text_search, tiny_texts

from fastdarts import evaluate as evaluate_program
from fastdarts import search as search_program
from fastdarts.data.text import Corpus, load_corpus
from fastdarts.evaluate import EvalConfig, evaluate
from fastdarts.evaluate_text import evaluate_text
from fastdarts.export import export_run
from fastdarts.runs.search_config import SearchConfig
from fastdarts.runs.text_eval_state import TextEvalState
from fastdarts.runs.text_search_state import TextSearchState
from fastdarts.search import search
from fastdarts.spaces.recurrent.architecture import PUBLISHED, RecurrentCell

V1 = PUBLISHED["RNN_DARTS_V1"]
STALLING = (3.0, 2.0, 1.0, 1.5, 1.4, 1.3, 1.2, 1.1, 1.05)  # above 1 for more than five epochs
METHODS: dict[str, dict[str, Any]] = {
    "darts": {"order": 2},
    "gdas": {},
    "snas": {},
    "single-level": {"method_options": {"steps": "alternating"}},
    "random": {"method_options": {"cells": 3, "finalists": 2}},
    "fairnas": {"method_options": {"cells": 3, "population": 2}},
    "fairdarts": {},
    "sdarts-rs": {},
    "sdarts-adv": {},
    "darts-plus": {"method_options": {"stable": 1}, "arch_lr": 1e-6},
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_that_has_a_meaning_searches(tmp_path: Path, method: str) -> None:
    result = search(tiny_text_search(tmp_path / "run", method=method, **METHODS[method]))
    assert isinstance(result.genotype, RecurrentCell)
    assert len(result.genotype.nodes) == 8
    last = result.metrics[-1]
    assert last["train_perplexity"] < 12  # the text has 10 different words and the ends of lines
    if method in ("single-level", "snas"):
        assert last["valid_perplexity"] > 1
    if method == "darts-plus":
        assert result.stopped is not None
    for name in ("genotype.json", "cells.svg", "report.html", "alphas.npz", "alphas.png"):
        assert (tmp_path / "run" / name).is_file(), name


@pytest.mark.parametrize("method", ["pc-darts", "darts-minus", "p-darts"])
def test_methods_without_a_meaning_say_so(tmp_path: Path, method: str) -> None:
    with pytest.raises(ValueError, match=f"method '{method}' needs .* which space 'recurrent' does not have"):
        tiny_text_search(tmp_path / "run", method=method)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": "cifar10"}, "space 'recurrent' reads text: dataset must be one of pydoc, ptb"),
        ({"cutout": 3}, "cutout has no meaning for texts"),
        ({"layers": 3}, "layers has no meaning for texts"),
        ({"space_options": {"widht": 3}}, "space_options sets 'widht', which is unknown; did you mean 'width'"),
        ({"space_options": {"dropout": 1.0}}, "space_options: dropout must be below 1"),
        ({"method": "darts-plus", "method_options": {"rule": "skips"}}, "rule 'skips' counts skip connections"),
    ],
)
def test_wrong_options_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchConfig(**({"space": "recurrent"} | fields))
    if "method" not in fields:
        with pytest.raises(ValueError, match=message):
            EvalConfig(**({"space": "recurrent"} | fields))


def test_texts_belong_to_text_spaces() -> None:
    with pytest.raises(ValueError, match="space 'darts' reads images: dataset must be one of digits"):
        SearchConfig(dataset="ptb")
    assert SearchConfig(space="recurrent").dataset == "pydoc"
    published = SearchConfig(space="recurrent", dataset="ptb")
    assert (published.batch_size, published.lr, published.lr_min, published.grad_clip) == (256, 20.0, 20.0, 0.25)
    assert (published.weight_decay, published.arch_lr, published.arch_beta1, published.order) == (5e-7, 3e-3, 0.9, 2)
    assert SearchConfig(space="recurrent", dataset="ptb", lr=3.0).lr_min == 3.0
    assert published.space_options["dropout"] == published.space_options["dropoutx"] == 0.75
    found = EvalConfig(space="recurrent", dataset="wikitext2")
    assert (found.weight_decay, found.space_options["width"], found.space_options["dropouth"]) == (5e-7, 700, 0.15)


def test_a_text_that_is_too_short_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too short for 100 columns of two words or more"):
        search(tiny_text_search(tmp_path / "run", batch_size=100))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def timeless(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name not in ("seconds", "metrics", "config")}


@pytest.mark.parametrize("options", [{}, {"compat": True}], ids=["default", "compat"])
def test_a_search_goes_on_bit_for_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    def state() -> TextSearchState:
        config = tiny_text_search(tmp_path / "run", options, method="darts")
        return TextSearchState(config, load_corpus("textfolder", config.data), torch.device("cpu"))

    whole = state()
    for _ in range(3):
        whole.train_step()
    saved = whole.state_dict()
    other = state()
    other.train_step()
    kept = tmp_path / "state.pt"
    torch.save(saved, kept)
    other.load_state_dict(torch.load(kept))
    for run in (whole, other):
        torch.manual_seed(5)  # compat draws its masks from the global generator, which a checkpoint restores
        for _ in range(2):
            run.train_step()
    assert same(timeless(whole.state_dict()), timeless(other.state_dict()))
    assert float(whole.streams[0].state.abs().max()) > 0
    assert float(whole.streams[1].state.abs().max()) > 0


def corpus_of(tmp_path: Path) -> Corpus:
    return load_corpus("textfolder", tiny_texts(tmp_path / "texts"))


def text_state(tmp_path: Path, **fields: Any) -> TextEvalState:
    config = tiny_text_evaluation(tmp_path / "run", **fields)
    return TextEvalState(V1, config, corpus_of(tmp_path), torch.device("cpu"))


def test_an_evaluation_goes_on_bit_for_bit_while_averaging(tmp_path: Path) -> None:
    whole = text_state(tmp_path)
    for loss in STALLING:
        whole.judge(loss)
    assert whole.averaging
    for _ in range(3):
        whole.train_step()
    kept = tmp_path / "state.pt"
    torch.save(whole.state_dict(), kept)
    other = text_state(tmp_path)
    other.load_state_dict(torch.load(kept))
    assert other.averaging
    assert other.losses == whole.losses
    for run in (whole, other):
        for _ in range(2):
            run.train_step()
    assert same(timeless(whole.state_dict()), timeless(other.state_dict()))
    assert not torch.equal(whole.optimizer.average, whole.optimizer.flat.buffer)


def test_the_best_weights_are_averages_and_are_tested(tmp_path: Path) -> None:
    state = text_state(tmp_path)
    for loss in STALLING:
        state.judge(loss)
    for _ in range(3):
        state.train_step()
    average = state.optimizer.flat.views(state.optimizer.average)
    state.judge(0.5)
    assert torch.equal(state.best["weights"]["rnns.0._W0"], average[1] if average[1].dim() == 2 else average[0])
    assert not torch.equal(state.network.rnns[0]._W0, state.best["weights"]["rnns.0._W0"])


def test_a_loss_that_is_not_finite_rolls_back_and_nothing_else(tmp_path: Path) -> None:
    state = text_state(tmp_path)
    state.train_step()
    error = FloatingPointError("the loss is nan")
    with pytest.raises(FloatingPointError, match="the loss is nan"):  # nothing to go back to
        state.roll_back(error)
    state.judge(2.0)
    best = {name: value.clone() for name, value in state.best["weights"].items()}
    state.next_epoch({"epoch": 0})
    state.train_step()
    with torch.no_grad():
        state.network.encoder.weight.fill_(math.nan)
    state.train_step()
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 2"):
        state.read()
    state.roll_back(error)
    assert (state.epoch, state.step, state.losses) == (1, 0, [2.0])
    assert same(best, dict(state.network.state_dict().items()))
    state.train_step()
    assert math.isfinite(state.read()["train_loss"])


def test_evaluation_writes_its_folder_and_is_tested_again(tmp_path: Path) -> None:
    config = tiny_text_evaluation(tmp_path / "run")
    result = evaluate_text(V1, config)
    assert result.test_perplexity < 11
    assert result.epochs == 3
    assert len(result.metrics) == 3
    for name in ("genotype.json", "network.pt", "checkpoint.pt", "report.html", "result.json", "cells.svg"):
        assert (tmp_path / "run" / name).is_file(), name
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test_perplexity"] == result.test_perplexity
    again = tiny_text_evaluation(
        tmp_path / "other", test_only=True, checkpoint=tmp_path / "run" / "network.pt", device="cpu"
    )
    assert evaluate_text(V1, again).test_loss == pytest.approx(result.test_loss, rel=1e-6)
    with pytest.raises(ValueError, match="genotype is of a language model"):
        evaluate(V1, config)
    pytest.importorskip("onnxscript", reason="export needs the package onnxscript")
    with pytest.raises(ValueError, match="holds a language model; only networks for images are loaded and exported"):
        export_run(tmp_path / "run", tmp_path / "network")


def test_the_last_row_counts_once(tmp_path: Path) -> None:
    """The measured loss is the mean over all words with a next one, however the text is cut into windows."""
    state = text_state(tmp_path)
    text = corpus_of(tmp_path).train
    found = state.measure_columns(text, 2, lambda: None)
    columns = text.columns(2)
    state.network.eval()
    with torch.no_grad():
        whole = state.network.nll(state.network(columns[:-1]), columns[1:])
    assert found == pytest.approx(float(whole), rel=1e-5)


def test_command_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts, small = tiny_texts(tmp_path / "texts"), [f"{name}={value}" for name, value in SMALL.items()]
    common = ["--dataset", "textfolder", "--data", str(texts), "--device", "cpu", "--batch-size", "4"]
    found, trained = tmp_path / "search", tmp_path / "evaluation"
    argv = [*common, "--space", "recurrent", "--epochs", "1", "--out", str(found), "--space-options", *small]
    assert search_program.main(argv) == 0
    assert "genotype: " in capsys.readouterr().out
    assert search_program.main(["--resume", "--out", str(found), "--epochs", "2"]) == 0
    assert "epochs have become 2" in capsys.readouterr().out
    argv = [*common, "--genotype", str(found), "--epochs", "1", "--out", str(trained), "--space-options", *small]
    assert evaluate_program.main(argv) == 0
    assert "test perplexity" in capsys.readouterr().out
    assert evaluate_program.main(["--resume", "--out", str(trained), "--epochs", "2"]) == 0
    assert "test perplexity" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        search_program.main(["--space", "recurrent", "--help"])
    assert "width=32: size of embedding" in capsys.readouterr().out
