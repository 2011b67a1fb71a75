"""Training of a found cell's language model from scratch, and its perplexity; `fastdarts.evaluate` runs it."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fastdarts.config.files import write_atomically
from fastdarts.data.text import Corpus, load_corpus
from fastdarts.runs import resources
from fastdarts.runs.console import LOGGER
from fastdarts.runs.device import choose_device, determinism
from fastdarts.runs.eval_config import EvalConfig
from fastdarts.runs.folder import check_out, out_dir
from fastdarts.runs.forecast import forecast_line, out_of_memory_explained
from fastdarts.runs.interrupt import stop_requests, stops_at_once
from fastdarts.runs.keeper import Keeper, asked_to_end, how_to_continue, train_epoch
from fastdarts.runs.kernels import cell_kernels_used
from fastdarts.runs.launch import process_count
from fastdarts.runs.lock import releases_folders
from fastdarts.runs.loggers import Logger
from fastdarts.runs.progress import Progress, json_number
from fastdarts.runs.resuming import resume
from fastdarts.runs.state import Metrics
from fastdarts.runs.text_eval_state import TextEvalState
from fastdarts.runs.weights import load_weights, save_weights
from fastdarts.spaces.recurrent.architecture import RecurrentCell
from fastdarts.spaces.recurrent.discrete import RecurrentNetwork
from fastdarts.tasks.language import perplexity

Callback = Callable[[Metrics, RecurrentNetwork], object]


@dataclass(frozen=True)
class TextEvalResult:
    """Hold the result of an evaluation on texts.

    Attributes:
        test_perplexity, valid_perplexity: of the best epoch by validation, with averaged weights if it had any.
        test_loss, valid_loss: the same in nats a word.
        parameters: weights of the network.
        multiply_adds: of its products, for one word.
        epochs: of training; 0 if it was only tested.
        best_epoch: the epoch that was tested, counted from 1; 0 if it was only tested.
        out_dir: the folder with everything else; None if it was only tested.
        metrics: a dict per epoch, as the lines of metrics.jsonl.
        network: in eval mode, with the tested weights.
    """

    test_perplexity: float
    valid_perplexity: float
    test_loss: float
    valid_loss: float
    parameters: int
    multiply_adds: int
    epochs: int
    best_epoch: int
    out_dir: Path | None
    metrics: list[Metrics]
    network: RecurrentNetwork


@releases_folders
def evaluate_text(
    genotype: RecurrentCell,
    config: EvalConfig,
    corpus: Corpus | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
) -> TextEvalResult:
    """Train a cell's language model, and measure it on the test text (Liu et al., ICLR 2019, section 3.2.2).

    SGD runs until the validation loss stalls, then averaged SGD. The weights of the best validation loss are tested.

    Args:
        genotype: the cell.
        config: see EvalConfig; its space is "recurrent". With test_only nothing is trained or written.
        corpus: your own texts instead of those of config.dataset.
        callbacks, loggers: as of `search`; a callback that returns True ends the training there.

    Raises: as `evaluate`.
    """
    if process_count() > 1:
        raise ValueError(f"a language model is trained by one process; torchrun started {process_count()}")
    device = choose_device(config.device)
    if not config.test_only:
        check_out(config)
    LOGGER.info("kernels: %s", cell_kernels_used(device))
    texts = corpus or load_corpus(config.dataset, config.data)
    LOGGER.info(texts.line())
    with determinism(config.deterministic):
        texts = texts.to(device)
        out = None if config.test_only else out_dir(config, "evaluation")
        state = TextEvalState(genotype, config, texts, device)
        if out is None:
            assert config.checkpoint is not None  # EvalConfig checks it
            _load(state.network, config.checkpoint)
        else:
            _train(state, out, device, callbacks, loggers)
            state.load_best()
        again = "to repeat it, run it again" if out is None else f"to write them: {how_to_continue(state, out)}"
        with stops_at_once(f"while results were measured and written; {again}"):
            valid_loss = state.measure(texts.valid, lambda: None)[0]
            test_loss = state.test(texts.test, lambda: None)
            network = state.network.eval()
            result = TextEvalResult(
                test_perplexity=perplexity(test_loss),
                valid_perplexity=perplexity(valid_loss),
                test_loss=test_loss,
                valid_loss=valid_loss,
                parameters=sum(weight.numel() for weight in network.parameters()),
                multiply_adds=network.multiply_adds(),
                epochs=state.epoch,
                best_epoch=0 if state.best is None else state.best["epoch"] + 1,
                out_dir=out,
                metrics=state.metrics,
                network=network,
            )
            if out is not None:
                _write(result, texts, out)
    return result


def _train(
    state: TextEvalState, out: Path, device: torch.device, callbacks: Sequence[Callback], loggers: Sequence[Logger]
) -> None:
    """Train for the epochs that are left."""
    config = state.config
    if config.resume:
        resume(state, out)
    with stop_requests() as stop:
        forecast = resources.forecast(state.trial_step, config.batch_size, device)
        write_atomically(out / "genotype.json", state.genotype.to_json() + "\n")
        progress = Progress(config.epochs, state.steps_per_epoch, state.steps_done)
        with Keeper(state, out, stop, cell_kernels_used(device), loggers) as keeper, progress:
            LOGGER.info(forecast_line(state, forecast, device))
            with out_of_memory_explained(forecast, config.batch_size, device):
                while state.epoch < config.epochs:
                    try:
                        train_epoch(state, progress, keeper)
                        metrics = _epoch_metrics(state, keeper)
                    except FloatingPointError as error:
                        state.roll_back(error)
                        LOGGER.info("%s; going on behind the best epoch, %s", error, state.epoch)
                        continue
                    state.next_epoch(metrics)
                    keeper.after_epoch(metrics, {})
                    progress.end_epoch(metrics["epoch"], _epoch_line(metrics))
                    if asked_to_end(callbacks, metrics, state.network, state.ranks):
                        break


def _epoch_metrics(state: TextEvalState, keeper: Keeper) -> Metrics:
    training = state.read()
    start = time.monotonic()
    averaging = state.averaging  # in this epoch
    loss = state.validate(keeper.stop_if_asked)
    state.judge(loss)
    return {
        "event": "epoch",
        "epoch": state.epoch,
        "lr": state.learning_rate(),
        "train_loss": training["train_loss"],
        "train_perplexity": json_number(perplexity(training["train_loss"])),
        "valid_loss": loss,
        "valid_perplexity": json_number(perplexity(loss)),
        "averaged": averaging,
        "test_accuracy": None,
        "words_per_second": training["words_per_second"],
        "seconds": state.seconds + time.monotonic() - start,
    }


def _epoch_line(metrics: Metrics) -> str:
    averaged = " (averaged weights)" if metrics["averaged"] else ""
    return (
        f"train perplexity {metrics['train_perplexity']:.2f}, valid perplexity {metrics['valid_perplexity']:.2f}"
        f"{averaged}, {metrics['words_per_second']:.0f} words/s"
    )


def _load(network: RecurrentNetwork, path: Path) -> None:
    """Load a state_dict of this network, such as an evaluation's network.pt."""
    ours = network.state_dict()
    weights, found_notes = load_weights(path, ours)
    if found_notes:
        print(f"checkpoint {path}: {'; '.join(found_notes)}", flush=True)
    wrong = [name for name, value in ours.items() if name not in weights or weights[name].shape != value.shape]
    if wrong:
        raise ValueError(
            f"checkpoint {path} is of another network ({', '.join(wrong[:3])}); give the genotype, the texts and the "
            "width that it was trained with (--config of its folder has them)"
        )
    network.load_state_dict({name: weights[name] for name in ours})


def _write(result: TextEvalResult, texts: Corpus, out: Path) -> None:
    from fastdarts.report import run_report  # imports matplotlib and jinja2, which takes a second
    from fastdarts.report.pictures import write_picture

    numbers = {
        "test_perplexity": json_number(result.test_perplexity),
        "valid_perplexity": json_number(result.valid_perplexity),
        "test_loss": result.test_loss,
        "valid_loss": result.valid_loss,
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        "parameters": result.parameters,
        "multiply_adds": result.multiply_adds,
        "vocabulary": len(texts.vocabulary),
    }
    write_atomically(out / "result.json", json.dumps(numbers, indent=2) + "\n")
    save_weights(out / "network.pt", result.network.state_dict())
    write_picture(result.network.architecture, out)
    run_report.write_report(out)
