"""Search methods side by side: `python -m fastdarts.compare --methods darts,gdas --seeds 4`, or `compare(...)`.

The paper's protocol (Liu et al., ICLR 2019, section 3.1) for each method: some searches that differ in their seed, a
short training from scratch of each cell that was found, and the best by validation. The test images play no part.
"""

if __name__ == "__main__":  # before the imports, so that a signal while they run is answered
    import sys

    from fastdarts.cli import run

    sys.exit(run("compare", sys.argv[1:], "python -m fastdarts.compare"))

import argparse
import dataclasses
import fcntl
import json
import sys
import typing
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fastdarts import data
from fastdarts.config.command_line import build_parser
from fastdarts.config.files import write_atomically
from fastdarts.config.named_code import refuse_unnamed_code
from fastdarts.config.options import Config, check_names, differences, option, read_file
from fastdarts.config.plugins import plugin_flags
from fastdarts.config.reading import read_object
from fastdarts.config.search_options import Dataset
from fastdarts.data import ImageData, StreamedImages, Streaming
from fastdarts.evaluate import evaluate
from fastdarts.methods import NAMES, find
from fastdarts.report.records import Record, check_record, summaries
from fastdarts.runs.console import LOGGER
from fastdarts.runs.eval_config import EvalConfig
from fastdarts.runs.folder import check_out, out_dir
from fastdarts.runs.images import outputs_for
from fastdarts.runs.jobs import ends_with_parent
from fastdarts.runs.lock import releases_folders
from fastdarts.runs.pool import Run, check_pool, check_processes, run_pool, scheduler_option, workers_option
from fastdarts.runs.program import run_cli
from fastdarts.runs.progress import duration
from fastdarts.runs.search_config import SearchConfig
from fastdarts.search import search
from fastdarts.spaces.registry import load_architecture, space_of

_PROGRAM = "python -m fastdarts.compare"
_CHILD = "import sys; from fastdarts.compare import work; sys.exit(work(*sys.argv[1:]))"
_SIZES = ("image_size", "epochs", "init_channels", "layers", "batch_size", "order")
_SEARCH_OWN = {*_SIZES, "dataset", "data", "method", "seed", "device", "deterministic", "out", "resume"}
_SELECT_OWN = {"dataset", "data", "image_size", "epochs", "seed", "device", "deterministic", "out", "resume"} | {
    "test_only",
    "checkpoint",
    "export",
}
_MAY_DIFFER = (
    "methods",
    "seeds",
    "workers",
    "scheduler",
    "data",
    "device",
    "out",
    "resume",
)  # when a comparison goes on


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Config):
    """Everything that decides a comparison. What is not given is each method's own default for the data set.

    Raises: ValueError or TypeError that names the field (and the method that cannot take it).
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: {"select_epochs": 20 if name == "digits" else 100, "search": {}, "select": {}}
        for name in typing.get_args(Dataset)
    }

    dataset: Dataset = option("data", "data set and its preset", "digits")
    data: Path = option("data", "folder of the data set", Path("data"), metavar="DIR")
    image_size: tuple[int, int] | None = option(
        "data", "resize images to this (default: as they are)", None, metavar="SIZE|HxW", at_least=1
    )

    methods: str = option(
        "comparison", "names of methods with commas between", ",".join(NAMES), metavar="NAME,...", names_code=True
    )
    seeds: int = option("comparison", "searches of each method, with the seeds 0, 1, ...", 4, at_least=1)
    select_epochs: int = option("comparison", "epochs of the training of each found cell from scratch", at_least=1)

    epochs: int | None = option("searches", "epochs (default: each method's)", None, at_least=1)
    init_channels: int | None = option("searches", "channels of the first cells (default: each method's)", None)
    layers: int | None = option("searches", "number of cells (default: each method's)", None)
    batch_size: int | None = option("searches", "images in a step (default: each method's)", None)
    order: int | None = option("searches", "1 or 2 (default: each method's)", None)
    search: dict[str, Any] = option("searches", "other options of fastdarts.search", metavar="NAME=VALUE")
    select: dict[str, Any] = option(
        "comparison", "options of fastdarts.evaluate for these trainings", metavar="NAME=VALUE"
    )

    device: str = option("run", "auto (CUDA if available), cpu, cuda or cuda:N", "auto", metavar="DEVICE")
    deterministic: bool = option("run", "the same bits in each run on the same machine", False)
    workers: int = workers_option()
    scheduler: str | None = scheduler_option()
    out: Path | None = option(
        "run", "folder of the results (default: runs/comparison-DATASET-TIME)", None, metavar="DIR"
    )
    resume: bool = option("run", "continue the comparison in --out; methods and seeds may be added", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset == "custom":
            raise ValueError("dataset must be one that can be read from files; custom is for search() and evaluate()")
        if self.resume and self.out is None:
            raise ValueError("resume needs out, the folder of the comparison to continue")
        check_pool(self)
        for field, config_type, own in (("search", SearchConfig, _SEARCH_OWN), ("select", EvalConfig, _SELECT_OWN)):
            values = getattr(self, field)
            check_names(config_type, values, field)
            if taken := sorted(own & values.keys()):
                raise ValueError(f"{field} must not set {', '.join(taken)}; a comparison decides that by other means")
        names = self.method_names()
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"methods names {name!r} more than once")
            find(name)
            try:
                self.search_config(name, 0, Path())
            except (ValueError, TypeError) as error:
                raise type(error)(f"{name}: {error}") from None
        self.select_config(0, Path())

    def method_names(self) -> list[str]:
        return [name.strip() for name in self.methods.split(",")]

    def search_config(self, method: str, seed: int, out: Path) -> SearchConfig:
        """Return the config of one search."""
        given = {name: value for name in _SIZES if (value := getattr(self, name)) is not None}
        return SearchConfig(**{**given, **self.search, **self._common(seed, out), "method": method, "data": self.data})

    def select_config(self, seed: int, out: Path) -> EvalConfig:
        """Return the config of the training that judges a found cell."""
        space = self.search.get("space", "darts")
        return EvalConfig(**{"space": space, **self.select, **self._common(seed, out), "epochs": self.select_epochs})

    def _common(self, seed: int, out: Path) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "seed": seed,
            "device": self.device,
            "deterministic": self.deterministic,
            "out": out,
            "resume": (out / "config.json").is_file(),
        }


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    Attributes:
        methods: a summary of each, see `fastdarts.report.records.summaries`.
        runs: what each run's result.json holds.
        failures: what failed, and why; resuming tries it again.
        out_dir: the folder with results.json, report.html and a folder for each run.
    """

    methods: list[Record]
    runs: list[Record]
    failures: dict[str, str]
    out_dir: Path


