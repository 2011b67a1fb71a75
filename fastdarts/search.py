"""Architecture search: `python -m fastdarts.search`, or `search(SearchConfig(...))` from Python."""

if __name__ == "__main__":  # before the imports, so that a signal while they run is answered
    import sys

    from fastdarts.cli import run

    sys.exit(run("search", sys.argv[1:], "python -m fastdarts.search"))

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fastdarts import data
from fastdarts.config import quoting
from fastdarts.config.command_line import build_parser
from fastdarts.config.files import write_atomically
from fastdarts.data import ImageSet
from fastdarts.data.images import fraction_of
from fastdarts.data.text import load_corpus
from fastdarts.methods import find
from fastdarts.methods.darts_pt import DartsPt
from fastdarts.methods.scored import pareto_front
from fastdarts.runs import checkpoint, movement, resources
from fastdarts.runs.console import LOGGER
from fastdarts.runs.device import determinism
from fastdarts.runs.faults import fault_curve
from fastdarts.runs.folder import check_out, run_folder, taken_up
from fastdarts.runs.forecast import forecast_line, out_of_memory_explained
from fastdarts.runs.images import Images, open_images, outputs_for, read_images, read_second_images
from fastdarts.runs.interrupt import stop_requests, stops_at_once
from fastdarts.runs.keeper import Keeper, asked_to_end, how_to_continue, train_epoch
from fastdarts.runs.kernels import cell_kernels_used, kernels_used, synchronises
from fastdarts.runs.launch import Team, joined, rank_of_process
from fastdarts.runs.lock import releases_folders
from fastdarts.runs.loggers import Logger
from fastdarts.runs.program import run_cli
from fastdarts.runs.progress import Progress, json_number
from fastdarts.runs.resuming import resume
from fastdarts.runs.search_config import SearchConfig
from fastdarts.runs.search_state import SearchState
from fastdarts.runs.state import Metrics, check_divides
from fastdarts.runs.text_search_state import TextSearchState
from fastdarts.spaces import registry as spaces
from fastdarts.spaces.space import has_kernels, material_of
from fastdarts.spaces.supernet import Supernet
from fastdarts.tasks.classification import Loss

__all__ = ["SearchConfig", "SearchResult", "search"]

Callback = Callable[[Metrics, Supernet], object]


@dataclass(frozen=True)
class SearchResult:
    """Hold the result of a search.

    Attributes:
        genotype: the architecture that the method derives at the end; for most, of the last epoch's alphas.
        alphas: [rows, ops] of each group, raw, on the CPU; -inf where a row has not (any more) that op.
        out_dir: the folder with everything else.
        metrics: a dict per epoch, as the lines of metrics.jsonl.
        seconds: of all epochs and of what the method does after the last.
        peak_bytes: largest memory, see `resources.peak_bytes`; of a resumed search, since it went on.
        stopped: the method's reason to end before the last epoch, if it did.
        tabulated: accuracies in percent of the architecture in the file that `config.benchmark` names; empty without.
    """

    genotype: Any
    alphas: dict[str, Tensor]
    out_dir: Path
    metrics: list[Metrics]
    seconds: float
    peak_bytes: int
    stopped: str | None = None
    tabulated: dict[str, float] = field(default_factory=dict)

    @property
    def alphas_normal(self) -> Tensor:
        """Return the alphas of DARTS' normal cell."""
        return self.alphas["normal"]

    @property
    def alphas_reduce(self) -> Tensor:
        """Return the alphas of DARTS' reduction cell."""
        return self.alphas["reduce"]


