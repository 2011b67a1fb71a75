"""Search methods side by side: `python -m fastdarts.compare --methods darts,gdas --seeds 4`, or `compare(...)`.

The paper's protocol (Liu et al., ICLR 2019, section 3.1) for each method: some searches that differ in their seed, a
short training from scratch of each cell that was found, and the best by validation. Test data play no part in a choice.
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
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdarts import data
from fastdarts.config.command_line import build_parser
from fastdarts.config.files import write_atomically
from fastdarts.config.options import config_before
from fastdarts.config.plugins import plugin_flags
from fastdarts.config.reading import read_object
from fastdarts.data import ImageData, StreamedImages, Streaming
from fastdarts.data.text import load_corpus
from fastdarts.evaluate import evaluate
from fastdarts.evaluate_text import evaluate_text
from fastdarts.report.measure import measure_in, measure_on
from fastdarts.report.records import Record, check_record, summaries
from fastdarts.runs.compare_config import CompareConfig
from fastdarts.runs.console import LOGGER
from fastdarts.runs.folder import check_out, out_dir
from fastdarts.runs.images import outputs_for
from fastdarts.runs.jobs import ends_with_parent
from fastdarts.runs.lock import releases_folders
from fastdarts.runs.pool import Run, check_processes, exit_code, in_order, run_pool
from fastdarts.runs.program import run_cli
from fastdarts.runs.progress import duration
from fastdarts.search import search
from fastdarts.spaces.registry import load_architecture, space_of

_PROGRAM = "python -m fastdarts.compare"
_CHILD = "import sys; from fastdarts.compare import work; sys.exit(work(*sys.argv[1:]))"
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


@dataclass(frozen=True)
class Comparison:
    """Hold the result of a comparison.

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
        named = {"methods": config.methods}
        before = config_before(config, config.out / "config.json", named, _MAY_DIFFER)
        names = dict.fromkeys(before.method_names() + config.method_names())
        seeds = max(before.seeds, config.seeds)
        config = dataclasses.replace(config, methods=",".join(names), seeds=seeds)  # what is there stays in the report
    _check_data(config)
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
        failures = in_order(failures, runs_of)
        write_comparison(out, runs, failures)
    return Comparison(summaries(runs, measure_on(config.dataset)), runs, failures, out)


def run_one(config: CompareConfig, method: str, seed: int) -> Record:
    """Do one search and the short training of its cell, or what is left of them; return the record in its result.json.

    Its folder has `search/` and `select/`, as fastdarts.search and fastdarts.evaluate write them.
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
        judge = _judged_by_text if config.reads_text else _judged_by_images
        record: Record = {
            "method": method,
            "seed": seed,
            **judge(config, method, seed, genotype),
            "numbers": space_of(genotype).numbers(genotype),
            "tabulated": _read(folder / "search" / "benchmark.json") or {},
            **found,
            "folder": folder.name,
        }
        write_atomically(folder / "result.json", json.dumps(record, indent=2) + "\n")
        return record


def _judged_by_images(config: CompareConfig, method: str, seed: int, genotype: Any) -> Record:
    """Train a found cell on the part of the training images that a search's weights get, and measure it on the other.

    The parts are the same for all runs.
    """
    assert config.out is not None  # compare() sets it
    folder = _folder(config.out, method, seed)
    portion = config.search_config(method, seed, folder / "search").train_portion
    train, validation = data.split(_images(config), portion, seed=0)
    trained = evaluate(genotype, config.select_config(seed, folder / "select"), train, validation)
    return {
        "accuracy": trained.test_accuracy,
        "parameters": trained.parameters,
        "multiply_adds": trained.multiply_adds,
        "select_seconds": sum(metrics["seconds"] for metrics in trained.metrics),
    }


def _judged_by_text(config: CompareConfig, method: str, seed: int, genotype: Any) -> Record:
    """Train the language model of a found cell, and measure it on the validation text and, for the table, the other."""
    assert config.out is not None  # compare() sets it
    trained = evaluate_text(genotype, config.select_config(seed, _folder(config.out, method, seed) / "select"))
    return {
        "perplexity": trained.valid_perplexity,
        "test_perplexity": trained.test_perplexity,
        "parameters": trained.parameters,
        "multiply_adds": trained.multiply_adds,
        "select_seconds": sum(metrics["seconds"] for metrics in trained.metrics),
    }


def work(out: str, methods: str, method: str, seed: str, *plugins: str) -> int:
    """Do `run_one` of the comparison in a folder, as a process; return its exit code.

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


def _check_data(config: CompareConfig) -> None:
    """Say what is wrong with the images or texts before any run starts."""
    if config.reads_text:
        load_corpus(config.dataset, config.data)
    else:
        outputs_for(_images(config))


def _images(config: CompareConfig) -> ImageData | StreamedImages:
    """Return the images that searches and trainings share, without those of a test part."""
    return data.open_images(
        config.dataset,
        config.data,
        "train",
        config.image_size,
        test_portion=config.search.get("test_portion", 0.2),
        streaming=Streaming(config.search.get("stream", "auto"), config.search.get("workers")),
    )


def _folder(out: Path, method: str, seed: int) -> Path:
    return out / f"{method.replace(':', '.').replace('/', '.')}-{seed}"


def _result(out: Path, method: str, seed: int) -> Record | None:
    """Return the record of a run that is over; raise a ValueError that names the file if it is damaged."""
    path = _folder(out, method, seed) / "result.json"
    record = _read(path)
    return None if record is None else check_record(record, path)


def _read(path: Path) -> Record | None:
    """Read a JSON object, or return None where there is no file."""
    return read_object(path) if path.is_file() else None


def _words(run: Record) -> str:
    measure = measure_in(run)
    return (
        f"validation {measure.key} {measure.text(run[measure.key])}, search {duration(run['search_seconds'])}, "
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
    return exit_code(comparison.failures)
