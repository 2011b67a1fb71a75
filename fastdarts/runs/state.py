"""Hold all that changes during a run."""

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from fastdarts.bilevel.ranks import ALONE, Ranks
from fastdarts.config.plain import plain
from fastdarts.data import ImageSet
from fastdarts.data.images import first_images, in_order
from fastdarts.data.share import Share, SharedBatch, share_of
from fastdarts.runs import checkpoint
from fastdarts.runs.local_state import average_buffers, check_equal, load_local_state, local_state
from fastdarts.runs.sums import EpochSums
from fastdarts.tasks.classification import count_correct
from fastdarts.tasks.task import Batch

Metrics = dict[str, Any]


def check_divides(batch_size: int, ranks: Ranks) -> None:
    """Raise a ValueError unless all ranks get equally many images of a batch."""
    if rest := batch_size % ranks.size:
        below, above = batch_size - rest, batch_size - rest + ranks.size
        near = f"{below} and {above}" if below else str(above)
        raise ValueError(
            f"batch_size is that of all {ranks.size} processes and must be a multiple of {ranks.size}, such as {near}; "
            f"got {batch_size}"
        )


class Resumable(Protocol):
    """Declare what a run saves of its data: whatever draws or yields batches."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Draws(Resumable, Protocol):
    """Declare what draws random numbers for each batch: augmentation of images, or dropout masks."""

    generator: torch.Generator


class Stream(Resumable, Protocol):
    """Declare an endless stream of batches."""

    @property
    def batches_per_epoch(self) -> int: ...


class RunState:
    """Hold all that changes during a run, as it is between two steps. Subclasses add networks, optimizers and data.

    Args:
        config: the run's config.
        network: the network, trained in place.
        augment: what is drawn at random for each batch: augmentation of images, or dropout masks.
        streams: streams of the batches; a pass over the first one is an epoch.
        parts: measurements of a step, as for EpochSums; must contain train_loss.
        ranks: the processes that run this together.
    """

    kind: ClassVar[str]
    """Kind of run in checkpoints and messages: "search" or "evaluation"."""
    program: ClassVar[str]
    """Command line that starts such a run."""
    unit: ClassVar[str] = "images"
    """Unit of means and rates: images or words."""

    def __init__(
        self,
        config: Any,
        network: nn.Module,
        augment: Draws,
        streams: Sequence[Stream],
        parts: Mapping[str, str | None],
        ranks: Ranks = ALONE,
    ) -> None:
        self.config = config
        self.network = network
        self.augment: Any = augment
        self.streams: Sequence[Any] = streams
        self.ranks = ranks
        self.steps_per_epoch = streams[0].batches_per_epoch
        self.epoch = 0
        self.step = 0
        self.seconds = 0.0
        self.metrics: list[Metrics] = []
        self._parts = dict(parts)
        self._sums = EpochSums(self._parts, ranks)

    @property
    def steps_done(self) -> int:
        """Return the number of steps done in all epochs."""
        return self.epoch * self.steps_per_epoch + self.step

    def train_batches(self, batches: Sequence[Batch]) -> Mapping[str, Tensor]:
        """Run a step on a batch of each stream; return its measurements by part, without reading the device.

        The mean of a measurement over the ranks is that of the global batch.
        """
        raise NotImplementedError

    def test_batch(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss and the outputs of the network on `batch` in eval mode."""
        raise NotImplementedError

    def next_batches(self) -> Sequence[Batch]:
        """Return the next batch of each stream, augmented."""
        batches = []
        for stream in self.streams:
            images, targets = stream.next()
            batches.append(SharedBatch(self.augment(images, stream.share), targets, stream.share))
        return batches

    def trial_batches(self, size: int) -> Sequence[Batch]:
        """Return a batch of `size` of each stream, which moves none of them."""
        return [self._first_batch(stream.data, size) for stream in self.streams]

    def size_of(self, batch: Batch) -> int:
        """Return the number of images in a global batch, by which its measurements count in an epoch's means."""
        return batch.share.total if isinstance(batch, SharedBatch) else len(batch[0])

    def train_step(self) -> None:
        """Run one step on the next batch of each stream and add its measurements to the epoch's sums."""
        start = time.perf_counter()
        self.network.train()
        batches = self.next_batches()
        self._sums.add(self.size_of(batches[0]), self.train_batches(batches))
        self.step += 1
        self.seconds += time.perf_counter() - start

    def trial_step(self, size: int) -> None:
        """Run one step on a batch of `size` of each stream, then restore all state; only caches stay warm.

        With several ranks each takes so many.
        """
        before = copy.deepcopy(self.state_dict())
        try:
            self.network.train()
            self.train_batches(self.trial_batches(size))
        finally:
            self.load_state_dict(before)

    def _first_batch(self, data: ImageSet, size: int) -> SharedBatch:
        share = Share(self.ranks.rank * size, (self.ranks.rank + 1) * size, self.ranks.size * size, weight=1)
        images, targets = first_images(data, size)
        return SharedBatch(self.augment.normalise(images), targets, share)

    def buffers(self) -> dict[str, Tensor]:
        """Return by name what each rank has of its own during an epoch: running statistics."""
        return dict(self.network.named_buffers())

    def equal_on_ranks(self) -> dict[str, Any]:
        """Return the tensors that must have the same bits on all ranks between two steps, by name."""
        return {"weights": list(self.network.parameters())}

    def end_steps(self) -> None:
        """Finish the steps of an epoch: average the ranks' running statistics and compare the rest of their states.

        Raises: RanksError that names the ranks that differ.
        """
        average_buffers(self.buffers().values(), self.ranks)
        check_equal(self.equal_on_ranks(), self.ranks, f"after epoch {self.epoch + 1}")

    def read(self) -> dict[str, float]:
        """Return the means of this epoch so far; waits for the device. Raises FloatingPointError (see EpochSums)."""
        start = time.perf_counter()
        self._sums.read(self.epoch, self.step)
        self.seconds += time.perf_counter() - start
        return {**self._sums.means(), f"{self.unit}_per_second": self._sums.images / max(self.seconds, 1e-9)}

    def measure(self, data: Any, between_batches: Callable[[], object]) -> tuple[float, float]:
        """Return mean loss and accuracy on `data` in eval mode, without augmentation; accuracy is NaN without classes.

        Random numbers of the network (candidate `noise`) are the same each time, and global generators are restored.

        Args:
            data: the images.
            between_batches: called before each batch.

        Raises: FloatingPointError if the mean loss is not finite.
        """
        self.network.eval()
        return self._means(data, between_batches)

    def _means(self, data: Any, between_batches: Callable[[], object]) -> tuple[float, float]:
        loss = correct = torch.zeros(())
        for batch, (images, targets) in enumerate(in_order(data, self.config.batch_size)):
            between_batches()
            share = share_of(len(images), self.ranks.rank, self.ranks.size)
            mine = slice(share.start, max(share.stop, share.start + 1))  # a rank without a row computes one in vain
            count = share.stop - share.start
            with torch.inference_mode(), torch.random.fork_rng([images.device] if images.is_cuda else []):
                torch.manual_seed(batch)
                batch_loss, outputs = self.test_batch((self.augment.normalise(images[mine]), targets[mine]))
                loss = batch_loss * count + loss
                correct = count_correct(outputs, targets[mine]) * min(count, 1) + correct
        loss, correct = self.ranks.sum([loss, correct.to(loss.dtype)])
        mean_loss = float(loss) / len(data)
        if not math.isfinite(mean_loss):
            raise FloatingPointError(f"the loss measured at the end of epoch {self.epoch + 1} is {mean_loss}")
        return mean_loss, float(correct) / len(data)

    def next_epoch(self, metrics: Metrics) -> None:
        metrics.update(plain(metrics, "metrics", unknown=str))  # a method's numbers may be numpy scalars
        self.metrics.append(metrics)
        self.epoch += 1
        self.start_epoch_anew()

    def start_epoch_anew(self) -> None:
        """Forget the steps of the present epoch."""
        self.step = 0
        self.seconds = 0.0
        self._sums = EpochSums(self._parts, self.ranks)

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state in a form that `torch.load(weights_only=True)` accepts; its tensors are not copies."""
        parts = self.ranks.gather(local_state(self.buffers(), self._images_device())) if not self.ranks.alone else []
        return {
            "config": {
                name: value if value is None or isinstance(value, int | float | str | tuple | dict) else str(value)
                for name, value in dataclasses.asdict(self.config).items()
            },
            "network": self.network.state_dict(),
            "augment": self.augment.state_dict(),
            "streams": [stream.state_dict() for stream in self.streams],
            "random": checkpoint.random_state(None if self.ranks.alone else self._images_device()),
            "epoch": self.epoch,
            "step": self.step,
            "sums": self._sums.state_dict(),
            "seconds": self.seconds,
            "metrics": plain(self.metrics, "metrics", unknown=str),  # a callback may have added to them
            **({"ranks": parts} if parts else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken; on another kind of device, augmentations differ from then on."""
        self.network.load_state_dict(state["network"])
        if state["augment"]["generator"].shape == self.augment.generator.get_state().shape:
            self.augment.load_state_dict(state["augment"])
        else:  # generator states of another kind of device do not fit; add the epoch, or epoch 0 would be repeated
            self.augment.generator.manual_seed(self.config.seed + state["epoch"])
        for stream, part in zip(self.streams, state["streams"], strict=True):
            stream.load_state_dict(part)
        self.epoch = state["epoch"]
        self.step = state["step"]
        self._sums.load_state_dict(state["sums"])
        self.seconds = state["seconds"]
        self.metrics = list(state["metrics"])
        saved = state.get("ranks", [])
        if not saved and self.ranks.alone:
            checkpoint.set_random_state(state["random"])
        else:
            first = {"buffers": self.buffers(), "random": state["random"]}
            seed = self.config.seed + self.steps_done
            load_local_state(self.buffers(), self._images_device(), saved or [first], self.ranks, seed)

    def _images_device(self) -> torch.device:
        device: torch.device = self.augment.generator.device
        return device