@releases_folders
def search(
    config: SearchConfig,
    train: Images | None = None,
    valid: Images | None = None,
    loss: Loss | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
) -> SearchResult:
    """Search for a cell (Liu et al., arXiv:1806.09055, algorithm 1) and write the run's folder.

    Processes that torchrun has started search together: each computes its share of every batch, the first writes.

    Args:
        config: see SearchConfig.
        train: your own images instead of those of config.dataset: a map-style Dataset of (image, target), or ImageData.
        valid: those of the alphas' half; left out, `train` is split by config.train_portion.
        loss: loss(logits [N, classes], targets) -> scalar; cross entropy if left out.
        callbacks: each is called after every epoch with the epoch's metrics and the network; one that returns True
            (itself, not another true value) ends the search there.
        loggers: get the numbers of each epoch, beside TensorBoard, which writes into the folder where it is installed;
            see `fastdarts.runs.loggers.Logger`. They are closed at the end.

    Raises:
        ValueError, TypeError, FileNotFoundError: input that cannot be used, before any work is done.
        MemoryError: names the largest batch that fits.
        FloatingPointError: a loss or gradient is not finite; says where. The last checkpoint stays.
        DiskFullError: names the file.
        Interrupted: SIGINT, SIGTERM, SIGHUP or SIGUSR1 came; the state is saved.
        RankLostError: another process of this search has died or raised; the last checkpoint stays.
    """
    if train is not None:
        config = dataclasses.replace(config, dataset="custom")
    with joined(config.device) as team:
        config = taken_up(config, team)
        found = _search(config, team, train, valid, loss, callbacks, loggers)
        if config.select == "derive":
            return found
        selection = team.ranks.from_first(selection_of(config, found.out_dir))  # which looks into the folder
        chosen = _search(selection, team, train, valid, loss, callbacks, loggers)
        if team.ranks.first:
            _write_architecture(chosen.genotype, chosen.tabulated, found.out_dir)
    seconds, metrics = found.seconds + chosen.seconds, [*found.metrics, *chosen.metrics]
    return dataclasses.replace(chosen, out_dir=found.out_dir, seconds=seconds, metrics=metrics)


def _search(
    config: SearchConfig,
    team: Team,
    train: Images | None,
    valid: Images | None,
    loss: Loss | None,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
) -> SearchResult:
    device, ranks = team.device, team.ranks
    check_divides(config.batch_size, ranks)
    if ranks.first:
        check_out(config)
    space = spaces.find(config.space, config.primitives, config.space_options)
    table = None if config.benchmark is None else space.table(config.benchmark)
    text = material_of(space) == "text"
    if text and not ranks.alone:
        raise ValueError(f"space {config.space!r} is searched by one process; got {ranks.size}")
    if text and config.cost is not None:
        raise ValueError("cost is that of networks that read images; leave it out for texts")
    synchronised = synchronises(config, ranks)
    kernels = cell_kernels_used(device, config.backend) if text else kernels_used(device, config.backend, synchronised)
    if not has_kernels(space, device.type):
        kernels = f"plain PyTorch modules on {device}: the ops of space {config.space!r} have no kernels"
    LOGGER.info("kernels: %s", kernels)
    make_state = _on_text(config) if text else _on_images(config, team, train, valid, loss)
    with determinism(config.deterministic), stop_requests() as stop:
        out = run_folder(config, "search", team)
        state = make_state(device)
        if config.resume:
            resume(state, out)
        elif isinstance(state.method, DartsPt):
            saved = checkpoint.load(out.parent / "checkpoint.pt", state.kind) if ranks.first else {}
            state.take_over(ranks.from_first(saved))
        if device.type == "cuda" and not text:
            LOGGER.info("preparing the kernels; those new to this GPU are compiled, which may take minutes")
        share = config.batch_size // ranks.size
        resources.compile_ahead(state.trial_step, share, device)
        forecast = resources.forecast(state.trial_step, share, device, ranks.size)
        progress = Progress(config.epochs, state.steps_per_epoch, state.steps_done)
        with Keeper(state, out, stop, kernels, loggers) as keeper, progress:
            LOGGER.info(forecast_line(state, forecast, device))
            for note in movement.before(state):
                LOGGER.info(note)
            for group in state.network.untrained():
                LOGGER.info(f"note: so few layers have no {group.title}; its alphas are not trained")
            with out_of_memory_explained(forecast, config.batch_size, device):
                _run_epochs(state, progress, keeper, callbacks)
            for note in movement.after(state):
                LOGGER.info(note)
    with stops_at_once(f"while results were written; to write them: {how_to_continue(state, out)}"):
        start = time.monotonic()
        genotype = ranks.from_first(state.method.result(state))
        seconds = sum(metrics["seconds"] for metrics in state.metrics) + time.monotonic() - start
        peak = resources.peak_bytes(device)
        tabulated = table(genotype) if table is not None else {}
        curve = None
        if config.faults is not None and state.validation is not None:
            curve = fault_curve(state, config.faults, state.validation)
        if ranks.first:
            if curve is not None:
                curve.save(out / "faults.json")
                LOGGER.info("the search network under faults: %s", curve)
            _write_results(state, genotype, tabulated, out)
    return SearchResult(genotype, state.alphas(), out, state.metrics, seconds, peak, state.method.stopped, tabulated)


