"""Write report.html, a self-contained page about a run, from the files in its folder."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any

import jinja2
from markupsafe import Markup

from fastdarts.config import quoting
from fastdarts.config.files import write_atomically
from fastdarts.config.named_code import flags_naming_code
from fastdarts.config.reading import parse_json, read_text
from fastdarts.report.alphas import GroupHistory, read_alphas
from fastdarts.report.alphas_svg import group_svg, largest, legend, margins
from fastdarts.report.candidates import Candidates, read_candidates
from fastdarts.report.chart import Chart
from fastdarts.report.faults import fault_chart
from fastdarts.report.heat import confusion_map
from fastdarts.report.notes import note
from fastdarts.runs.progress import duration
from fastdarts.spaces.darts.genotype import Genotype
from fastdarts.spaces.darts.published import SIZES
from fastdarts.spaces.darts.sizes import Size, size_of
from fastdarts.spaces.registry import read_architecture, space_of

Record = dict[str, Any]

_SEARCH_KEYS = (
    "train_loss",
    "valid_loss",
    "train_accuracy",
    "valid_accuracy",
    "lr",
)

_EVALUATION_KEYS = ("test_accuracy",)

_RESULT_KEYS = ("parameters", "multiply_adds")

_TEST_PORTION = 0.2  # the default of both programs

_LONG = 20  # number of values of a list that are shown


@dataclass(frozen=True)
class Run:
    """Hold the contents of a run's folder, read and checked.

    Attributes:
        folder: the run's folder.
        config, environment: contents of config.json and environment.json.
        epochs: the "epoch" lines of metrics.jsonl, in order, without epochs discarded by a rollback.
        given_up: the "epoch" lines of epochs discarded by a rollback.
        genotype: the architecture that the search found or the evaluation trained.
        result: contents of result.json; None for a search.
        alphas: the groups of alphas.npz and the names of the ops; None for an evaluation.
    """

    folder: Path
    config: Record
    environment: Record
    epochs: list[Record]
    given_up: list[Record]
    genotype: Any
    result: Record | None
    alphas: tuple[list[GroupHistory], list[str]] | None


def write_report(out_dir: Path) -> Path:
    """Write `report.html` into the folder of a search or an evaluation and return its path.

    It reads config.json, environment.json, metrics.jsonl, genotype.json and, for a search, alphas.npz. A folder with a
    result.json is an evaluation's. The page contains its pictures and style and loads nothing.

    Raises: FileNotFoundError or ValueError that names the file (and line and key) that is missing or cannot be used.
    """
    run = _read(out_dir)
    path = out_dir / "report.html"
    try:
        page = template("report.html").render(_page(run))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"report: {out_dir} holds values of a wrong kind in config.json, metrics.jsonl or result.json: {error}"
        ) from error
    write_atomically(path, page)
    return path


def _read(folder: Path) -> Run:
    evaluation = (folder / "result.json").is_file()
    config, environment = (_read_object(folder / f"{name}.json") for name in ("config", "environment"))
    epochs: list[Record] = []
    given_up: list[Record] = []
    for line in _read_epochs(folder / "metrics.jsonl", _EVALUATION_KEYS if evaluation else _SEARCH_KEYS):
        while epochs and epochs[-1]["epoch"] >= line["epoch"]:
            given_up.append(epochs.pop())
        epochs.append(line)
    return Run(
        folder=folder,
        config=config,
        environment=environment,
        epochs=epochs,
        given_up=given_up,
        genotype=_read_genotype(folder / "genotype.json"),
        result=_read_result(folder / "result.json") if evaluation else None,
        alphas=None if evaluation else read_alphas(folder / "alphas.npz"),
    )


def _read_text(path: Path) -> str:
    try:
        return read_text(path)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"report: {error}") from None


def _parse_object(text: str, place: str) -> Record:
    try:
        value = parse_json(text)
    except ValueError as error:
        raise ValueError(f"report: {place} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"report: {place} must be a JSON object; got {text.strip()[:60]!r}")
    return value


def _read_object(path: Path) -> Record:
    return _parse_object(_read_text(path), str(path))


def _read_result(path: Path) -> Record:
    result = _read_object(path)
    for key in _RESULT_KEYS:
        _check_number(result, key, str(path))
    return result


def _check_number(record: Record, key: str, place: str) -> None:
    """Raise a ValueError if record[key] is missing or neither a number nor null; replace NaN and infinity by None."""
    if key not in record:
        raise ValueError(f"report: {place}: the key {key!r} is missing")
    if not (record[key] is None or type(record[key]) in (int, float)):
        raise ValueError(f"report: {place}: {key!r} must be a number; got {record[key]!r}")
    if isinstance(record[key], float) and not math.isfinite(record[key]):
        record[key] = None


def _read_genotype(path: Path) -> Any:
    try:
        return read_architecture(_read_text(path))
    except ValueError as error:
        raise ValueError(f"report: {path}: {error}") from None


def _read_epochs(path: Path, keys: Sequence[str]) -> list[Record]:
    """Read the "epoch" lines of `path` and check that each has `keys`, as numbers or null."""
    epochs = []
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        place = f"{path}, line {number}"
        record = _parse_object(line, place)
        if record.get("event") != "epoch":
            continue
        if type(record.get("epoch")) is not int:
            raise ValueError(f"report: {place}: 'epoch' must be a whole number; got {record.get('epoch')!r}")
        for key in (*keys, "seconds"):
            _check_number(record, key, place)
        if not isinstance(record.get("method"), dict | None):
            raise ValueError(f"report: {place}: 'method' must be a table; got {record['method']!r}")
        epochs.append(record)
    if not epochs:
        raise ValueError(f'report: {path} has no line with "event": "epoch"')
    return epochs


def _page(run: Run) -> dict[str, Any]:
    dataset = str(run.config.get("dataset", "own data"))
    return {
        "title": f"fastdarts {'evaluation' if run.result else _search_words(run)} on {dataset}",
        "folder": str(run.folder),
        "tiles": _evaluation_tiles(run, run.result) if run.result else _search_tiles(run),
        "stopped": _stopped(run),
        "commands": _commands(run),
        "cells": Markup(space_of(run.genotype).svg(run.genotype)),
        "genotype": run.genotype.to_json(),
        "charts": _charts(run),
        "note": note,
        "alphas": _alphas(run),
        "margins": [margins(group, run.alphas[1]) for group in run.alphas[0]] if run.alphas else [],
        "confusion": _confusion(run.result) if run.result else None,
        "published": _published(run),
        "candidates": _candidates(run),
        "tables": {
            **({"Result": _rows(_plain(run.result))} if run.result else {}),
            **({"Tabulated accuracy (%)": rows} if (rows := _benchmark_rows(run)) else {}),
            **({"Method, in the last epoch": rows} if (rows := _method_rows(run)) else {}),
            "Time": _time_rows(run),
            "Configuration": _rows(run.config),
            "Environment": _rows(run.environment),
        },
    }


def _alphas(run: Run) -> dict[str, Any] | None:
    """Return the legend of the op weights, and of each group the title and the picture."""
    if run.alphas is None:
        return None
    groups, primitives = run.alphas
    top = largest(groups)
    return {
        "legend": legend(primitives),
        "groups": [(group.title, group_svg(group, primitives, top)) for group in groups],
        "weighted": any(group.row_weights is not None for group in groups),
    }


def _plain(result: Record) -> Record:
    """Return the numbers of a result that a table can show."""
    return {name: value for name, value in result.items() if name != "confusion"}


def _confusion(result: Record) -> dict[str, Any] | None:
    """Return the confusion matrix as a map, and the accuracy of each class, the worst first."""
    counts, classes = result.get("confusion"), result.get("classes")
    if not counts or not classes or len(counts) != len(classes):
        return None
    shares: list[tuple[str, float | None]] = []
    for place, (name, row) in enumerate(zip(classes, counts, strict=True)):
        shares.append((name, row[place] / sum(row) if sum(row) else None))
    shares.sort(key=lambda pair: 2.0 if pair[1] is None else pair[1])
    return {"map": confusion_map(counts, classes), "classes": [(name, _percent(share)) for name, share in shares]}


def _candidates(run: Run) -> Candidates | None:
    """Return the architectures that the method compared at the end, if it did."""
    path = run.folder / "candidates.json"
    return read_candidates(_read_object(path), str(path)) if path.is_file() else None


_NEIGHBOURS = 5  # published cells beside the run's


def _published(run: Run) -> list[tuple[str, str, str]]:
    """Return the published cells whose networks are nearest in size to the run's, and the run's, by size.

    All are sizes of the papers' CIFAR-10 network (36 channels, 20 cells). Empty for other spaces.
    """
    if not isinstance(run.genotype, Genotype):
        return []
    ours = _size(run.genotype.to_json())
    nearest = sorted(SIZES.items(), key=lambda item: abs(item[1][0] - ours.parameters))[:_NEIGHBOURS]
    rows = sorted([*nearest, ("this cell", tuple(ours))], key=lambda item: item[1][0])
    return [(name, f"{size[0] / 1e6:.2f} million", f"{size[1] / 1e6:.0f} million") for name, size in rows]


@cache
def _size(genotype: str) -> Size:
    """Return the size of a genotype's CIFAR-10 network; it takes a second to count."""
    return size_of(Genotype.from_json(genotype))


