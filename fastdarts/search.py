"""Architecture search: `python -m fastdarts.search`, or `search(SearchConfig(...))` from Python."""

import dataclasses
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from fastdarts import checkpoint, data, resources
from fastdarts.bilevel import Loss
from fastdarts.config import SearchConfig, differences, run_cli
from fastdarts.data import ImageData
from fastdarts.draw import draw_alphas, write_cells
from fastdarts.files import write_atomically
from fastdarts.genotype import Genotype
from fastdarts.interrupt import Interrupted, StopRequest, stop_requests
from fastdarts.network import SearchNetwork
from fastdarts.progress import MetricsFile, Progress, TensorBoard, duration
from fastdarts.resources import Forecast
from fastdarts.search_state import SearchState

__all__ = ["SearchConfig", "SearchResult", "search"]

Metrics = dict[str, Any]
Callback = Callable[[Metrics, SearchNetwork], object]

PROGRAM = "python -m fastdarts.search"
MAY_DIFFER = ("data", "device", "out", "resume", "save_every_steps")  # between a search and its continuation
_READ_EVERY = 10  # steps between two looks at the device, for which it must be waited


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        genotype: of the last epoch's alphas.
        alphas_normal, alphas_reduce: [edges, ops], raw, on the CPU.
        out_dir: the folder with everything else.
        metrics: a dict per epoch, as the lines of metrics.jsonl.
    """

    genotype: Genotype
    alphas_normal: Tensor
    alphas_reduce: Tensor
    out_dir: Path
    metrics: list[Metrics]


def search(
    config: SearchConfig,
    train: ImageData | Dataset[Any] | None = None,
    valid: ImageData | Dataset[Any] | None = None,
    loss: Loss | None = None,
    callbacks: Sequence[Callback] = (),
) -> SearchResult:
    """Search for a cell (Liu et al., arXiv:1806.09055, algorithm 1) and write the run's folder.

    Args:
        config: see SearchConfig.
        train: your own images instead of those of config.dataset: a map-style Dataset of (image, target), or ImageData.
        valid: those of the alphas' half; left out, `train` is split by config.train_portion.
        loss: loss(logits [N, classes], targets) -> scalar; cross entropy if left out.
        callbacks: each is called after every epoch with the epoch's metrics and the network; one that returns True
            ends the search there.

    Raises:
        ValueError, TypeError, FileNotFoundError: input that cannot be used, before any work is done.
        MemoryError: names the largest batch that fits.
        FloatingPointError: a loss or gradient is not finite; says where. The last checkpoint stays.
        DiskFullError: names the file.
        Interrupted: SIGINT or SIGTERM came; the state is saved.
    """
    if train is not None:
        config = dataclasses.replace(config, dataset="custom")
    device = _device(config.device)
    out = _out_dir(config)
    with _determinism(config.deterministic), stop_requests() as stop:
        weights_half, alphas_half = _halves(config, train, valid)
        state = SearchState(config, weights_half.to(device), alphas_half.to(device), loss or cross_entropy, device)
        offset = _resume(state, out) if config.resume else 0
        forecast = resources.forecast(state.trial_step, config.batch_size, device)
        keeper = _Keeper(state, out, offset, stop)
        with Progress(config.epochs, state.steps_per_epoch, state.steps_done) as progress:
            progress.say(_forecast_line(state, forecast, device))
            try:
                _run_epochs(state, progress, keeper, callbacks)
            except Exception as error:
                if resources.is_out_of_memory(error):
                    raise forecast.out_of_memory(config.batch_size, device) from error
                raise
    _write_results(state, out)
    normal, reduce = state.alphas()
    return SearchResult(state.network.genotype(), normal, reduce, out, state.metrics)


def _run_epochs(state: SearchState, progress: Progress, keeper: "_Keeper", callbacks: Sequence[Callback]) -> None:
    while state.epoch < state.config.epochs:
        while state.step < state.steps_per_epoch:
            state.train_step()
            if state.step % _READ_EVERY == 0 or state.step == state.steps_per_epoch:
                progress.update(state.epoch, state.step, state.read())
            keeper.after_step()
        metrics = _epoch_metrics(state, keeper)
        state.next_epoch(metrics)
        keeper.after_epoch(metrics)
        progress.end_epoch(metrics["epoch"], _epoch_line(metrics))
        answers = [callback(metrics, state.network) for callback in callbacks]
        if True in answers:
            return


def _epoch_metrics(state: SearchState, keeper: "_Keeper") -> Metrics:
    training = state.read()
    start = time.monotonic()
    valid_loss, valid_accuracy = state.validate(keeper.stop_if_asked)
    genotype = state.network.genotype()
    normal, reduce = (_entropy(alpha) for alpha in state.alphas())
    return {
        "event": "epoch",
        "epoch": state.epoch,
        "lr": state.learning_rate(),
        "train_loss": training["train_loss"],
        "train_accuracy": _number(training["train_accuracy"]),
        "valid_loss": valid_loss,
        "valid_accuracy": _number(valid_accuracy),
        "images_per_second": training["images_per_second"],
        "seconds": state.seconds + time.monotonic() - start,
        "genotype": genotype._asdict(),
        "skips_normal": _skips(genotype, "normal"),
        "skips_reduce": _skips(genotype, "reduce"),
        "entropy_normal": normal,
        "entropy_reduce": reduce,
    }


class _Keeper:
    """Writes down what a killed search needs to go on, and ends one that is asked to stop."""

    def __init__(self, state: SearchState, out: Path, metrics_offset: int, stop: StopRequest) -> None:
        self.state = state
        self.out = out
        self.stop = stop
        out.mkdir(parents=True, exist_ok=True)
        self.metrics = MetricsFile(out / "metrics.jsonl", metrics_offset)
        self.board = TensorBoard(out / "tensorboard", state.epoch)
        device = state.weights_stream.data.images.device
        write_atomically(out / "environment.json", json.dumps(resources.environment(device), indent=2) + "\n")
        self.save()
        state.config.save(out / "config.json")  # last: a folder that has it can be resumed

    def save(self) -> None:
        self.state.read()  # no checkpoint of a search that has failed already
        state = self.state.state_dict() | {"metrics_offset": self.metrics.offset}
        checkpoint.save(self.out / "checkpoint.pt", "search", state)

    def after_step(self) -> None:
        every = self.state.config.save_every_steps
        if every and self.state.step % every == 0:
            self.save()
        self.stop_if_asked()

    def after_epoch(self, metrics: Metrics) -> None:
        self.metrics.write(metrics)
        self.save()
        _write_alphas(self.state, self.out)
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        alphas = dict(zip(("alphas_normal", "alphas_reduce"), self.state.alphas(), strict=True))
        self.board.write(metrics["epoch"], numbers, alphas)

    def stop_if_asked(self) -> None:
        """Raises: Interrupted, with the state saved."""
        if self.stop.signum:
            self.save()
            name = signal.Signals(self.stop.signum).name
            position = f"epoch {self.state.epoch + 1}, step {self.state.step}"
            again = f"{PROGRAM} --resume --out {self.out}"
            raise Interrupted(self.stop.signum, f"stopped by {name} in {position}; to continue: {again}")


def _halves(
    config: SearchConfig, train: ImageData | Dataset[Any] | None, valid: ImageData | Dataset[Any] | None
) -> tuple[ImageData, ImageData]:
    """The images of the weight steps and of the alpha steps."""
    if train is None:
        if valid is not None:
            raise ValueError("valid was given without train")
        if config.dataset == "custom":
            raise ValueError("dataset 'custom' is for images given from Python: search(config, train=...)")
        images = data.load(config.dataset, config.data, "train", config.image_size)
    else:
        images = train if isinstance(train, ImageData) else data.from_dataset(train)
    if valid is None:
        return data.split(images, config.train_portion, config.seed)
    other = valid if isinstance(valid, ImageData) else data.from_dataset(valid, train=images)
    if other.images.shape[1:] != images.images.shape[1:] or other.targets.shape[1:] != images.targets.shape[1:]:
        raise ValueError(
            f"valid must be like train, images {list(images.images.shape[1:])} and "
            f"targets {list(images.targets.shape[1:])}; "
            f"got {list(other.images.shape[1:])} and {list(other.targets.shape[1:])}"
        )
    if len(other.classes) > len(images.classes):
        raise ValueError(f"valid has {len(other.classes)} classes, train has {len(images.classes)}")
    return images, other


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N; got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N; got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def _out_dir(config: SearchConfig) -> Path:
    out = config.out or Path("runs") / f"{config.dataset}-{datetime.now():%Y%m%d-%H%M%S}"
    if not config.resume and (out / "config.json").exists():
        raise ValueError(f"out: {out} holds a search already; continue it with --resume or choose another folder")
    return out


@contextmanager
def _determinism(wanted: bool) -> Iterator[None]:
    """Torch's own switches, put back at the end."""
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.benchmark
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
        torch.use_deterministic_algorithms(True)
    cudnn.benchmark = not wanted
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.benchmark = before[1]