def selection_of(config: SearchConfig, out: Path) -> SearchConfig:
    """Return the config of the selection that follows a search, in the folder `selection` of that search's `out`.

    The learning rate begins at a tenth of the search's.
    """
    before = dataclasses.replace(config, select="derive", resume=False, out=None)
    search_values = json.dumps(dataclasses.asdict(before), default=str)
    folder = out / "selection"
    return dataclasses.replace(
        before,
        method=f"{DartsPt.__module__}:{DartsPt.__name__}",
        method_options=config.select_options | {"search": search_values},
        epochs=config.select_options["epochs"],
        order=1,
        lr=config.lr / 10,
        lr_min=min(config.lr_min, config.lr / 10),
        alpha_warmup=0.0,
        op_dropout=0.0,
        prune_below=0.0,
        out=folder,
        resume=(folder / "config.json").is_file(),
    )


def _on_images(
    config: SearchConfig, team: Team, train: Images | None, valid: Images | None, loss: Loss | None
) -> Callable[[torch.device], SearchState]:
    """Read the images; return what makes the state of a search on them, on a device."""
    weights_half, alphas_half = halves(config, train, valid, loss, team.device)
    outputs_for(weights_half)  # says what is wrong with the classes before the run's folder is made

    def make(device: torch.device) -> SearchState:
        alphas = None if alphas_half is None else alphas_half.to(device)
        return SearchState(config, weights_half.to(device), alphas, loss or cross_entropy, device, team.ranks)

    return make


def _on_text(config: SearchConfig) -> Callable[[torch.device], SearchState]:
    """Read the texts; return what makes the state of a search on them, on a device."""
    corpus = load_corpus(config.dataset, config.data)
    LOGGER.info(corpus.line())
    return lambda device: TextSearchState(config, corpus.to(device), device)


def _run_epochs(state: SearchState, progress: Progress, keeper: Keeper, callbacks: Sequence[Callback]) -> None:
    while state.epoch < state.config.epochs and state.method.stopped is None:
        train_epoch(state, progress, keeper)
        metrics = _epoch_metrics(state, keeper)
        state.next_epoch(metrics)
        keeper.after_epoch(metrics, _histograms(state))
        if state.ranks.first:
            _write_alphas(state, keeper.out)
        progress.end_epoch(metrics["epoch"], _epoch_line(metrics))
        if state.method.stopped is not None:
            LOGGER.info("stopped: %s", state.method.stopped)
        if asked_to_end(callbacks, metrics, state.network, state.ranks):
            return