def _search_words(run: Run) -> str:
    method = run.config.get("method", "darts")
    return "search" if method == "darts" else f"search by {method}"


def _benchmark_rows(run: Run) -> list[tuple[str, str]]:
    """Return the accuracies of the found architecture in a benchmark's table, if the search was given one."""
    path = run.folder / "benchmark.json"
    return _rows(_read_object(path)) if path.is_file() else []


def _method_rows(run: Run) -> list[tuple[str, str]]:
    """Return what the method measured in the last epoch."""
    return _rows(run.epochs[-1].get("method") or {})


def _stopped(run: Run) -> tuple[int, str] | None:
    """Return the epoch, counted from 1, after which the method ended the search, and the reason; None if it did not."""
    last = run.epochs[-1]
    return (last["epoch"] + 1, str(last["stopped"])) if last.get("stopped") else None


def _search_tiles(run: Run) -> list[tuple[str, str]]:
    last = run.epochs[-1]
    perplexity = last.get("valid_perplexity")
    first = (
        ("validation accuracy", _percent(last["valid_accuracy"]))
        if perplexity is None
        else ("validation perplexity", f"{perplexity:.1f}")
    )
    return [
        first,
        ("validation loss", "–" if last["valid_loss"] is None else f"{last['valid_loss']:.4g}"),
        ("epochs", f"{len(run.epochs)} of {_shown(run.config.get('epochs'))}"),
        ("time", duration(_seconds(run))),
        *((_label(run, name), f"{value:g}") for name, value in space_of(run.genotype).numbers(run.genotype).items()),
    ]


