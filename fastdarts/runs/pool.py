"""Do many runs in processes of their own: some at a time on this machine, on a Dask cluster, or by any executor."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fastdarts.config import quoting
from fastdarts.config.named_code import flags_naming_code
from fastdarts.config.options import option
from fastdarts.runs.device import choose_device
from fastdarts.runs.interrupt import Interrupted, stop_requests
from fastdarts.runs.jobs import Job, dask_executor, local_executor, run_all
from fastdarts.runs.launch import process_count
from fastdarts.runs.runs_progress import RunsProgress

_STOP = ".stop"  # a file in the folder that ends all runs


class PoolOptions(Protocol):
    """Declare the options of a program that does its runs in a pool; see `workers_option` and `scheduler_option`."""

    @property
    def workers(self) -> int: ...
    @property
    def scheduler(self) -> str | None: ...
    @property
    def device(self) -> str: ...


def workers_option() -> Any:
    """Define the field `workers` of a config."""
    return option(
        "run", "runs at a time on this machine; they share out threads, memory and, in turn, GPUs", 1, at_least=1
    )


def scheduler_option() -> Any:
    """Define the field `scheduler` of a config."""
    return option(
        "run",
        "run on the workers of the Dask cluster whose scheduler has this address; they must see the same folders",
        None,
        metavar="ADDRESS",
    )


def check_pool(options: PoolOptions) -> None:
    """Raise a ValueError for options that do not go together."""
    if options.scheduler is not None and options.workers != 1:
        raise ValueError("workers is for this machine; with scheduler, the cluster's workers run one run a thread")


def check_processes(name: str, options: PoolOptions, executor: Executor | None) -> None:
    """Raise a ValueError if the program `name` cannot start processes, or this machine has not the wanted device."""
    if process_count() > 1:
        raise ValueError(f"{name} starts processes itself: run it without torchrun, with --workers or --scheduler")
    if executor is None and options.scheduler is None:
        choose_device(options.device)


@dataclass(frozen=True)
class Run:
    """Describe one of many runs.

    Attributes:
        words: its name for people.
        folder: gets log.txt, all that the run prints, and result.json at its end.
        arguments: of the Python interpreter, see `Job`.
    """

    words: str
    folder: Path
    arguments: tuple[str, ...]

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    def failure(self, error: BaseException | None) -> str:
        """Return why the run has failed: the executor's error if there is one, else the last line of its log."""
        if error is not None:
            return f"{type(error).__name__}: {error}"
        lines = self.log.read_text(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it said nothing") + f" ({self.log})"


def in_order(failures: Mapping[str, str], runs: Iterable[Run]) -> dict[str, str]:
    """Return the failures in the order of the runs, not in that in which they ended."""
    return {run.words: failures[run.words] for run in runs if run.words in failures}


def run_pool(
    options: PoolOptions,
    out: Path,
    runs: Sequence[Run],
    ended: Callable[[Run, BaseException | None], object],
    program: str,
    executor: Executor | None = None,
) -> None:
    """Do the runs, some at a time.

    Args:
        options: where they are done.
        out: the folder that they share.
        runs: the runs; each goes on where it stopped if it is started again.
        ended: called for each run that has ended, with the executor's error if that lost it.
        program: what continues them all with --resume --out, for the message of an interruption.
        executor: starts the processes in place of `options`.

    Raises: Interrupted, after the runs have saved their states.
    """
    (out / _STOP).unlink(missing_ok=True)
    where = out.absolute()
    with ExitStack() as stack:
        sharing = options.workers
        if options.scheduler is not None:
            executor, sharing = stack.enter_context(dask_executor(options.scheduler))
        elif executor is None:
            executor = stack.enter_context(local_executor(options.workers, options.device))
        jobs: Mapping[Job, Run] = {
            Job(run.arguments, run.log.absolute(), where / _STOP, Path.cwd(), sharing): run for run in runs
        }
        stop = stack.enter_context(stop_requests())
        screen = stack.enter_context(RunsProgress({run.words: run.folder for run in runs}))

        def wait() -> None:
            screen.update()
            if stop.signum:
                code = flags_naming_code(vars(options))
                again = f"{program} {quoting.join(['--resume', '--out', str(out), *code])}"
                raise Interrupted(stop.signum, f"stopped; to continue: {again}")

        run_all(list(jobs), executor, lambda job, error: ended(jobs[job], error), wait)


def exit_code(failures: Mapping[str, str]) -> int:
    """Print why runs failed, by their names, and return the exit code of the program: 0 if none did."""
    for name, why in failures.items():
        print(f"{name} failed: {why}", file=sys.stderr)
    return 1 if failures else 0