def _epoch_metrics(state: SearchState, keeper: Keeper) -> Metrics:
    training = state.read()
    start = time.monotonic()
    valid_loss, valid_accuracy = state.validate(keeper.stop_if_asked)
    genotype = state.method.genotype(state.network)
    discrete = state.method.discrete(state.network, genotype)
    discrete_loss, discrete_accuracy = state.validate(keeper.stop_if_asked, discrete)
    rate = f"{state.unit}_per_second"
    entropies = {f"entropy_{name}": _entropy(score) for name, score in state.method.scores(state.network).items()}
    metrics = {
        "event": "epoch",
        "epoch": state.epoch,
        "lr": state.learning_rate(),
        "train_loss": training["train_loss"],
        "train_accuracy": json_number(training["train_accuracy"]),
        "valid_loss": json_number(valid_loss),
        "valid_accuracy": json_number(valid_accuracy),
        "discretisation_error": json_number(valid_accuracy - discrete_accuracy),
        rate: training[rate],
        **state.numbers({"train": training["train_loss"], "valid": valid_loss, "discrete": discrete_loss}),
        "genotype": json.loads(genotype.to_json()),
        **state.method.space.numbers(genotype),
        **state.cost_numbers(genotype),
        **state.fault_numbers(keeper.stop_if_asked),
        **entropies,
    }
    state.method.end_epoch(state, metrics)
    state.method.stopped = state.ranks.from_first(state.method.stopped)
    return metrics | {
        "method": state.method.metrics(state.network),
        "stopped": state.method.stopped,
        "seconds": state.seconds + time.monotonic() - start,
    }


def _histograms(state: SearchState) -> dict[str, Tensor]:
    latest = state.history[-1]
    return {f"alphas_{name}": latest[name][latest[name].isfinite()] for name in state.network.groups}


def halves(
    config: SearchConfig, train: Images | None, valid: Images | None, loss: Loss | None, device: torch.device
) -> tuple[ImageSet, ImageSet | None]:
    """Return the images of the weight steps and of the alpha steps; all and none where alphas learn from the first.

    Args:
        config: the search's.
        train, valid, loss: as of `search`.
        device: of the run.

    Raises: ValueError, TypeError or FileNotFoundError for images that cannot be used.
    """
    if train is None:
        if valid is not None:
            raise ValueError("valid was given without train")
        if config.dataset == "custom":
            raise ValueError("dataset 'custom' is for images given from Python: search(config, train=...)")
        images = open_images(config, "train", device)
    else:
        images = read_images(train, loss)
    if config.search_fraction < 1:
        images = fraction_of(images, config.search_fraction, config.seed)
    if valid is None and find(config.method).level in ("single", "coordinate"):
        return images, None
    if valid is None:
        return data.split(images, config.train_portion, config.seed)
    return images, read_second_images("valid", valid, images, loss)


def _write_alphas(state: SearchState, out: Path) -> None:
    tables: dict[str, Any] = {
        name: np.stack([epoch[name].numpy() for epoch in state.history]) for name in state.history[0]
    }
    tables["primitives"] = np.array(state.network.primitives)
    tables["groups"] = np.array(list(state.network.groups))
    for name, group in state.network.groups.items():
        tables[f"title_{name}"] = np.array(group.title)
        if group.ends:
            tables[f"ends_{name}"] = np.array(group.ends)
    write_atomically(out / "alphas.npz", lambda file: np.savez(file, **tables))


def _write_results(state: SearchState, genotype: Any, tabulated: dict[str, float], out: Path) -> None:
    from fastdarts.report.alphas import draw_alphas  # imports matplotlib, which takes a second

    _write_alphas(state, out)
    draw_alphas(out / "alphas.npz")
    if state.method.compared:
        write_atomically(out / "candidates.json", json.dumps(_candidates(state, genotype), indent=1) + "\n")
    _write_architecture(genotype, tabulated, out)


def _write_architecture(genotype: Any, tabulated: dict[str, float], out: Path) -> None:
    """Write the architecture of a run, its picture, its tabulated accuracies and the report."""
    from fastdarts.report import run_report
    from fastdarts.report.pictures import write_picture

    write_atomically(out / "genotype.json", genotype.to_json() + "\n")
    if tabulated:
        write_atomically(out / "benchmark.json", json.dumps(tabulated, indent=2) + "\n")
    write_picture(genotype, out)
    run_report.write_report(out)


