"""Architecture search: `python -m fastdarts.search`, or `search(SearchConfig(...))` from Python."""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.functional import cross_entropy

from fastdarts import data, report, resources
from fastdarts.bilevel import Loss
from fastdarts.config import SearchConfig, run_cli
from fastdarts.data import ImageData
from fastdarts.draw import draw_alphas, write_cells
from fastdarts.files import write_atomically
from fastdarts.genotype import Genotype
from fastdarts.interrupt import stop_requests
from fastdarts.network import SearchNetwork
from fastdarts.progress import Progress
from fastdarts.run import (
    Images,
    Keeper,
    Metrics,
    choose_device,
    determinism,
    forecast_line,
    json_number,
    out_dir,
    out_of_memory_explained,
    read_images,
    read_second_images,
    resume,
    train_epoch,
)
from fastdarts.search_state import SearchState

__all__ = ["SearchConfig", "SearchResult", "search"]

Callback = Callable[[Metrics, SearchNetwork], object]


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
    train: Images | None = None,
    valid: Images | None = None,
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
    device = choose_device(config.device)
    out = out_dir(config, "search")
    with determinism(config.deterministic), stop_requests() as stop:
        weights_half, alphas_half = _halves(config, train, valid)
        state = SearchState(config, weights_half.to(device), alphas_half.to(device), loss or cross_entropy, device)
        if config.resume:
            resume(state, out)
        forecast = resources.forecast(state.trial_step, config.batch_size, device)
        progress = Progress(config.epochs, state.steps_per_epoch, state.steps_done)
        with Keeper(state, out, stop) as keeper, progress:
            progress.say(forecast_line(state, forecast, device))
            with out_of_memory_explained(forecast, config.batch_size, device):
                _run_epochs(state, progress, keeper, callbacks)
    _write_results(state, out)
    normal, reduce = state.alphas()
    return SearchResult(state.network.genotype(), normal, reduce, out, state.metrics)


def _run_epochs(state: SearchState, progress: Progress, keeper: Keeper, callbacks: Sequence[Callback]) -> None:
    while state.epoch < state.config.epochs:
        train_epoch(state, progress, keeper)
        metrics = _epoch_metrics(state, keeper)
        state.next_epoch(metrics)
        keeper.after_epoch(metrics, dict(zip(("alphas_normal", "alphas_reduce"), state.alphas(), strict=True)))
        _write_alphas(state, keeper.out)
        progress.end_epoch(metrics["epoch"], _epoch_line(metrics))
        answers = [callback(metrics, state.network) for callback in callbacks]
        if True in answers:
            return


def _epoch_metrics(state: SearchState, keeper: Keeper) -> Metrics:
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
        "train_accuracy": json_number(training["train_accuracy"]),
        "valid_loss": valid_loss,
        "valid_accuracy": json_number(valid_accuracy),
        "images_per_second": training["images_per_second"],
        "seconds": state.seconds + time.monotonic() - start,
        "genotype": genotype._asdict(),
        "skips_normal": _skips(genotype, "normal"),
        "skips_reduce": _skips(genotype, "reduce"),
        "entropy_normal": normal,
        "entropy_reduce": reduce,
    }


def _halves(config: SearchConfig, train: Images | None, valid: Images | None) -> tuple[ImageData, ImageData]:
    """The images of the weight steps and of the alpha steps."""
    if train is None:
        if valid is not None:
            raise ValueError("valid was given without train")
        if config.dataset == "custom":
            raise ValueError("dataset 'custom' is for images given from Python: search(config, train=...)")
        images = data.load(config.dataset, config.data, "train", config.image_size)
    else:
        images = read_images(train)
    if valid is None:
        return data.split(images, config.train_portion, config.seed)
    return images, read_second_images("valid", valid, images)


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
    report.write_report(out)


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


def main(argv: Sequence[str] | None = None) -> int:
    return run_cli(SearchConfig, _run, argv, SearchState.program, (__doc__ or "").replace("`", "'"))


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
