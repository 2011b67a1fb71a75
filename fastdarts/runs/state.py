"""All that changes during a run."""

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastdarts.bilevel.architect import Batch
from fastdarts.bilevel.step import count_correct
from fastdarts.config.plain import plain
from fastdarts.data import BatchStream, ImageData
from fastdarts.data.augment import Augment
from fastdarts.data.augment_imagenet import ImageNetAugment
from fastdarts.runs import checkpoint
from fastdarts.runs.sums import EpochSums

Metrics = dict[str, Any]


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
        metrics.update(plain(metrics, "metrics", unknown=str))  # a method's numbers may be numpy's
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
            "metrics": plain(self.metrics, "metrics", unknown=str),  # a callback may have added to them
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
