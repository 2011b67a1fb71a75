"""Methods on DARTS-Bench-Suite: `fastdarts suite --methods darts,drnas,gdas`, or `run_suite(SuiteConfig(...))`.

Nine benchmarks: three shapes of search network, each with DARTS' ops, without the skip connection, and with one more on
every edge. Searches and trainings from scratch read different halves of the training images. On each benchmark a
method searches a few times; of the cells that it finds, the one whose search has the lowest validation loss is trained
under nine hyper-parameter sets, at the size of the search network, and tested. Methods are ranked by the mean
(AutoML 2025, arXiv:2507.16533).
"""

if __name__ == "__main__":  # before the imports, so that a signal while they run is answered
    import sys

    from fastdarts.cli import run

    sys.exit(run("suite", sys.argv[1:], "python -m fastdarts.suite"))

import argparse
import dataclasses
import fcntl
import json
import sys
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from fastdarts import data
from fastdarts.config.command_line import build_parser
from fastdarts.config.files import write_atomically
from fastdarts.config.options import config_before
from fastdarts.config.plugins import plugin_flags
from fastdarts.config.reading import read_object
from fastdarts.data import ImageData, StreamedImages
from fastdarts.evaluate import evaluate
from fastdarts.report.suite_records import Record, check_suite_record, summarise, verdict_words
from fastdarts.runs.console import LOGGER
from fastdarts.runs.folder import check_out, out_dir
from fastdarts.runs.images import outputs_for
from fastdarts.runs.jobs import ends_with_parent
from fastdarts.runs.lock import releases_folders
from fastdarts.runs.pool import Run, check_processes, exit_code, in_order, run_pool
from fastdarts.runs.program import run_cli
from fastdarts.runs.suite_config import MAY_DIFFER, Kind, SuiteConfig, Task
from fastdarts.search import search
from fastdarts.spaces.registry import load_architecture

__all__ = ["SuiteConfig", "SuiteResult", "run_suite"]

Images = ImageData | StreamedImages

_PROGRAM = "python -m fastdarts.suite"
_CHILD = "import sys; from fastdarts.suite import work; sys.exit(work(*sys.argv[1:]))"


@dataclass(frozen=True)
class SuiteResult:
    """Hold the result of the suite.

    Attributes:
        config: with all methods and benchmarks of the folder; `suite_records.summarise` takes it and the runs.
        runs: what each run's result.json holds.
        failures: what failed, and why; resuming tries it again.
        out_dir: the folder with results.json, report.html and a folder for each run.
    """

    config: SuiteConfig
    runs: list[Record]
    failures: dict[str, str]
    out_dir: Path


@releases_folders
def run_suite(config: SuiteConfig, executor: Executor | None = None) -> SuiteResult:
    """Do all searches that are not done yet, then all trainings, each in a process of its own.

    The report and results.json are written again whenever a run ends.

    Args:
        config: see SuiteConfig.
        executor: as of `compare`.

    Raises:
        ValueError, TypeError, FileNotFoundError: input that cannot be used, before any run starts.
        Interrupted: SIGINT, SIGTERM, SIGHUP or SIGUSR1 came; the runs have saved their states.
    """
    check_processes("suite", config, executor)
    check_out(config)
    if config.resume:
        config = _taken_up(config)
    _check_images(config)
    out = out_dir(config, "suite")
    config = dataclasses.replace(config, out=out)
    config.save(out / "config.json")
    for line in config.scaled():
        LOGGER.info("scaled down: %s", line)
    failures: dict[str, str] = {}
    from fastdarts.report.suite import write_suite  # imports matplotlib and jinja2, which takes a second

    def do(kind: Kind) -> None:
        tasks = {_run_of(config, out, task): task for task in config.tasks(kind) if _result(out, task) is None}
        todo = [run for run, task in tasks.items() if kind == "search" or _chosen(config, out, task) is not None]

        def ended(run: Run, error: BaseException | None) -> None:
            if (result := _result(out, tasks[run])) is None:
                failures[run.words] = run.failure(error)
                LOGGER.info("%s failed: %s", run.words, failures[run.words])
            else:
                LOGGER.info("%s: %s", run.words, _words(result))
            write_suite(config, _results(config, out), failures)

        run_pool(config, out, todo, ended, _PROGRAM, executor)

    try:
        do("search")
        do("training")
    finally:  # of an interrupted suite, too
        runs = _results(config, out)
        everything = [_run_of(config, out, task) for kind in get_args(Kind) for task in config.tasks(kind)]
        failures = in_order(failures, everything)
        write_suite(config, runs, failures)
    return SuiteResult(config, runs, failures, out)


def _taken_up(config: SuiteConfig) -> SuiteConfig:
    """Return the config with the methods and benchmarks that the suite in its folder has, too."""
    assert config.out is not None  # SuiteConfig checks it
    before = config_before(config, config.out / "config.json", {"methods": config.methods}, MAY_DIFFER)
    methods = dict.fromkeys(before.method_names() + config.method_names())
    benchmarks = dict.fromkeys(before.benchmark_names() + config.benchmark_names())
    return dataclasses.replace(config, methods=",".join(methods), benchmarks=",".join(benchmarks))


def run_one(config: SuiteConfig, task: Task) -> Record:
    """Do one search or training, or what is left of it; return the record in its result.json."""
    assert config.out is not None  # run_suite() sets it
    folder = _folder(config.out, task)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one that a killed suite has left behind is waited for
        if (result := _result(config.out, task)) is not None:
            return result
        record = _search(config, task) if task.kind == "search" else _train(config, task)
        record = {**task._asdict(), **record}
        write_atomically(folder / "result.json", json.dumps(record, indent=2) + "\n")
        return record


