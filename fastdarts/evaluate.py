"""Training of a discrete network from scratch: `python -m fastdarts.evaluate --genotype NAME`, or `evaluate(...)`."""

if __name__ == "__main__":  # before the imports, so that a signal while they run is answered
    import sys

    from fastdarts.cli import run

    sys.exit(run("evaluate", sys.argv[1:], "python -m fastdarts.evaluate"))

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdarts.config.command_line import build_parser
from fastdarts.config.files import write_atomically
from fastdarts.config.options import option
from fastdarts.data import ImageSet
from fastdarts.data.images import first_images
from fastdarts.data.modern import Transform
from fastdarts.data.pixels import FULL_RANGE
from fastdarts.evaluate_text import TextEvalResult, evaluate_text
from fastdarts.export import check_export_packages, export_trained
from fastdarts.runs import measures, resources
from fastdarts.runs.begin_from import begin_from
from fastdarts.runs.console import LOGGER
from fastdarts.runs.costs import load_cost
from fastdarts.runs.device import determinism
from fastdarts.runs.eval_config import EvalConfig
from fastdarts.runs.eval_state import EvalState
from fastdarts.runs.faults import FaultCurve, fault_curve
from fastdarts.runs.folder import check_out, check_writable, run_folder, taken_up
from fastdarts.runs.forecast import forecast_line, out_of_memory_explained
from fastdarts.runs.images import Images, open_images, outputs_for, read_images, read_second_images
from fastdarts.runs.interrupt import stop_requests, stops_at_once
from fastdarts.runs.keeper import Keeper, asked_to_end, how_to_continue, train_epoch
from fastdarts.runs.kernels import kernels_used, synchronises
from fastdarts.runs.launch import Team, joined, rank_of_process
from fastdarts.runs.lock import releases_folders
from fastdarts.runs.loggers import Logger
from fastdarts.runs.predicted import CostComparison, predicted_cost, with_measured
from fastdarts.runs.program import run_cli
from fastdarts.runs.progress import Progress, json_number
from fastdarts.runs.resuming import resume
from fastdarts.runs.state import Metrics, check_divides
from fastdarts.runs.trained import TrainedNetwork
from fastdarts.runs.weights import load_weights
from fastdarts.spaces.darts.cell_genotypes import CellGenotypes
from fastdarts.spaces.darts.discrete import count_multiply_adds, count_parameters
from fastdarts.spaces.network import DiscreteNetwork
from fastdarts.spaces.registry import architecture_of, load_architecture, read_architecture, space_of
from fastdarts.spaces.space import material_of
from fastdarts.tasks.classification import Loss

__all__ = ["EvalConfig", "EvalResult", "evaluate"]

_LATENCY_BATCHES = 1, 64
_CONFUSION_CLASSES = 100  # of larger matrices nothing can be seen

Callback = Callable[[Metrics, DiscreteNetwork], object]


@dataclass(frozen=True)
class EvalResult:
    """Hold the result of an evaluation.

    Attributes:
        test_error: percent of the test images classified wrong; NaN without classes.
        test_accuracy: share of those classified right.
        test_loss: mean over the test images.
        parameters: weights of the network as it is used.
        parameters_with_auxiliary: and of the auxiliary head, which only training uses.
        multiply_adds: of convolutions and linear layers, for one image.
        epochs: of training; 0 if it was only tested.
        out_dir: the folder with everything else; None if it was only tested.
        metrics: a dict per epoch, as the lines of metrics.jsonl.
        network: in eval mode; takes normalised images.
        exported: the files of config.export.
        confusion: [classes, classes] counts of the test images by their class and the one they are taken for; None
            without classes.
        balanced_accuracy: mean of the classes' accuracies on the test images; NaN without classes.
        latency: seconds of a forward pass for batches of 1 and of 64 images, on the run's device; empty if the network
            was only tested.
        cost: what the table of config.cost predicts, and what was measured; None without a table.
        faults: accuracy on the test images under config.faults, by their rate; None without.
    """

    test_error: float
    test_accuracy: float
    test_loss: float
    parameters: int
    parameters_with_auxiliary: int
    multiply_adds: int
    epochs: int
    out_dir: Path | None
    metrics: list[Metrics]
    network: DiscreteNetwork
    exported: tuple[Path, ...] = ()
    confusion: Tensor | None = None
    balanced_accuracy: float = math.nan
    latency: Mapping[int, float] = field(default_factory=dict)
    cost: CostComparison | None = None
    faults: FaultCurve | None = None