def _label(run: Run, key: str) -> str:
    """Return a readable name for a number's key: "skips, normal cell" for "skips_normal"."""
    what, _, group = key.partition("_")
    return f"{what}, {_titles(run)[group]}" if group in _titles(run) else key.replace("_", " ")


def _titles(run: Run) -> dict[str, str]:
    """Return the titles of the groups of the run's space."""
    return {name: group.title for name, group in space_of(run.genotype).groups.items()}


def _evaluation_tiles(run: Run, result: Record) -> list[tuple[str, str]]:
    accuracy = run.epochs[-1]["test_accuracy"]
    balanced, latency = result.get("balanced_accuracy"), result.get("latency_seconds") or {}
    measured = [("test error", _percent(None if accuracy is None else 1 - accuracy))]
    measured.append(("test accuracy", _percent(accuracy)))
    if balanced is not None:
        measured.append(("balanced accuracy", _percent(balanced)))
    if "test_perplexity" in result:
        parts = {"test": result["test_perplexity"], "validation": result.get("valid_perplexity")}
        measured = [(f"{name} perplexity", _shown(value)) for name, value in parts.items()]
    counts = {"parameters": "parameters", "multiply-adds": "multiply_adds"}
    return [
        *measured,
        *((name, "–" if result[key] is None else f"{result[key]:,}") for name, key in counts.items()),
        *((f"latency, {size} image{'s' * (size != '1')}", f"{1000 * value:.3g} ms") for size, value in latency.items()),
        *_cost_tiles(result.get("cost") or {}),
        ("epochs", f"{len(run.epochs)} of {_shown(run.config.get('epochs'))}"),
        ("time", duration(_seconds(run))),
    ]