def _search(config: SuiteConfig, task: Task) -> Record:
    assert config.out is not None
    images, _ = _halves(config)
    weights, alphas = data.split(images, 0.5, seed=0)
    found = search(config.search_config(task, _folder(config.out, task) / "search"), weights, alphas)
    last = found.metrics[-1]
    if last["valid_loss"] is None:
        raise ValueError("the validation loss, by which searches are chosen, is not finite after the last epoch")
    return {
        "valid_loss": last["valid_loss"],
        "valid_accuracy": last["valid_accuracy"],
        "epochs": len(found.metrics),
        "stopped": found.stopped,
        "seconds": found.seconds,
        "peak_bytes": found.peak_bytes,
        "images": [len(weights), len(alphas)],
    }


def _train(config: SuiteConfig, task: Task) -> Record:
    assert config.out is not None
    chosen = _chosen(config, config.out, task)
    assert chosen is not None  # else the training is not begun
    _, images = _halves(config)
    test = _open(config, "test", images)
    architecture = load_architecture(str(_folder(config.out, chosen) / "search" / "genotype.json"))
    made = config.training_config(task, _folder(config.out, task) / "select")
    trained = evaluate(architecture, made, images, test)
    return {
        "lr": made.lr,
        "weight_decay": made.weight_decay,
        "search": chosen.number,
        "accuracy": trained.test_accuracy,
        "parameters": trained.parameters,
        "multiply_adds": trained.multiply_adds,
        "seconds": sum(metrics["seconds"] for metrics in trained.metrics),
        "images": [len(images), len(test)],
    }


def _chosen(config: SuiteConfig, out: Path, task: Task) -> Task | None:
    """Return the search of lowest validation loss on the task's benchmark; None before all have ended."""
    searches = [one for one in config.tasks("search") if (one.benchmark, one.method) == (task.benchmark, task.method)]
    results = [_result(out, one) for one in searches]
    losses = [result["valid_loss"] for result in results if result is not None]
    return searches[losses.index(min(losses))] if len(losses) == len(searches) else None


def _open(config: SuiteConfig, part: data.Split, train: Images | None = None) -> Images:
    """Return the images of a part of the data set, or the share of each class that the budget allows."""
    limit = config.scale.images
    return data.open_images(
        config.dataset, config.data, part, config.image_size, train=train, test_portion=0.2, limit=limit
    )


def _check_images(config: SuiteConfig) -> None:
    """Say what is wrong with the images, those of the test included, before any run starts."""
    train = _open(config, "train")
    outputs_for(train)
    _open(config, "test", train)


def _halves(config: SuiteConfig) -> tuple[Images, Images]:
    """Return the training images of the searches and those of the trainings, which have none in common."""
    return data.split(_open(config, "train"), 0.5, seed=0)


def work(out: str, methods: str, benchmark: str, method: str, kind: Kind, number: str, *plugins: str) -> int:
    """Do `run_one` of the suite in a folder, as a process; return its exit code.

    Args:
        methods: all of the suite, as its caller named them; its config.json alone would have no code imported.
        plugins: flags that load the plugins of the suite.
    """

    def run(config: SuiteConfig) -> int:
        run_one(config, Task(benchmark, method, kind, int(number)))
        return 0

    ends_with_parent()
    return run_cli(SuiteConfig, run, ["--resume", "--out", out, "--methods", methods, *plugins], _PROGRAM, "")


def _run_of(config: SuiteConfig, out: Path, task: Task) -> Run:
    named = task.benchmark, task.method, task.kind, str(task.number)
    arguments = ("-c", _CHILD, str(out.absolute()), config.methods, *named, *plugin_flags())
    return Run(f"{task.benchmark}, {task.method}, {task.kind} {task.number}", _folder(out, task), arguments)


def _folder(out: Path, task: Task) -> Path:
    return out / task.benchmark / task.method.replace(":", ".") / f"{task.kind}-{task.number}"


def _result(out: Path, task: Task) -> Record | None:
    """Return the record of a run that is over; raise a ValueError that names the file if it is damaged."""
    path = _folder(out, task) / "result.json"
    return check_suite_record(read_object(path), path) if path.is_file() else None


def _results(config: SuiteConfig, out: Path) -> list[Record]:
    tasks = [*config.tasks("search"), *config.tasks("training")]
    return [result for task in tasks if (result := _result(out, task)) is not None]


def _words(run: Record) -> str:
    if run["kind"] == "search":
        return f"validation loss {run['valid_loss']:.4f}"
    return f"test accuracy {100 * run['accuracy']:.2f} % (lr {run['lr']:g}, weight decay {run['weight_decay']:g})"


_DESCRIPTION = (__doc__ or "").replace("`", "'")


def parser(prog: str = _PROGRAM) -> argparse.ArgumentParser:
    """Make the program's parser."""
    return build_parser(SuiteConfig, prog=prog, description=_DESCRIPTION)


def main(argv: Sequence[str] | None = None, prog: str = _PROGRAM) -> int:
    return run_cli(SuiteConfig, _main, argv, prog, _DESCRIPTION)


def _main(config: SuiteConfig) -> int:
    found = run_suite(config)
    config, summary = found.config, summarise(found.config, found.runs)
    for method, rank in sorted(summary.ranks.items(), key=lambda pair: pair[1]):
        print(
            f"{method}: average rank {rank:.2f} by the mean test accuracy, {summary.best_ranks[method]:.2f} by the best"
        )
    print(verdict_words(config, summary))
    print(f"results: {found.out_dir} (report.html, results.json)")
    return exit_code(found.failures)