@releases_folders
def evaluate(
    genotype: Any,
    config: EvalConfig,
    train: Images | None = None,
    test: Images | None = None,
    loss: Loss | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    transform: Transform | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> EvalResult:
    """Train the genotype's network on all training images and measure it on the test images (Liu et al., section 3.2).

    The test images are measured after every epoch and decide nothing; the last epoch is reported. Processes that
    torchrun has started train together: each computes its share of every batch, the first writes.

    Args:
        genotype: what a search found, of any space.
        config: see EvalConfig. With test_only nothing is trained or written but the export.
        train, test: your own images instead of those of config.dataset: map-style Datasets of (image, target), or
            ImageData.
        loss: loss(logits [N, classes], targets) -> scalar; cross entropy if left out.
        transform: called with each batch of training images [N, C, H, W] before they are augmented; returns images of
            the same shape and dtype. Its random choices are repeatable if they come from torch's global generator.
        callbacks, loggers: as of `search`; a callback that returns True ends the training there.
        weights: the state_dict of a network of this genotype, which is measured and written as it is, not trained.

    Raises:
        ValueError, TypeError, FileNotFoundError, ImportError: input that cannot be used, before any work is done.
        MemoryError: names the largest batch that fits.
        FloatingPointError: a loss or gradient is not finite; says where. The last checkpoint stays.
        DiskFullError: names the file.
        Interrupted: SIGINT, SIGTERM, SIGHUP or SIGUSR1 came; the state is saved.
        RankLostError: another process of this training has died or raised; the last checkpoint stays.
    """
    if config.cost is not None:
        predicted_cost(load_cost(config.cost), architecture_of(genotype), config.layers)  # the table may not fit
    if config.export is not None:
        check_export_packages(config.export)
        check_writable("export", config.export.parent)
    if train is not None:
        config = dataclasses.replace(config, dataset="custom")
    genotype = architecture_of(genotype)
    if material_of(space_of(genotype)) == "text":
        raise ValueError("genotype is of a language model: evaluate_text(genotype, config) trains it")
    with joined(config.device) as team:
        given = train, test, loss, callbacks, loggers, transform, weights
        return _evaluate(genotype, taken_up(config, team), team, *given)


def _evaluate(
    genotype: Any,
    config: EvalConfig,
    team: Team,
    train: Images | None,
    test: Images | None,
    loss: Loss | None,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
    transform: Transform | None,
    weights: Mapping[str, Tensor] | None,
) -> EvalResult:
    device, ranks = team.device, team.ranks
    check_divides(config.batch_size, ranks)
    synchronises(config, ranks)  # says what is wrong before any work is done
    if ranks.first and not config.test_only:
        check_out(config)
    with determinism(config.deterministic):
        train_images, test_images = (part.to(device) for part in _images(config, train, test, loss, device))
        outputs_for(train_images)  # says what is wrong with the classes before the run's folder is made
        out = None if config.test_only else run_folder(config, "evaluation", team)
        state = EvalState(genotype, config, train_images, loss, device, ranks, transform)
        LOGGER.info("kernels: %s", _kernels_used(state))
        if isinstance(genotype, CellGenotypes) and config.layers != len(genotype.cells):
            LOGGER.info("note: the genotype has %d cells, each its own, in place of --layers", len(genotype.cells))
        if line := config.recipe_line():
            LOGGER.info(line)
        if out is None:
            assert config.checkpoint is not None  # EvalConfig checks it
            _load_weights(state.network, config.checkpoint)
        elif weights is not None:
            _keep(state, weights, out)
        else:
            _train(state, test_images, out, callbacks, loggers)
        again = "to repeat it, run it again" if out is None else f"to write them: {how_to_continue(state, out)}"
        how = f"while results were measured and written; {again}"
        with stops_at_once(how):
            test_loss, accuracy = state.measure(test_images, lambda: None)
            counts = measures.confusion(state, test_images, lambda: None)
            curve = None if config.faults is None else fault_curve(state, config.faults, test_images)
    network = state.measured.eval()
    image_shape = state.augment.normalise(first_images(test_images, 1)[0]).shape[1:]
    result = EvalResult(
        test_error=100 * (1 - accuracy),
        test_accuracy=accuracy,
        test_loss=test_loss,
        parameters=count_parameters(network),
        parameters_with_auxiliary=sum(weight.numel() for weight in network.parameters()),
        multiply_adds=count_multiply_adds(network, image_shape),
        epochs=state.epoch,
        out_dir=out,
        metrics=state.metrics,
        network=network,
        confusion=counts,
        balanced_accuracy=math.nan if counts is None else measures.balanced_accuracy(counts),
        faults=curve,
    )
    if not ranks.first:
        return result
    with stops_at_once(how):
        if out is not None:
            latencies = {size: measures.latency(network, image_shape, size) for size in _LATENCY_BATCHES}
            result = dataclasses.replace(result, latency=latencies)
            if config.cost is not None:
                table = load_cost(config.cost)
                predicted = predicted_cost(table, genotype, config.layers)
                compared = with_measured(predicted, table, network, image_shape, device)
                result = dataclasses.replace(result, cost=compared)
            _write_numbers(result, train_images, image_shape, out)
            if curve is not None:
                curve.save(out / "faults.json")
        if config.export is not None:
            result = dataclasses.replace(result, exported=export_trained(_trained(state, train_images), config.export))
        if out is not None:  # pictures last: the numbers and the network are worth more
            _write_pages(out, trained=result.epochs > 0)
    return result


def _train(
    state: EvalState, test_images: ImageSet, out: Path, callbacks: Sequence[Callback], loggers: Sequence[Logger]
) -> None:
    """Train for the epochs that are left."""
    config, device = state.config, state.device
    if config.resume:
        resume(state, out)
    elif config.init_from is not None:
        LOGGER.info(begin_from(state, config.init_from))
    with stop_requests() as stop:
        ranks = state.ranks
        if device.type == "cuda" and state.network.backend is not None:
            LOGGER.info("preparing the kernels; those new to this GPU are compiled, which may take minutes")
            resources.compile_ahead(state.trial_step, config.batch_size // ranks.size, device)
        forecast = resources.forecast(state.trial_step, config.batch_size // ranks.size, device, ranks.size)
        if ranks.first:
            write_atomically(out / "genotype.json", state.genotype.to_json() + "\n")
        progress = Progress(config.epochs, state.steps_per_epoch, state.steps_done)
        with Keeper(state, out, stop, _kernels_used(state), loggers) as keeper, progress:
            LOGGER.info(forecast_line(state, forecast, device))
            with out_of_memory_explained(forecast, config.batch_size, device):
                while state.epoch < config.epochs:
                    train_epoch(state, progress, keeper)
                    metrics = _epoch_metrics(state, test_images, keeper)
                    state.next_epoch(metrics)
                    keeper.after_epoch(metrics, {})
                    progress.end_epoch(metrics["epoch"], _epoch_line(metrics))
                    if asked_to_end(callbacks, metrics, state.network, ranks):
                        break


def _keep(state: EvalState, weights: Mapping[str, Tensor], out: Path) -> None:
    """Write the run's folder of a network that has its weights already."""
    state.network.load_state_dict(weights)
    if state.average is not None:
        state.average.module.load_state_dict(weights)
    if state.ranks.first:
        write_atomically(out / "genotype.json", state.genotype.to_json() + "\n")
    with stop_requests() as stop, Keeper(state, out, stop, _kernels_used(state)):
        pass


def _kernels_used(state: EvalState) -> str:
    if state.network.backend is None:
        return f"plain PyTorch modules, as for all discrete networks of this space, on {state.device}"
    return kernels_used(state.device, state.network.backend, synchronises(state.config, state.ranks))


def _epoch_metrics(state: EvalState, test_images: ImageSet, keeper: Keeper) -> Metrics:
    training = state.read()
    start = time.monotonic()
    test_loss, test_accuracy = state.measure(test_images, keeper.stop_if_asked)
    return {
        "event": "epoch",
        "epoch": state.epoch,
        "lr": state.learning_rate(),
        "drop_path": state.drop_path(),
        "train_loss": training["train_loss"],
        "train_accuracy": json_number(training["train_accuracy"]),
        "test_loss": test_loss,
        "test_accuracy": json_number(test_accuracy),
        "images_per_second": training["images_per_second"],
        "seconds": state.seconds + time.monotonic() - start,
    }


def _epoch_line(metrics: Metrics) -> str:
    accuracies = [
        f"{name} accuracy {100 * metrics[f'{name}_accuracy']:.2f} %"
        for name in ("train", "test")
        if metrics[f"{name}_accuracy"] is not None
    ]
    parts = [
        f"train loss {metrics['train_loss']:.3f}",
        f"test loss {metrics['test_loss']:.3f}",
        *accuracies,
        f"{metrics['images_per_second']:.0f} images/s",
    ]
    return ", ".join(parts)


def _images(
    config: EvalConfig, train: Images | None, test: Images | None, loss: Loss | None, device: torch.device
) -> tuple[ImageSet, ImageSet]:
    """Return all training images and the test images."""
    if (train is None) != (test is None):
        raise ValueError("train and test must be given together, or neither of them")
    if train is not None and test is not None:
        train_images = read_images(train, loss)
        test_images = read_second_images("test", test, train_images, loss)
        for name, part in (("train", train_images), ("test", test_images)):
            if config.augment == "imagenet" and part.dtype != torch.uint8:
                raise ValueError(f"{name} must be uint8 images with augment 'imagenet'; got {part.dtype}")
        return train_images, test_images
    if config.dataset == "custom":
        raise ValueError("dataset 'custom' is for images given from Python: evaluate(genotype, config, train, test)")
    images = open_images(config, "train", device)
    return images, open_images(config, "test", device, images)


def _load_weights(network: DiscreteNetwork, path: Path) -> None:
    """Load those of a checkpoint; its auxiliary head may be missing or too many, since testing does not use it."""
    ours = network.state_dict()
    weights, notes = load_weights(path, {name: ours[name] for name in ours if name in _used(ours)})
    if notes:
        print(f"checkpoint {path}: {'; '.join(notes)}", flush=True)
    problems = [
        f"{what}: {', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in (
            ("missing", _used(ours) - _used(weights)),
            ("unknown", _used(weights) - _used(ours)),
            ("of another shape", {n for n in _used(ours) & _used(weights) if weights[n].shape != ours[n].shape}),
        )
        if names
    ]
    if problems:
        raise ValueError(
            f"checkpoint {path} is of another network ({'; '.join(problems)}); give the genotype, "
            "init_channels, layers and stem that it was trained with (--config of its folder has them)"
        )
    network.load_state_dict({name: weights[name] for name in _used(ours)}, strict=False)


def _used(weights: dict[str, Tensor]) -> set[str]:
    return {name for name in weights if not name.startswith("auxiliary_head.")}


def _trained(state: EvalState, train_images: ImageSet) -> TrainedNetwork:
    return TrainedNetwork(
        network=state.measured,
        architecture=state.genotype,
        options=state.options,
        classes=train_images.classes,
        mean=train_images.mean,
        std=train_images.std,
        image_size=train_images.shape[1:],
        takes_bytes=train_images.dtype == torch.uint8,
        crops=state.config.augment == "imagenet",
        grey_range=train_images.grey_range or FULL_RANGE,
    )


def _write_pages(out: Path, trained: bool) -> None:
    """Write the picture, and the report of a training."""
    from fastdarts.report import run_report  # imports matplotlib and jinja2, which takes a second
    from fastdarts.report.pictures import write_picture

    write_picture(read_architecture((out / "genotype.json").read_text()), out)
    if trained:
        run_report.write_report(out)


def _write_numbers(result: EvalResult, train_images: ImageSet, image_shape: Sequence[int], out: Path) -> None:
    numbers = {
        "test_accuracy": json_number(result.test_accuracy),
        "test_error_percent": json_number(result.test_error),
        "test_loss": result.test_loss,
        "epochs": result.epochs,
        "parameters": result.parameters,
        "parameters_with_auxiliary": result.parameters_with_auxiliary,
        "multiply_adds": result.multiply_adds,
        "image_shape": list(image_shape),
        "image_size": list(train_images.shape[1:]),
        "image_dtype": str(train_images.dtype).removeprefix("torch."),
        "grey_range": train_images.grey_range,
        "mean": train_images.mean,
        "std": train_images.std,
        "classes": train_images.classes,
        "balanced_accuracy": json_number(result.balanced_accuracy),
        "latency_seconds": {str(size): seconds for size, seconds in result.latency.items()},
        "cost": None if result.cost is None else dataclasses.asdict(result.cost),
        "faults": None if result.faults is None else dataclasses.asdict(result.faults),
        "confusion": None,
    }
    if result.confusion is not None and len(result.confusion) <= _CONFUSION_CLASSES:
        numbers["confusion"] = result.confusion.tolist()
    write_atomically(out / "result.json", json.dumps(numbers, indent=2) + "\n")


@dataclass(frozen=True, kw_only=True)
class _Command(EvalConfig):
    genotype: str | None = option(
        "genotype",
        "what to train: a published cell (DARTS_V2, PC_DARTS_CIFAR, ...), a file or a text as searches print it, or a "
        "search's folder (with --resume: of --out)",
        None,
        metavar="NAME|FILE",
    )

    def __post_init__(self) -> None:
        if self.genotype is not None:
            object.__setattr__(self, "space", load_architecture(self.genotype).space)  # before presets are looked up
        super().__post_init__()


_DESCRIPTION = (__doc__ or "").replace("`", "'")


def parser(prog: str = EvalState.program) -> argparse.ArgumentParser:
    """Make the program's parser."""
    return build_parser(_Command, prog=prog, description=_DESCRIPTION)


def main(argv: Sequence[str] | None = None, prog: str = EvalState.program) -> int:
    return run_cli(_Command, _run, argv, prog, _DESCRIPTION)


def _run(command: _Command) -> int:
    values = {field.name: getattr(command, field.name) for field in dataclasses.fields(EvalConfig)}
    config = EvalConfig(**values)
    if command.genotype is not None:
        genotype = load_architecture(command.genotype)
    elif config.resume and config.out is not None:
        genotype = load_architecture(str(config.out / "genotype.json"))
    elif config.init_from is not None:
        genotype = load_architecture(str(config.init_from))
    else:
        raise ValueError(
            "--genotype is needed: a published cell (DARTS_V2, PC_DARTS_CIFAR, ...), a search's folder or a file such "
            "as its genotype.json"
        )
    if material_of(space_of(genotype)) == "text":
        return _print_text(evaluate_text(genotype, config))
    result = evaluate(genotype, config)
    if rank_of_process():
        return 0
    print_result(result)
    return 0


def print_result(result: EvalResult) -> None:
    """Print the numbers of an evaluation and where its files are."""
    print(
        f"test error {result.test_error:.2f} % (accuracy {100 * result.test_accuracy:.2f} %), "
        f"{result.parameters:,} parameters ({result.parameters_with_auxiliary:,} with the auxiliary head), "
        f"{result.multiply_adds:,} multiply-adds an image"
    )
    if result.cost is not None:
        print(result.cost)
    if result.faults is not None:
        print(f"under faults: {result.faults}")
    if result.out_dir is not None:
        print(f"results: {result.out_dir}{' (report.html)' if result.epochs else ''}")
    if result.exported:
        print(f"exported: {', '.join(map(str, result.exported))}")


def _print_text(result: TextEvalResult) -> int:
    print(
        f"test perplexity {result.test_perplexity:.2f} (validation {result.valid_perplexity:.2f}, epoch "
        f"{result.best_epoch}), {result.parameters:,} parameters"
    )
    if result.out_dir is not None:
        print(f"results: {result.out_dir}")
    return 0