def _cost_tiles(cost: Record) -> list[tuple[str, str]]:
    """Return the cost that a table predicts and the measured one, those that are known."""
    known = [(name, cost.get(name)) for name in ("predicted", "measured")]
    return [(f"{name} cost", f"{value:.3g} {cost['unit']}") for name, value in known if value is not None]


def evaluate_command(search: Mapping[str, Any], out: Path) -> list[str]:
    """Return the command line, as a list of words, that trains the architecture which a search found.

    Args:
        search: the search's config, as a mapping.
        out: the search's folder.
    """
    size, portion = search.get("image_size"), search.get("test_portion", _TEST_PORTION)
    flags = {
        "--dataset": search.get("dataset"),
        "--data": None if search.get("dataset") in ("digits", "pydoc") else search.get("data"),
        "--image-size": "x".join(map(str, size)) if isinstance(size, list | tuple) else None,
        "--test-portion": portion if search.get("dataset") == "imagefolder" and portion != _TEST_PORTION else None,
    }
    given = [str(word) for flag, value in flags.items() if value is not None for word in (flag, value)]
    return ["python", "-m", "fastdarts.evaluate", *given, "--genotype", str(out / "genotype.json")]


def _commands(run: Run) -> list[tuple[str, list[str]]]:
    """Return what to do next, each step with its command line as a list of words.

    The list is empty for data given from Python, which no flag can name.
    """
    config, out = run.config, run.folder
    if config.get("dataset") == "custom":
        return []
    python = ["python", "-m", "fastdarts.search" if run.result is None else "fastdarts.evaluate"]
    commands = []
    left = config["epochs"] - len(run.epochs) if isinstance(config.get("epochs"), int) else 0
    if left > 0 and _stopped(run) is None:
        commands.append(
            (
                f"Continue for the {left} epochs that are left",
                [*python, "--resume", "--out", str(out), *flags_naming_code(config)],
            )
        )
    genotype = ["--genotype", str(out / "genotype.json")]
    if run.result is None:
        commands.append(("Train the found network from scratch", evaluate_command(config, out)))
    else:
        weights = ["--test-only", "--checkpoint", str(out / "checkpoint.pt"), "--export", str(out / "network")]
        again = [*python, "--config", str(out / "config.json"), *genotype, *weights]
        commands.append(("Test the trained network again and export it (torch.export and ONNX)", again))
    return [(what, [quoting.quote(word) for word in command]) for what, command in commands]


