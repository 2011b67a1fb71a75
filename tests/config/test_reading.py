"""Text files as people's machines write them, and damaged ones."""

import os
from pathlib import Path

import pytest

from fastdarts.config.options import read_file
from fastdarts.config.reading import parse_json, parse_toml, read_object, read_text
from fastdarts.runs.search_config import SearchConfig


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_byte_order_marks(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"epochs": 3, "data": "ä"}', encoding=encoding)
    assert read_object(path) == {"epochs": 3, "data": "ä"}
    assert SearchConfig.load(path).epochs == 3


def test_what_is_no_text_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError, match=f"there is no file {path}"):
        read_text(path)
    path.write_bytes(b"\xff\x00\x00")
    with pytest.raises(ValueError, match=f"{path} is not text"):
        read_text(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is no regular file"):
        read_text(tmp_path / "pipe")
    with pytest.raises(ValueError, match=f"{tmp_path} is no regular file"):
        read_text(tmp_path)


def test_deep_texts_are_refused() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(deep)
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_toml(f"a = {deep}")


@pytest.mark.parametrize("text", ["[1]", "{", '"text"', "", "[" * 100_000, "9" * 10_000])
def test_damaged_tables_name_their_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        read_object(path)
    with pytest.raises(ValueError, match=f"config: {path}"):
        read_file(SearchConfig, path)