@releases_folders
def compare(config: CompareConfig, executor: Executor | None = None) -> Comparison:
    """Run what is not done yet, each method's search and short training of one seed in a process of its own.

    The report and results.json are written again whenever a run ends.

    Args:
        config: see CompareConfig.
        executor: starts the processes in place of config.workers on this machine; its workers must see the same folders
            and have fastdarts. config.workers tells how many of them share a machine.

    Raises:
        ValueError, TypeError, FileNotFoundError: input that cannot be used, before any run starts.
        Interrupted: SIGINT, SIGTERM, SIGHUP or SIGUSR1 came; the runs have saved their states.
    """
    check_processes("compare", config, executor)
    check_out(config)
    if config.resume:
        assert config.out is not None  # CompareConfig checks it
        file = config.out / "config.json"
        named = {"methods": config.methods}
        values = read_file(CompareConfig, file, named)
        refuse_unnamed_code(CompareConfig, values, named, file)
        before = CompareConfig(**values)
        if changed := differences(config, before, ignore=_MAY_DIFFER):
            free = ", ".join(_MAY_DIFFER)
            raise ValueError(f"resume: {config.out} has another config ({'; '.join(changed)}); only {free} may change")
        names = dict.fromkeys(before.method_names() + config.method_names())
        seeds = max(before.seeds, config.seeds)
        config = dataclasses.replace(config, methods=",".join(names), seeds=seeds)  # what is there stays in the report
    # Says what is wrong with the images.
    outputs_for(_images(config))
    out = out_dir(config, "comparison")
    config = dataclasses.replace(config, out=out)
    config.save(out / "config.json")
    tasks = [(method, seed) for seed in range(config.seeds) for method in config.method_names()]
    runs_of = {_run_of(config, out, *task): task for task in tasks}
    failures: dict[str, str] = {}
    from fastdarts.report.comparison import write_comparison  # imports matplotlib and jinja2, which takes a second

    def results() -> list[Record]:
        return [result for task in tasks if (result := _result(out, *task)) is not None]

    def ended(run: Run, error: BaseException | None) -> None:
        if (result := _result(out, *runs_of[run])) is not None:
            LOGGER.info("%s: %s", run.words, _words(result))
        else:
            failures[run.words] = run.failure(error)
            LOGGER.info("%s failed: %s", run.words, failures[run.words])
        write_comparison(out, results(), failures)

    try:
        todo = [run for run, task in runs_of.items() if _result(out, *task) is None]
        run_pool(config, out, todo, ended, _PROGRAM, executor)
    finally:  # of an interrupted comparison, too
        runs = results()
        order = [_words_of(*task) for task in tasks]
        failures = {task: failures[task] for task in order if task in failures}  # not in the order in which they ended
        write_comparison(out, runs, failures)
    return Comparison(summaries(runs), runs, failures, out)


