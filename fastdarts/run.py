"""What a search and an evaluation share as runs of epochs: device, folder, determinism, sums, checkpoints, stops."""

import copy
import dataclasses
import itertools
import json
import math
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fastdarts import checkpoint, data, report, resources
from fastdarts.augment import Augment
from fastdarts.augment_imagenet import ImageNetAugment
from fastdarts.bilevel import Batch
from fastdarts.config import differences
from fastdarts.data import BatchStream, ImageData
from fastdarts.files import write_atomically
from fastdarts.interrupt import Interrupted, StopRequest
from fastdarts.progress import MetricsFile, Progress, TensorBoard, duration
from fastdarts.resources import Forecast
from fastdarts.step import count_correct

Metrics = dict[str, Any]
Images = ImageData | Dataset[Any]

MAY_DIFFER = ("data", "device", "export", "out", "resume", "save_every_steps")  # between a run and its continuation
_READ_EVERY = 10  # steps between two looks at the device, for which it must be waited


class EpochSums:
    """Means over the images of an epoch. Steps' results wait on the device until `read`.

    Args:
        parts: what a step measures, as means over its images, in the order of computation; each with its name in an
            error message when it is not finite, or None where that is no error.
    """

    def __init__(self, parts: Mapping[str, str | None]) -> None:
        self.images = 0
        self._parts = parts
        self._sums = dict.fromkeys(parts, 0.0)
        self._waiting: list[tuple[int, Tensor]] = []

    def add(self, images: int, measured: Mapping[str, Tensor]) -> None:
        """A step's scalars, one for each part; nothing is read from the device."""
        self._waiting.append((images, torch.stack([measured[part].detach().float() for part in self._parts])))

    def read(self, epoch: int, step: int) -> None:
        """Fetch what waits, in one transfer, and add it up.

        Args:
            epoch, step: how far the run is, to name the step at fault.

        Raises: FloatingPointError at the first part that is not finite and must be.
        """
        if not self._waiting:
            return
        rows = torch.stack([row for _, row in self._waiting]).cpu().tolist()
        counts = [images for images, _ in self._waiting]
        self._waiting.clear()
        for at, (images, row) in enumerate(zip(counts, rows, strict=True), start=step - len(rows) + 1):
            for (part, words), value in zip(self._parts.items(), row, strict=True):  # the first one is the cause
                if words is not None and not math.isfinite(value):
                    raise FloatingPointError(f"{words} is {value} in epoch {epoch + 1}, step {at}")
                self._sums[part] += images * value
            self.images += images

    def means(self) -> dict[str, float]:
        """Each part per image."""
        return {part: value / max(self.images, 1) for part, value in self._sums.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.images, "sums": dict(self._sums)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._waiting.clear()
        self.images = state["images"]
        self._sums = dict(state["sums"])


class RunState:
    """All that changes during a run, between two steps. A subclass adds its networks, optimizers and data.

    Args:
        config: of the run.
        network: trained in place.
        augment: of the training images.
        streams: of the batches; a pass over the first one is an epoch.
        parts: what a step measures, see EpochSums; with train_loss.
    """

    kind: ClassVar[str]
    """What it is in checkpoints and messages: "search" or "evaluation"."""
    program: ClassVar[str]
    """The command line that runs it."""

    def __init__(
        self,
        config: Any,
        network: nn.Module,
        augment: Augment | ImageNetAugment,
        streams: Sequence[BatchStream],
        parts: Mapping[str, str | None],
    ) -> None:
        self.config = config
        self.network = network
        self.augment = augment
        self.streams = streams
        self.steps_per_epoch = streams[0].batches_per_epoch
        self.epoch = 0
        self.step = 0
        self.seconds = 0.0
        self.metrics: list[Metrics] = []
        self._parts = dict(parts)
        self._sums = EpochSums(self._parts)

    @property
    def steps_done(self) -> int:
        """Of all epochs."""
        return self.epoch * self.steps_per_epoch + self.step

    def train_batches(self, batches: Sequence[Batch]) -> Mapping[str, Tensor]:
        """A step on a batch of each stream; returns what it measured, nothing read from the device."""
        raise NotImplementedError

    def test_batch(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss and outputs of the network in eval mode."""
        raise NotImplementedError

    def train_step(self) -> None:
        """One step on the next batch of each stream."""
        start = time.perf_counter()
        self.network.train()
        batches = [(self.augment(images), targets) for images, targets in (stream.next() for stream in self.streams)]
        self._sums.add(len(batches[0][0]), self.train_batches(batches))
        self.step += 1
        self.seconds += time.perf_counter() - start

    def trial_step(self, images: int) -> None:
        """A step on the first images of each stream, which leaves all as it was but for what waits in caches."""
        before = copy.deepcopy(self.state_dict())
        try:
            self.network.train()
            data = [stream.data for stream in self.streams]
            self.train_batches([(self.augment.normalise(part.images[:images]), part.targets[:images]) for part in data])
        finally:
            self.load_state_dict(before)

    def read(self) -> dict[str, float]:
        """Averages of this epoch so far; waits for the device. Raises FloatingPointError (see EpochSums)."""
        start = time.perf_counter()
        self._sums.read(self.epoch, self.step)
        self.seconds += time.perf_counter() - start
        return {**self._sums.means(), "images_per_second": self._sums.images / max(self.seconds, 1e-9)}

    def measure(self, data: ImageData, between_batches: Callable[[], object]) -> tuple[float, float]:
        """Mean loss and accuracy with the running statistics, without augmentation; accuracy NaN without classes.

        What the network draws (candidate `noise`) is the same each time, and no later draw depends on it.
        """
        self.network.eval()
        device = data.images.device
        loss = correct = torch.zeros((), device=device)
        size = self.config.batch_size
        for batch, (images, targets) in enumerate(zip(data.images.split(size), data.targets.split(size), strict=True)):
            between_batches()
            with torch.inference_mode(), torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(batch)
                batch_loss, outputs = self.test_batch((self.augment.normalise(images), targets))
                loss = loss + batch_loss * len(images)
                correct = correct + count_correct(outputs, targets)
        mean_loss = float(loss) / len(data)
        if not math.isfinite(mean_loss):
            raise FloatingPointError(f"the loss measured at the end of epoch {self.epoch + 1} is {mean_loss}")
        return mean_loss, float(correct) / len(data)

    def next_epoch(self, metrics: Metrics) -> None:
        self.metrics.append(metrics)
        self.epoch += 1
        self.step = 0
        self.seconds = 0.0
        self._sums = EpochSums(self._parts)

    def state_dict(self) -> dict[str, Any]:
        """Everything, as `torch.load(weights_only=True)` accepts it; tensors are the live ones."""
        return {
            "config": {
                name: value if value is None or isinstance(value, int | float | str | tuple | dict) else str(value)
                for name, value in dataclasses.asdict(self.config).items()
            },
            "network": self.network.state_dict(),
            "augment": self.augment.state_dict(),
            "streams": [stream.state_dict() for stream in self.streams],
            "random": checkpoint.random_state(),
            "epoch": self.epoch,
            "step": self.step,
            "sums": self._sums.state_dict(),
            "seconds": self.seconds,
            "metrics": self.metrics,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state` was taken; on another kind of device with other augmentations than there."""
        self.network.load_state_dict(state["network"])
        if state["augment"]["generator"].shape == self.augment.generator.get_state().shape:
            self.augment.load_state_dict(state["augment"])
        else:  # of another kind of device, whose states do not fit; not from the seed alone: epoch 0 would come again
            self.augment.generator.manual_seed(self.config.seed + state["epoch"])
        for stream, part in zip(self.streams, state["streams"], strict=True):
            stream.load_state_dict(part)
        checkpoint.set_random_state(state["random"])
        self.epoch = state["epoch"]
        self.step = state["step"]
        self._sums.load_state_dict(state["sums"])
        self.seconds = state["seconds"]
        self.metrics = list(state["metrics"])


class Keeper:
    """Writes down what a killed run needs to go on, and ends one that is asked to stop.

    Args:
        state: the run.
        out: its folder.
        stop: see `stop_requests`.
    """

    def __init__(self, state: RunState, out: Path, stop: StopRequest) -> None:
        self.state = state
        self.out = out
        self.stop = stop
        self.metrics = MetricsFile(out / "metrics.jsonl", state.metrics)
        self.board = TensorBoard(out / "tensorboard", state.epoch)
        write_atomically(out / "environment.json", json.dumps(report.environment(), indent=2) + "\n")
        self.save()
        state.config.save(out / "config.json")  # last: a folder that has it can be resumed

    def __enter__(self) -> "Keeper":
        return self

    def __exit__(self, *exception: object) -> None:
        self.board.close()

    def save(self) -> None:
        self.state.read()  # no checkpoint of a run that has failed already
        checkpoint.save(self.out / "checkpoint.pt", self.state.kind, self.state.state_dict())

    def after_step(self) -> None:
        every = self.state.config.save_every_steps
        if every and self.state.step % every == 0:
            self.save()
        self.stop_if_asked()

    def after_epoch(self, metrics: Metrics, histograms: Mapping[str, Tensor]) -> None:
        """Write the epoch's metrics and a checkpoint; `histograms` go to TensorBoard."""
        self.metrics.write(metrics)
        self.save()
        everything = {**metrics, **{f"method/{name}": value for name, value in metrics.get("method", {}).items()}}
        numbers = {name: value for name, value in everything.items() if isinstance(value, int | float)}
        self.board.write(metrics["epoch"], numbers, histograms)

    def stop_if_asked(self) -> None:
        """Raises: Interrupted, with the state saved."""
        if self.stop.signum:
            self.save()
            name = signal.Signals(self.stop.signum).name
            position = f"epoch {self.state.epoch + 1}, step {self.state.step}"
            again = f"{self.state.program} --resume --out {shlex.quote(str(self.out))}"
            if self.state.config.dataset == "custom":  # the images came from Python
                again = f"the same call with resume=True and out={str(self.out)!r} in its config"
            raise Interrupted(self.stop.signum, f"stopped by {name} in {position}; to continue: {again}")


def train_epoch(state: RunState, progress: Progress, keeper: Keeper) -> None:
    """The steps that are left of the epoch."""
    while state.step < state.steps_per_epoch:
        state.train_step()
        if state.step % _READ_EVERY == 0 or state.step == state.steps_per_epoch:
            progress.update(state.epoch, state.step, state.read())
        keeper.after_step()


def resume(state: RunState, out: Path) -> None:
    """Load the checkpoint in out.

    Raises: ValueError with the keys that differ when the checkpoint is of another config.
    """
    saved = checkpoint.load(out / "checkpoint.pt", state.kind)
    changed = differences(state.config, type(state.config)(**saved["config"]), ignore=MAY_DIFFER)
    if changed:
        free = ", ".join(name for name in MAY_DIFFER if hasattr(state.config, name))
        raise ValueError(
            f"resume: the {state.kind} in {out} has another config ({'; '.join(changed)}); only {free} may change"
        )
    state.load_state_dict(saved)


def choose_device(name: str) -> torch.device:
    """The device that a config names; ValueError for one that is unknown or absent."""
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


def check_out(config: Any) -> None:
    """ValueError if a run is in `config.out` that is not resumed, or nothing can be written there."""
    if config.out is None:
        return
    check_writable("out", config.out)
    if not config.resume and (config.out / "config.json").exists():
        raise ValueError(f"out: {config.out} holds a run already; continue it with --resume or choose another folder")


def check_writable(name: str, folder: Path) -> None:
    """ValueError that begins with the option's name, unless files can be written into the folder or it can be made."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"{name}: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{name}: nothing can be written into {there}; choose another folder")


def out_dir(config: Any, kind: str) -> Path:
    """The run's folder: `config.out`, or runs/KIND-DATASET-TIME, made at once, so that no run of the same second gets
    it too."""
    if config.out is not None:
        return Path(config.out)
    name = f"{kind}-{config.dataset}-{datetime.now():%Y%m%d-%H%M%S}"
    for number in itertools.count(1):
        out = Path("runs") / (name if number == 1 else f"{name}-{number}")
        with suppress(FileExistsError):
            out.mkdir(parents=True)
            break
    return out


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
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


def read_images(images: Images) -> ImageData:
    """Images given from Python."""
    return images if isinstance(images, ImageData) else data.from_dataset(images)


def read_second_images(name: str, images: Images, train: ImageData) -> ImageData:
    """Images given from Python beside `train`, whose statistics they take; ValueError where they are not alike."""
    second = images if isinstance(images, ImageData) else data.from_dataset(images, train=train)
    ours, theirs = (
        f"images {list(part.images.shape[1:])} and targets {list(part.targets.shape[1:])}" for part in (second, train)
    )
    if ours != theirs:
        raise ValueError(f"{name} must be like train, {theirs}; got {ours}")
    if len(second.classes) > len(train.classes):
        raise ValueError(f"{name} has {len(second.classes)} classes, train has {len(train.classes)}")
    return second


def forecast_line(state: RunState, forecast: Forecast, device: torch.device) -> str:
    steps = state.config.epochs * state.steps_per_epoch - state.steps_done
    return (
        f"expected: about {forecast.peak_bytes / 2**30:.2f} GiB of memory, {duration(steps * forecast.step_seconds)} "
        f"for {steps} steps on {device} (measured: {forecast.step_seconds:.3f} s a step)"
    )


@contextmanager
def out_of_memory_explained(forecast: Forecast, batch_size: int, device: torch.device) -> Iterator[None]:
    """Inside, running out of memory is a MemoryError that names the largest batch that fits."""
    try:
        yield
    except Exception as error:
        if resources.is_out_of_memory(error):
            raise forecast.out_of_memory(batch_size, device) from error
        raise


def outputs_for(data: ImageData) -> int:
    """How many outputs the network needs: one a class, or as many as a target has numbers.

    ValueError for one class, with which every answer is right.
    """
    if len(data.classes) == 1:
        raise ValueError(
            f"the images are all of one class, {data.classes[0]}: there is nothing to learn (if that is no class, an "
            "image folder's `data` is one folder too high)"
        )
    return len(data.classes) or (data.targets.shape[1] if data.targets.dim() > 1 else 1)


def cosine(start: float, end: float, epoch: int, epochs: int) -> float:
    """The learning rate from `start` in epoch 0 towards `end`, which it would reach in the epoch after the last."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * epoch / epochs))


def json_number(value: float) -> float | None:
    """None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value