def _candidates(state: SearchState, genotype: Any) -> dict[str, Any]:
    """Return the architectures that the method compared: their scores and costs, and which are on the Pareto front."""
    front = {one.architecture.to_json() for one in pareto_front(state.method.compared)}
    return {
        "unit": None if state.costs is None else state.costs.unit,
        "found": json.loads(genotype.to_json()),
        "measured": state.method.compared_by,
        "candidates": [
            {
                "architecture": json.loads(text := one.architecture.to_json()),
                "score": one.score,
                "cost": one.cost,
                "front": text in front,
            }
            for one in state.method.compared
        ],
    }


def _epoch_line(metrics: Metrics) -> str:
    accuracies = [
        f"{name} accuracy {100 * metrics[f'{name}_accuracy']:.1f} %"
        for name in ("train", "valid")
        if metrics[f"{name}_accuracy"] is not None
    ]
    losses = [f"{name} loss {metrics[f'{name}_loss']:.3f}" for name in ("train", "valid") if metrics[f"{name}_loss"]]
    perplexities = [
        f"{name} perplexity {metrics[f'{name}_perplexity']:.1f}"
        for name in ("train", "valid", "discrete")
        if metrics.get(f"{name}_perplexity") is not None
    ]
    skips = "+".join(f"{value:.0f}" for name, value in metrics.items() if name.startswith("skips_"))
    unit = "images" if "images_per_second" in metrics else "words"
    numbers = [(name, value) for name, value in metrics["method"].items() if isinstance(value, int | float)]
    costs = [(name, metrics[name]) for name in ("cost", "expected_cost") if name in metrics]
    parts = [
        *losses,
        *accuracies,
        *perplexities,
        *([f"{skips} skips"] if skips else []),
        _entropies([value for name, value in metrics.items() if name.startswith("entropy_")]),
        *(f"{name.replace('_', ' ')} {value:.4g}" for name, value in [*costs, *numbers]),
        f"{metrics[f'{unit}_per_second']:.0f} {unit}/s",
    ]
    return ", ".join(parts)


def _entropies(values: Sequence[float]) -> str:
    """Return the entropies of groups as text; their mean where these are many."""
    shown = "/".join(f"{value:.3f}" for value in values)
    return f"entropy {shown}" if len(values) <= 4 else f"mean entropy {sum(values) / len(values):.3f}"


def _entropy(weights: Tensor) -> float:
    """Return the mean entropy of an edge's op weights, scaled to sum 1, in nats; ln(ops) at the start of DARTS."""
    shares = weights / weights.sum(-1, keepdim=True).clamp_min(1e-30)
    return float(-torch.xlogy(shares, shares).sum(-1).mean()) + 0.0  # not -0


_DESCRIPTION = (__doc__ or "").replace("`", "'")


def parser(prog: str = SearchState.program) -> argparse.ArgumentParser:
    """Make the program's parser."""
    return build_parser(SearchConfig, prog=prog, description=_DESCRIPTION)


def main(argv: Sequence[str] | None = None, prog: str = SearchState.program) -> int:
    return run_cli(SearchConfig, _run, argv, prog, _DESCRIPTION)


def _run(config: SearchConfig) -> int:
    result = search(config)
    if rank_of_process():
        return 0
    if config.dataset == "digits":
        LOGGER.info(
            "digits: scikit-learn's 1,797 real 8x8 images and a small preset. CIFAR-10: --dataset cifar10 --data DIR; "
            "your own images: --dataset imagefolder --data DIR (see --help)"
        )
    print(f"genotype: {result.genotype}")
    for name, accuracy in result.tabulated.items():
        print(f"benchmark, {name.replace('_', ' ')} accuracy: {accuracy:.2f} %")
    print(f"results: {result.out_dir}")
    from fastdarts.report.run_report import evaluate_command  # imported by search(), see _write_results

    command = quoting.join(evaluate_command(dataclasses.asdict(config), result.out_dir))
    LOGGER.info("next, train the found network from scratch: %s", command)
    return 0