def run_one(config: CompareConfig, method: str, seed: int) -> Record:
    """One search and the short training of its cell, or what is left of them; the record in its result.json.

    Its folder has `search/` and `select/`, as fastdarts.search and fastdarts.evaluate write them. `select` trains on
    the part of the training images that a search's weights get and is measured on the other, the same for all runs.
    """
    assert config.out is not None  # compare() sets it
    folder = _folder(config.out, method, seed)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one that a killed comparison has left behind is waited for
        if (result := _result(config.out, method, seed)) is not None:
            return result
        search_config = config.search_config(method, seed, folder / "search")
        found = _read(folder / "search.json")
        if found is None:
            searched = search(search_config)
            found = {
                "search_seconds": searched.seconds,
                "peak_bytes": searched.peak_bytes,
                "search_epochs": len(searched.metrics),
                "stopped": searched.stopped,
            }
            write_atomically(folder / "search.json", json.dumps(found, indent=2) + "\n")
        genotype = load_architecture(str(folder / "search" / "genotype.json"))
        images = _images(config)
        train, validation = data.split(images, search_config.train_portion, seed=0)
        trained = evaluate(genotype, config.select_config(seed, folder / "select"), train, validation)
        record: Record = {
            "method": method,
            "seed": seed,
            "accuracy": trained.test_accuracy,
            "parameters": trained.parameters,
            "multiply_adds": trained.multiply_adds,
            "numbers": space_of(genotype).numbers(genotype),
            "tabulated": _read(folder / "search" / "benchmark.json") or {},
            **found,
            "select_seconds": sum(metrics["seconds"] for metrics in trained.metrics),
            "folder": folder.name,
        }
        write_atomically(folder / "result.json", json.dumps(record, indent=2) + "\n")
        return record


def work(out: str, methods: str, method: str, seed: str, *plugins: str) -> int:
    """`run_one` of the comparison in a folder, as a process; returns its exit code.

    Args:
        methods: all of the comparison, as the caller of the comparison named them; its config.json alone would have no
            code imported.
        plugins: flags that load the plugins of the comparison.
    """

    def run(config: CompareConfig) -> int:
        run_one(config, method, int(seed))
        return 0

    ends_with_parent()
    return run_cli(CompareConfig, run, ["--resume", "--out", out, "--methods", methods, *plugins], _PROGRAM, "")


def _run_of(config: CompareConfig, out: Path, method: str, seed: int) -> Run:
    arguments = ("-c", _CHILD, str(out.absolute()), config.methods, method, str(seed), *plugin_flags())
    return Run(_words_of(method, seed), _folder(out, method, seed), arguments)


def _words_of(method: str, seed: int) -> str:
    return f"{method}, seed {seed}"


def _images(config: CompareConfig) -> ImageData | StreamedImages:
    """The images that searches and trainings share; those of a test part are not among them."""
    return data.open_images(
        config.dataset,
        config.data,
        "train",
        config.image_size,
        test_portion=config.search.get("test_portion", 0.2),
        streaming=Streaming(config.search.get("stream", "auto"), config.search.get("workers")),
    )


def _folder(out: Path, method: str, seed: int) -> Path:
    return out / f"{method.replace(':', '.')}-{seed}"


def _result(out: Path, method: str, seed: int) -> Record | None:
    """The record of a run that is over; ValueError that names the file if it is damaged."""
    path = _folder(out, method, seed) / "result.json"
    record = _read(path)
    return None if record is None else check_record(record, path)


def _read(path: Path) -> Record | None:
    """Read a JSON object, or return None where there is no file."""
    return read_object(path) if path.is_file() else None


def _words(run: Record) -> str:
    return (
        f"validation accuracy {100 * run['accuracy']:.2f} %, search {duration(run['search_seconds'])}, "
        f"training {duration(run['select_seconds'])}"
    )


_DESCRIPTION = (__doc__ or "").replace("`", "'")


def parser(prog: str = _PROGRAM) -> argparse.ArgumentParser:
    """Make the program's parser."""
    return build_parser(CompareConfig, prog=prog, description=_DESCRIPTION)


def main(argv: Sequence[str] | None = None, prog: str = _PROGRAM) -> int:
    return run_cli(CompareConfig, _main, argv, prog, _DESCRIPTION)


def _main(config: CompareConfig) -> int:
    comparison = compare(config)
    for row in comparison.methods:
        print(f"{row['method']}: {row['text']}")
    print(f"results: {comparison.out_dir} (report.html, results.json)")
    for name, why in comparison.failures.items():
        print(f"{name} failed: {why}", file=sys.stderr)
    return 1 if comparison.failures else 0
