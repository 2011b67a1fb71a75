"""Progress of several runs at once, read from the folders into which they write."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from fastdarts.runs.console import LOGGER, quiet

_PARTS = {"search": "search", "select": "training"}  # folders of a run in a comparison
_READ_SECONDS = 2.0
_LINE_SECONDS = 60.0  # between two lines without a terminal


class RunsProgress:
    """Show how many runs have ended and in which epoch the others are: a bar on a terminal, else a line a minute.

    Args:
        folders: of each run, by the words that name it.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = dict(folders)
        self.terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=len(self.folders),
            bar_format="{n_fmt}/{total_fmt} runs {bar:16}{postfix}",
            dynamic_ncols=True,
            disable=not self.terminal or quiet(),
        )
        self._read_time = 0.0
        self._line_time = time.monotonic()

    def __enter__(self) -> "RunsProgress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()

    def update(self) -> None:
        """Read the folders, if that is some time ago, and show what has changed."""
        now = time.monotonic()
        if now - self._read_time < _READ_SECONDS:
            return
        self._read_time = now
        done, line = self.state()
        if self.terminal:
            self.bar.set_postfix_str(line, refresh=False)
            self.bar.n = done
            self.bar.refresh()
        elif line and now - self._line_time > _LINE_SECONDS:
            LOGGER.info("%s of %s runs have ended; %s", done, len(self.folders), line)
            self._line_time = now

    def state(self) -> tuple[int, str]:
        """Return how many runs have ended, and the position of each that is running, in words."""
        done = sum((folder / "result.json").is_file() for folder in self.folders.values())
        running = [f"{name}: {where}" for name, folder in self.folders.items() if (where := _position(folder))]
        return done, "; ".join(running)


def _position(folder: Path) -> str | None:
    """Return the part and epoch in which a run is; None for one that has not begun or has ended."""
    if (folder / "result.json").is_file():
        return None
    for part, words in reversed(_PARTS.items()):
        config, metrics = folder / part / "config.json", folder / part / "metrics.jsonl"
        if config.is_file():
            epochs = json.loads(config.read_text())["epochs"]
            done = metrics.read_text().count("\n") if metrics.is_file() else 0
            return f"{words}, epoch {min(done + 1, epochs)}/{epochs}"
    return None
