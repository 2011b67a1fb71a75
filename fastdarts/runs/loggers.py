"""Loggers take the numbers of each epoch. TensorBoard is one of them; docs/loggers.md shows others."""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from torch import Tensor


class Logger(Protocol):
    """The calls that `search` and `evaluate` make to each of `loggers`."""

    def log_metrics(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log the numbers of an epoch, counted from 0, by their names in metrics.jsonl."""

    def log_histograms(self, epoch: int, histograms: Mapping[str, Tensor]) -> None:
        """Log the alphas that an epoch of a search ends with; tensors on the CPU, of any shape."""

    def close(self) -> None:
        """Write what is left; called once, when the epochs end, by themselves or by an error."""


class TensorBoard:
    """Write scalars and histograms, by epoch, into a folder.

    Raises: ImportError that says what to install.
    """

    def __init__(self, folder: Path, first_epoch: int = 0) -> None:
        """first_epoch: hides what an earlier part of a resumed run wrote from here on."""
        if not TensorBoard.installed():
            raise ImportError("TensorBoard is not installed; run: pip install 'fastdarts[tensorboard]'")
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self._descriptor: int | None = None
        self.writer = SummaryWriter(self._name(folder), purge_step=first_epoch)

    def _name(self, folder: Path) -> str:
        """Return the folder's path; TensorBoard takes no names but UTF-8, so others go by an open file's number."""
        if os.fsencode(folder).decode(errors="ignore") == str(folder) or not os.path.isdir("/proc/self/fd"):
            return str(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(folder, os.O_RDONLY)
        return f"/proc/self/fd/{self._descriptor}"

    @staticmethod
    def installed() -> bool:
        """Return whether the package tensorboard can be imported."""
        return find_spec("tensorboard") is not None

    def log_metrics(self, epoch: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def log_histograms(self, epoch: int, histograms: Mapping[str, Tensor]) -> None:
        for name, values in histograms.items():
            self.writer.add_histogram(name, values, epoch)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
