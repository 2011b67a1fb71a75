"""Checkpoints, metrics and stops of a run."""

import json
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor

from fastdarts.bilevel.ranks import Ranks
from fastdarts.config import quoting
from fastdarts.config.files import write_atomically
from fastdarts.config.named_code import flags_naming_code
from fastdarts.runs import checkpoint
from fastdarts.runs.console import LOGGER
from fastdarts.runs.environment import environment
from fastdarts.runs.interrupt import Interrupted, StopRequest
from fastdarts.runs.loggers import Logger, TensorBoard
from fastdarts.runs.progress import MetricsFile, Progress
from fastdarts.runs.state import Metrics, RunState

_READ_EVERY = 10  # steps between two looks at the device, for which it must be waited


class Keeper:
    """Writes down what a killed run needs to go on, and ends one that is asked to stop.

    Of several ranks the first writes; all must make the same calls.

    Args:
        state: the run.
        out: its folder.
        stop: see `stop_requests`.
        kernels: which the run uses and why, for environment.json.
        loggers: get the numbers of each epoch, beside TensorBoard in the folder where that is installed.
    """

    def __init__(
        self, state: RunState, out: Path, stop: StopRequest, kernels: str, loggers: Sequence[Logger] = ()
    ) -> None:
        self.state = state
        self.out = out
        self.stop = stop
        self._environment = json.dumps(environment() | {"kernels_used": kernels}, indent=2) + "\n"
        self.loggers: list[Logger] = []
        if state.ranks.first:
            self.metrics = MetricsFile(out / "metrics.jsonl", state.metrics)
            self.loggers += loggers
            if TensorBoard.installed():
                self.loggers.append(TensorBoard(out / "tensorboard", state.epoch))
            else:
                LOGGER.debug("no tensorboard/: for it, pip install 'fastdarts[tensorboard]'")
            write_atomically(out / "environment.json", self._environment)
        self.save()
        if state.ranks.first:
            state.config.save(out / "config.json")  # last: a folder that has it can be resumed

    def __enter__(self) -> "Keeper":
        return self

    def __exit__(self, *exception: object) -> None:
        with ExitStack() as stack:  # one that fails to close leaves the others to be closed
            for logger in self.loggers:
                stack.callback(logger.close)

    def save(self) -> None:
        self.state.read()  # no checkpoint of a run that has failed already
        state = self.state.state_dict()
        if self.state.ranks.first:
            checkpoint.save(self.out / "checkpoint.pt", self.state.kind, state)
        LOGGER.debug("saved %s: epoch %s, step %s", self.out / "checkpoint.pt", self.state.epoch + 1, self.state.step)

    def after_step(self) -> None:
        every = self.state.config.save_every_steps
        if every and self.state.step % every == 0:
            self.save()
        self.stop_if_asked()

    def after_epoch(self, metrics: Metrics, histograms: Mapping[str, Tensor]) -> None:
        """Write the epoch's metrics and a checkpoint; `histograms` go to the loggers, with the metrics."""
        if self.state.ranks.first:
            self.metrics.write(metrics)
        self.save()
        if not self.state.ranks.first:
            return
        if not (self.out / "config.json").is_file():  # the folder has been deleted in the meantime
            write_atomically(self.out / "environment.json", self._environment)
            self.state.config.save(self.out / "config.json")
        everything = {**metrics, **{f"method/{name}": value for name, value in metrics.get("method", {}).items()}}
        numbers = {name: value for name, value in everything.items() if isinstance(value, int | float)}
        for logger in self.loggers:
            logger.log_metrics(metrics["epoch"], numbers)
            if histograms:
                logger.log_histograms(metrics["epoch"], histograms)

    def stop_if_asked(self) -> None:
        """Raises: Interrupted, on all ranks and with the state saved, if one of them was asked to stop."""
        signum = self.state.ranks.largest(self.stop.signum)
        if signum:
            self.save()
            name = signal.Signals(signum).name
            position = f"epoch {self.state.epoch + 1}, step {self.state.step}"
            again = how_to_continue(self.state, self.out)
            raise Interrupted(signum, f"stopped by {name} in {position}; to continue: {again}")


def how_to_continue(state: RunState, out: Path) -> str:
    """Return the command that resumes the run in this folder; in words for images that came from Python."""
    if state.config.dataset == "custom":
        return f"the same call with resume=True and out={str(out)!r} in its config"
    code = flags_naming_code(vars(state.config))
    return f"{state.program} {quoting.join(['--resume', '--out', str(out), *code])}"


def asked_to_end(
    callbacks: Sequence[Callable[[Metrics, Any], object]], metrics: Metrics, network: Any, ranks: Ranks
) -> bool:
    """Call every callback with the epoch's metrics and the network; return True if one of them returned True itself.

    The first rank calls them, and decides for all.
    """
    answers = [callback(metrics, network) for callback in callbacks] if ranks.first else []
    return ranks.from_first(any(answer is True for answer in answers))


def train_epoch(state: RunState, progress: Progress, keeper: Keeper) -> None:
    """The steps that are left of the epoch."""
    while state.step < state.steps_per_epoch:
        state.train_step()
        if state.step % _READ_EVERY == 0 or state.step == state.steps_per_epoch:
            progress.update(state.epoch, state.step, state.read())
        keeper.after_step()
    state.end_steps()