def _resume(state: SearchState, out: Path) -> int:
    """Load the checkpoint in out; returns how much of metrics.jsonl it knows.

    Raises: ValueError with the keys that differ when the checkpoint is of another config.
    """
    saved = checkpoint.load(out / "checkpoint.pt", "search")
    changed = differences(state.config, SearchConfig(**saved["config"]), ignore=MAY_DIFFER)
    if changed:
        raise ValueError(
            f"resume: the search in {out} has another config ({'; '.join(changed)}); "
            f"only {', '.join(MAY_DIFFER)} may change"
        )
    state.load_state_dict(saved)
    return int(saved["metrics_offset"])


def _write_alphas(state: SearchState, out: Path) -> None:
    normal, reduce = (np.stack([epoch[cell].numpy() for epoch in state.history]) for cell in (0, 1))
    primitives = np.array(state.network.primitives)
    write_atomically(
        out / "alphas.npz", lambda file: np.savez(file, normal=normal, reduce=reduce, primitives=primitives)
    )


def _write_results(state: SearchState, out: Path) -> None:
    genotype = state.network.genotype()
    write_atomically(out / "genotype.json", genotype.to_json() + "\n")
    _write_alphas(state, out)
    write_cells(genotype, out)
    draw_alphas(out / "alphas.npz")


