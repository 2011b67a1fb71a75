"""Texts: sources, vocabulary, columns and windows."""

from pathlib import Path

import pytest
import torch

from fastdarts.data.text import Text, WindowStream, load_corpus
from fastdarts.data.text.windows import equal_lengths, following, two_lengths, varying_lengths


def write(folder: Path, train: str, valid: str = "a b\n", test: str = "b a\n") -> Path:
    for part, text in (("train", train), ("valid", valid), ("test", test)):
        (folder / f"{part}.txt").write_text(text, encoding="utf-8")
    return folder


def test_the_default_text_is_part_of_python() -> None:
    corpus = load_corpus("pydoc")
    assert len(corpus.train) > 50_000
    assert len(corpus.valid) > 5_000
    assert len(corpus.test) > 5_000
    assert int(corpus.train.words.max()) == len(corpus.vocabulary) - 1
    assert "<eos>" in corpus.vocabulary
    assert "<unk>" in corpus.vocabulary


def test_vocabulary_of_the_published_corpora_is_that_of_all_texts(tmp_path: Path) -> None:
    corpus = load_corpus("ptb", write(tmp_path, "a b\n\n c a\n", test="d a\n"))
    assert corpus.vocabulary == ("a", "b", "<eos>", "c", "d")
    assert corpus.train.words.tolist() == [0, 1, 2, 2, 3, 0, 2]
    (tmp_path / "train.txt").rename(tmp_path / "ptb.train.txt")
    assert load_corpus("ptb", tmp_path).vocabulary == corpus.vocabulary


def test_words_that_come_once_are_unknown_in_a_folder(tmp_path: Path) -> None:
    corpus = load_corpus("textfolder", write(tmp_path, "a b a b c\n", test="d a\n"))
    assert corpus.vocabulary == ("a", "b", "<unk>", "<eos>")
    assert corpus.test.words.tolist() == [2, 0, 3]


def test_an_unknown_word_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="test: the word 'd' is not in the training text"):
        load_corpus("textfolder", write(tmp_path, "a b a b\n", test="d a\n"))


def test_any_texts_are_divided(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("a b a b\n" * 20)
    corpus = load_corpus("textfolder", tmp_path)
    assert [len(text) for text in (corpus.train, corpus.valid, corpus.test)] == [80, 10, 10]


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train\.txt, valid\.txt, test\.txt missing in"):
        load_corpus("ptb", tmp_path)
    write(tmp_path, " \n")
    with pytest.raises(ValueError, match=r"train\.txt is empty"):
        load_corpus("ptb", tmp_path)
    (tmp_path / "train.txt").write_bytes("caf\xe9".encode("latin1"))
    with pytest.raises(ValueError, match=r"train\.txt is not UTF-8 \(byte 0xe9 at position 3\)"):
        load_corpus("ptb", tmp_path)
    (tmp_path / "train.txt").write_bytes(b"a\0b\0")
    with pytest.raises(ValueError, match="zero bytes"):
        load_corpus("ptb", tmp_path)
    with pytest.raises(ValueError, match="dataset must be one of pydoc, ptb"):
        load_corpus("text8")


def test_columns_and_windows() -> None:
    columns = Text(torch.arange(11)).columns(2)
    assert columns.tolist() == [[0, 5], [1, 6], [2, 7], [3, 8], [4, 9]]
    stream = WindowStream(columns, equal_lengths(5, 2), 3)
    words, targets, state = stream.next()
    assert words.tolist() == [[0, 5], [1, 6]]
    assert targets.tolist() == [[1, 6], [2, 7]]
    assert state.shape == (2, 3)
    state.fill_(1)
    assert stream.next()[2].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert stream.next()[2].tolist() == [[0, 0, 0], [0, 0, 0]]  # the text begins again
    with pytest.raises(ValueError, match="too short for 6 columns"):
        Text(torch.arange(11)).columns(6)


def test_a_stream_goes_on_where_it_was() -> None:
    columns = torch.arange(400).view(200, 2)
    windows = two_lengths(200, 20, seed=3)
    stream, other = (WindowStream(columns, windows, 4) for _ in range(2))
    stream.begin(2)
    stream.next()[2].normal_()
    other.load_state_dict(stream.state_dict())
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(stream.next(), other.next(), strict=True))
    with pytest.raises(ValueError, match="the state is of a text of"):
        WindowStream(columns[:50], windows, 4).load_state_dict(stream.state_dict())


def test_lengths_of_a_search_and_of_an_evaluation() -> None:
    """About one window in twenty has half the length; the last one is cut, and its drawn length is known."""
    found = [window for epoch in range(40) for window in two_lengths(3631, 35, 0)(epoch)]
    assert {window.drawn for window in found} == {35, 17}
    assert 0.03 < sum(window.drawn == 17 for window in found) / len(found) < 0.07
    assert any(window.length < window.drawn for window in found)
    lengths = [window.drawn for epoch in range(40) for window in varying_lengths(3631, 35, 0)(epoch)]
    assert min(lengths) >= 5
    assert max(lengths) <= 55
    assert 33 < sum(lengths) / len(lengths) < 35


def test_published_validation_windows_follow_the_training_text() -> None:
    train = two_lengths(3631, 35, 0)
    places = following(train, 288, 35)(0)
    assert [place.start for place in places[:3]] == [place.start % 287 for place in train(0)[:3]]
    assert min(place.length for place in places) < 35
    assert max(place.start + place.length for place in places) == 287
