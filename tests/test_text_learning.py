"""Searches on real texts learn: the default one against unigrams, and WikiText-2."""

import math
from pathlib import Path

import pytest
import torch

from fastdarts.data.text import Corpus, load_corpus
from fastdarts.evaluate import EvalConfig
from fastdarts.evaluate_text import evaluate_text
from fastdarts.runs.search_config import SearchConfig
from fastdarts.search import search

pytestmark = pytest.mark.long


def unigram_perplexity(corpus: Corpus) -> float:
    """Return the perplexity of the validation text under the frequencies of words in the training text."""
    counts = torch.bincount(corpus.train.words, minlength=len(corpus.vocabulary)).double() + 1
    return math.exp(-float((counts / counts.sum())[corpus.valid.words].log().mean()))


def test_the_default_search_beats_unigrams_and_its_cell_the_search(tmp_path: Path) -> None:
    found = search(SearchConfig(space="recurrent", device="cpu", out=tmp_path / "search"))
    searched = found.metrics[-1]["valid_perplexity"]
    assert searched < 0.7 * unigram_perplexity(load_corpus("pydoc"))
    trained = evaluate_text(found.genotype, EvalConfig(space="recurrent", device="cpu", epochs=3, out=tmp_path / "run"))
    assert trained.valid_perplexity < 0.9 * searched


def test_wikitext_2_is_learnt(shared_data: Path, tmp_path: Path) -> None:
    """Its validation part trains weights here, and its test part alphas."""
    parts = {"train": "valid", "valid": "test", "test": "test"}
    for part, source in parts.items():
        text = shared_data / "wikitext2" / f"{source}.txt"
        if not text.is_file():
            pytest.skip(f"needs {text}, which is absent")
        (tmp_path / f"{part}.txt").write_bytes(text.read_bytes())
    config = SearchConfig(
        space="recurrent",
        dataset="textfolder",
        data=tmp_path,
        device="cpu",
        out=tmp_path / "search",
        epochs=2,
        batch_size=64,
        order=1,
        lr=5.0,
        space_options={"width": 32, "window": 10, "dropout": 0.2, "dropoutx": 0.2},
    )
    losses = [metrics["train_loss"] for metrics in search(config).metrics]
    assert losses[1] < losses[0] - 0.2
