"""Texts as one tensor of word indices, from known corpora, any folder, or Python's own documentation."""

from fastdarts.data.text.corpus import Corpus, Text
from fastdarts.data.text.sources import TEXTS, load_corpus
from fastdarts.data.text.windows import WindowStream

__all__ = ["TEXTS", "Corpus", "Text", "WindowStream", "load_corpus"]