def _charts(run: Run) -> list[Chart]:
    """Return the charts that have a value in at least one epoch."""
    epochs, titles = [record["epoch"] + 1 for record in run.epochs], _titles(run)
    wanted: list[tuple[str, dict[str, str], dict[str, Any]]] = [
        ("Loss", {"training": "train_loss", "validation": "valid_loss", "test": "test_loss"}, {}),
        (
            "Accuracy",
            {
                "training": "train_accuracy",
                "validation": "valid_accuracy",
                "test": "test_accuracy",
                "under faults": "fault_accuracy",
            },
            {"percent": True},
        ),
        (
            "Perplexity",
            {"training": "train_perplexity", "validation": "valid_perplexity", "the found cell": "discrete_perplexity"},
            {},
        ),
        ("Entropy of the op weights (nats)", {title: f"entropy_{name}" for name, title in titles.items()}, {}),
        ("Skip connections", {title: f"skips_{name}" for name, title in titles.items()}, {"integer": True}),
        ("Learning rate", {"weights": "lr"}, {}),
        ("Images per second", {"training": "images_per_second"}, {"zero": True}),
        ("Words per second", {"training": "words_per_second"}, {"zero": True}),
        ("Discretisation error", {"search network − cells cut out of it": "discretisation_error"}, {"percent": True}),
    ]
    charts = []
    for title, keys, style in wanted:
        columns = {name: [record.get(key) for record in run.epochs] for name, key in keys.items()}
        series = {name: column for name, column in columns.items() if any(value is not None for value in column)}
        if series:
            charts.append(Chart(title, epochs, series, **style))
    path = run.folder / "faults.json"
    faults = [fault_chart(_read_object(path), str(path))] if path.is_file() else []
    return [*faults, *charts, *_method_charts(run, epochs)]


def _method_charts(run: Run, epochs: list[int]) -> list[Chart]:
    """Return charts of the numbers that the method adds.

    Numbers whose names begin with the same word share a chart. A number called NAME_epoch marks that epoch in all
    charts.
    """
    records = [record.get("method") or {} for record in run.epochs]
    everything = [*records, *(record.get("method") or {} for record in run.given_up)]
    marks = dict.fromkeys(
        (value, name.removesuffix("_epoch").replace("_", " "))
        for record in everything
        for name, value in record.items()
        if name.endswith("_epoch")
    )
    groups: dict[str, dict[str, list[float | None]]] = {}
    for name in dict.fromkeys(name for record in records for name in record):
        values = [record.get(name) for record in records]
        if not name.endswith("_epoch") and all(type(value) in (int, float, NoneType) for value in values):
            groups.setdefault(name.partition("_")[0], {})[name.replace("_", " ")] = values
    charts = []
    for first, series in groups.items():
        title = first if len(series) > 1 else next(iter(series))
        whole = all(type(value) is not float for values in series.values() for value in values)
        charts.append(Chart(title.capitalize(), epochs, series, integer=whole, marks=list(marks)))
    return charts


def _seconds(run: Run) -> float:
    return math.fsum(record["seconds"] or 0 for record in (*run.epochs, *run.given_up))


def _time_rows(run: Run) -> list[tuple[str, str]]:
    """Return the total time, that of each phase with a key such as alpha_seconds, and the median time of an epoch."""
    total = _seconds(run)
    rows = [("all epochs", duration(total))]
    phases = dict.fromkeys(key for record in run.epochs for key in record if key.endswith("_seconds"))
    for phase in phases:
        seconds = math.fsum(record.get(phase) or 0 for record in run.epochs)
        share = f" ({100 * seconds / total:.0f} %)" if total else ""
        rows.append((phase.removesuffix("_seconds").replace("_", " "), duration(seconds) + share))
    typical = statistics.median(record["seconds"] or 0 for record in run.epochs)
    return [*rows, ("an epoch (median)", duration(typical) if typical >= 10 else f"{typical:.2f} s")]


def _rows(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return the names and values of a record; values of inner objects are named "outer.inner"."""
    rows = []
    for name, value in record.items():
        inner = isinstance(value, dict) and value
        rows += _rows(value, f"{prefix}{name}.") if inner else [(f"{prefix}{name}", _shown(value))]
    return rows


def _shown(value: Any) -> str:
    if value is None or value in ([], {}):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        more = f", … ({len(value)})" if len(value) > _LONG else ""
        return ", ".join(map(_shown, value[:_LONG])) + more
    return str(value)


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.2f} %"


@cache
def template(name: str) -> jinja2.Template:
    """Return the template `name` of this folder, such as "report.html"."""
    settings = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return settings.get_template(name)
