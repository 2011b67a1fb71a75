"""Progress of a run: a bar or lines, and metrics.jsonl."""

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fastdarts.config.files import raise_if_full, write_atomically
from fastdarts.config.plain import for_json, plain
from fastdarts.runs.console import LOGGER, quiet

_SHOWN = {
    "train_loss": "train loss",
    "valid_loss": "valid loss",
    "train_accuracy": "accuracy",
    "images_per_second": "images/s",
    "words_per_second": "words/s",
}
_QUIET_SECONDS = 60.0  # without a terminal, an epoch longer than this gets a line now and then


class Progress:
    """Progress of a run of epochs: a bar on a terminal, and lines for the logger "fastdarts".

    Without a terminal an epoch that takes long gets a line a minute. What is shown is on the host already: showing it
    never waits for the device.
    """

    def __init__(self, epochs: int, steps_per_epoch: int, step: int = 0) -> None:
        """step: how many steps of all epochs are done."""
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=epochs * steps_per_epoch,
            initial=step,
            bar_format="{desc}{bar:16} {percentage:.0f} %, {remaining} left{postfix}",
            dynamic_ncols=True,
            disable=not self.terminal or quiet(),
        )
        self.first = step
        self.start = self.line_time = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()

    def update(self, epoch: int, step: int, means: Mapping[str, float]) -> None:
        """After some steps: where the run is, and the means of this epoch, of which the best known are shown."""
        done = epoch * self.steps_per_epoch + step
        position = f"epoch {epoch + 1}/{self.epochs}, step {step}/{self.steps_per_epoch}"
        known = [(words, means[name]) for name, words in _SHOWN.items() if not math.isnan(means.get(name, math.nan))]
        numbers = ", ".join(f"{words} {value:.3g}" for words, value in known)
        if self.terminal:
            self.bar.set_description(position, refresh=False)
            self.bar.set_postfix_str(numbers, refresh=False)
            self.bar.update(done - self.bar.n)
        elif time.monotonic() - self.line_time > _QUIET_SECONDS:
            LOGGER.info("%s: %s, %s left", position, numbers, duration(self.seconds_left(done)))
            self.line_time = time.monotonic()

    def end_epoch(self, epoch: int, line: str) -> None:
        left = self.seconds_left((epoch + 1) * self.steps_per_epoch)
        LOGGER.info("epoch %s/%s: %s%s", epoch + 1, self.epochs, line, f", {duration(left)} left" if left else "")
        self.line_time = time.monotonic()

    def seconds_left(self, done: int) -> float:
        elapsed = time.monotonic() - self.start
        return elapsed / max(done - self.first, 1) * (self.epochs * self.steps_per_epoch - done)


class MetricsFile:
    """metrics.jsonl: one JSON object a line."""

    def __init__(self, path: Path, known: Sequence[Mapping[str, Any]]) -> None:
        """known: the lines it starts with; a resumed run's are those of its checkpoint, whatever the file had. The list
        may grow: when the file has been deleted, it is written anew from it."""
        self.path = path
        self.known = known
        self._write_all()

    def _write_all(self) -> None:
        lines = (json.dumps(for_json(plain(values, unknown=str))) + "\n" for values in self.known)
        write_atomically(self.path, "".join(lines))

    def write(self, values: Mapping[str, Any]) -> None:
        """Add a line. Raises: DiskFullError."""
        if not self.path.is_file():
            self._write_all()
            if self.known and self.known[-1] is values:
                return
        try:
            with open(self.path, "a") as file:
                file.write(json.dumps(for_json(plain(values, unknown=str))) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise_if_full(error, self.path)
            raise


def duration(seconds: float) -> str:
    """ "0.35 s", "8 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 0.995:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def json_number(value: float) -> float | None:
    """None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value