def _forecast_line(state: SearchState, forecast: Forecast, device: torch.device) -> str:
    steps = state.config.epochs * state.steps_per_epoch - state.steps_done
    return (
        f"expected: {forecast.peak_bytes / 2**30:.2f} GiB of memory at most, {duration(steps * forecast.step_seconds)} "
        f"for {steps} steps on {device} (measured: {forecast.step_seconds:.3f} s a step)"
    )


def _epoch_line(metrics: Metrics) -> str:
    accuracies = [
        f"{name} accuracy {100 * metrics[f'{name}_accuracy']:.1f} %"
        for name in ("train", "valid")
        if metrics[f"{name}_accuracy"] is not None
    ]
    parts = [
        f"train loss {metrics['train_loss']:.3f}",
        f"valid loss {metrics['valid_loss']:.3f}",
        *accuracies,
        f"{metrics['skips_normal']}+{metrics['skips_reduce']} skips",
        f"entropy {metrics['entropy_normal']:.3f}/{metrics['entropy_reduce']:.3f}",
        f"{metrics['images_per_second']:.0f} images/s",
    ]
    return ", ".join(parts)


def _entropy(alpha: Tensor) -> float:
    """Mean over edges of the op weights' entropy in nats; ln(ops) at the start."""
    return float(-(alpha.softmax(-1) * alpha.log_softmax(-1)).sum(-1).mean())


def _skips(genotype: Genotype, cell: Any) -> int:
    return sum(op == "skip_connect" for node in genotype.nodes(cell) for op, _ in node)


def _number(value: float) -> float | None:
    """None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value


def main(argv: Sequence[str] | None = None) -> int:
    return run_cli(SearchConfig, _run, argv, PROGRAM, (__doc__ or "").replace("`", "'"))


def _run(config: SearchConfig) -> int:
    if config.dataset == "digits":
        print(
            "digits: scikit-learn's 1,797 real 8x8 images and a small preset. CIFAR-10: --dataset cifar10 --data DIR; "
            "your own images: --dataset imagefolder --data DIR (see --help)"
        )
    result = search(config)
    print(f"genotype: {result.genotype}")
    print(f"results: {result.out_dir}")
    source = "" if config.dataset == "digits" else f" --data {config.data}"
    print(
        f"next, train the found network from scratch: python -m fastdarts.evaluate --dataset {config.dataset}{source} "
        f"--genotype {result.out_dir / 'genotype.json'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
