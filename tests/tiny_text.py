"""A search of a second or two on a text whose next word follows from the word before."""

from pathlib import Path
from typing import Any

from fastdarts.runs.eval_config import EvalConfig
from fastdarts.runs.search_config import SearchConfig

LINE = "the cat sees a dog and the dog sees a cat\n"
SMALL: dict[str, Any] = {"width": 6, "window": 5, "dropout": 0.1, "dropouth": 0.1, "dropoutx": 0.1, "dropouti": 0.1}


def tiny_texts(folder: Path) -> Path:
    """Write train.txt, valid.txt and test.txt into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, lines in (("train", 12), ("valid", 6), ("test", 3)):
        (folder / f"{part}.txt").write_text(LINE * lines)
    return folder


def tiny_text_search(out: Path, space_options: dict[str, Any] | None = None, **fields: Any) -> SearchConfig:
    """About seven windows an epoch."""
    small: dict[str, Any] = {"epochs": 2, "batch_size": 4, "lr": 5.0, "arch_lr": 0.03, "device": "cpu", "out": out}
    given = {"space": "recurrent", "dataset": "textfolder", "data": tiny_texts(out.parent / "texts")}
    return SearchConfig(**given, space_options=SMALL | (space_options or {}), **(small | fields))


def tiny_text_evaluation(out: Path, space_options: dict[str, Any] | None = None, **fields: Any) -> EvalConfig:
    """About seven windows an epoch."""
    small: dict[str, Any] = {"epochs": 3, "batch_size": 4, "lr": 5.0, "device": "cpu", "out": out}
    given = {"space": "recurrent", "dataset": "textfolder", "data": tiny_texts(out.parent / "texts")}
    return EvalConfig(**given, space_options=SMALL | (space_options or {}), **(small | fields))
